"""A network that sees the whole canvas as a `ram_gym.Policy`, and loading it from a run folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ram_gym import GlimpseVectorEnv

from ..registry import TrainedRun
from ..training.environment import make_blank_env
from ..training.run_folder import RunFolder
from .config import FullImageConfig
from .network import make_model


def pixels(env: GlimpseVectorEnv) -> Tensor:
    """Input of the networks: the canvases of the current episodes, float32 (N, C, S, S) in [0, 1]."""
    return env.canvases.to(torch.float32) / 255


class FullImagePolicy:
    """Answers from the hidden canvas. It looks at the centre and ignores the glimpses.

    Args:
        model: the network, in evaluation mode, on the environment's device.
        env: the environment to play; the policy reads its hidden canvases.
        name: name in reports.
    """

    answers_early = False

    def __init__(self, model: nn.Module, env: GlimpseVectorEnv, name: str = "full image") -> None:
        self.model, self.env, self.name = model, env, name

    def act(self, observation: dict[str, Any], state: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """The next action; the state is the label's log-probabilities, computed at the first step of an episode."""
        if state is None:
            state = self.model(pixels(self.env)).log_softmax(-1)
        location = torch.zeros_like(observation["location"])
        return {"location": location, "label": state.argmax(-1), "log_probabilities": state}, state


def load(folder: RunFolder, config: FullImageConfig) -> TrainedRun:
    """The best network of a run; see `agents.registry.Agent.load`."""
    data = folder.read_about()["data"]
    model = make_model(config, make_blank_env(config, data))
    epoch = folder.load_best(model)
    model.eval()

    def make(env: GlimpseVectorEnv, locator: str | None = None, name: str = config.agent) -> FullImagePolicy:
        assert locator is None, "a whole-image network takes no glimpses"
        return FullImagePolicy(model, env, name)

    return TrainedRun(folder.path, config, data, epoch, model, make, looks=False)
