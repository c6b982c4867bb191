"""A network that sees the whole canvas as a `ram_gym.Policy`, and loading it from a run folder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ram_gym import GlimpseVectorEnv

from ..training.environment import find_data_root, make_blank_env
from ..training.run_folder import RunError, RunFolder
from .config import NETWORKS, FullImageConfig
from .network import make_model


def pixels(env: GlimpseVectorEnv) -> Tensor:
    """What the networks see: the hidden canvases of the running episodes, float32 (N, C, S, S) in [0, 1]."""
    return env.canvases.to(torch.float32) / 255


class FullImagePolicy:
    """Answers from the hidden canvas, which no glimpse shows whole. Looks at the centre; what is seen there changes
    nothing.

    Args:
        model: the network, in evaluation mode, on the environment's device.
        env: what it plays; it reads the hidden canvases.
        name: for reports.
    """

    answers_early = False

    def __init__(self, model: nn.Module, env: GlimpseVectorEnv, name: str = "full image") -> None:
        self.model, self.env, self.name = model, env, name

    def act(self, observation: dict[str, Any], state: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """The next action; the state is the label's log-probabilities, found at the first step of an episode."""
        if state is None:
            state = self.model(pixels(self.env)).log_softmax(-1)
        location = torch.zeros_like(observation["location"])
        return {"location": location, "label": state.argmax(-1), "log_probabilities": state}, state


def read_config(folder: RunFolder) -> FullImageConfig:
    """The configuration of a run.

    Raises:
        RunError: there is no run of a full-image network, or its config.json is of another version.
    """
    config = folder.read_as(FullImageConfig, *NETWORKS)
    agent = folder.read_agent()
    if config.network != agent:
        raise RunError(f"{folder.path}/config.json is damaged: it is of {agent!r} and of {config.network!r}")
    return config


class TrainedModel(NamedTuple):
    """What a run folder holds."""

    model: nn.Module
    """The best network, in evaluation mode."""
    config: FullImageConfig
    epoch: int
    """The epoch it is of."""


def load_model(folder: RunFolder, device: str | None = None, data_root: str | None = None) -> TrainedModel:
    """The best network of a run, and the run's configuration with another device and data folder where given.

    Needs no data.

    Raises:
        RunError: there is no such run, no best checkpoint yet, or it is damaged.
    """
    config = read_config(folder)
    config = config.moved(device, find_data_root(config.env_config, data_root))
    model = make_model(config, make_blank_env(config, folder.read_about()["data"]))
    epoch = folder.load_best(model)
    return TrainedModel(model.eval(), config, epoch)
