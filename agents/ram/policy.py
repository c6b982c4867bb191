"""RamPolicy: a trained Recurrent Attention Model as a ram_gym Policy."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..scripted import ScriptedLocator
from .network import RecurrentAttentionModel, State


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
