"""RamPolicy: a trained Recurrent Attention Model as a `ram_gym.Policy`; and loading one from a run folder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ram_gym import GlimpseVectorEnv

from ..networks import State
from ..registry import TrainedRun
from ..scripted import ScriptedLocator, make_locator
from ..training.environment import make_blank_env
from ..training.run_folder import RunFolder
from .config import RamConfig
from .network import OwnCore, OwnGlimpseNetwork, RecurrentAttentionModel, make_model


class PolicyState(NamedTuple):
    """What the policy remembers: the core's state and the number of glimpses taken."""

    core: State
    num_taken: int


class RamPolicy:
    """Looks at the learned policy's mean location, or at a scripted locator's, and answers the argmax.

    Args:
        model: the network, in evaluation mode, on the environment's device.
        name: for reports.
        locator: chooses the locations instead of the learned location network.
    """

    answers_early = True
    """Its classifier is trained for the last glimpse, but has an opinion after each."""

    def __init__(
        self, model: RecurrentAttentionModel, name: str = "ram", locator: ScriptedLocator | None = None
    ) -> None:
        self.model = model
        self.name = name
        self.locator = locator

    def act(self, observation: dict[str, Any], state: PolicyState | None) -> tuple[dict[str, Any], PolicyState]:
        """The next action, with the label's log-probabilities; see `ram_gym.Policy`."""
        num_episodes = len(observation["glimpse"])
        core, num_taken = state or PolicyState(self.model.initial_state(num_episodes), 0)
        core = self.model.look(observation, core)
        num_taken += 1
        logits = self.model.classify(core[0])
        location = self.model.locate(core[0]) if self.locator is None else self.locator(observation, num_taken)
        action = {"location": location, "label": logits.argmax(-1), "log_probabilities": logits.log_softmax(-1)}
        return action, PolicyState(core, num_taken)


def make_policy(
    model: RecurrentAttentionModel, env: GlimpseVectorEnv, locator: str, seed: int = 0, name: str = "ram"
) -> RamPolicy:
    """The policy that answers with a network and looks where its own or a scripted locator says.

    Args:
        model: the network.
        env: what it will play.
        locator: "learned", or a scripted one; a run's own is `config.locator`.
        seed: of random locations.
        name: for reports.
    """
    if locator == "learned":
        return RamPolicy(model, name)
    generator = torch.Generator(env.device).manual_seed(seed)
    return RamPolicy(model, name, make_locator(locator, env, generator))


def load(
    folder: RunFolder, config: RamConfig, glimpse_network: OwnGlimpseNetwork = None, core: OwnCore = None
) -> TrainedRun:
    """The best network of a run; see `agents.registry.Agent.load`. A part of the user's own must be given again."""
    data = folder.read_about()["data"]
    model = make_model(config, make_blank_env(config, data), glimpse_network, core)
    # Published runs hold matrices as what they compute with.
    epoch = folder.load_best(model, torch.bfloat16 if config.precision == "bfloat16" else None)
    model.eval()

    def make(env: GlimpseVectorEnv, locator: str | None = None, name: str = "ram") -> RamPolicy:
        return make_policy(model, env, locator or config.locator, config.seed, name)

    return TrainedRun(folder.path, config, data, epoch, model, make)
