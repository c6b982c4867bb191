"""Scripted locators and policies: controls and references for learned ones.

A locator chooses the next locations; a policy also answers. A scripted policy guesses the label. To measure what a
network can learn from scripted locations, train one: `python -m agents train ram --locator random`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ram_gym import GlimpseVectorEnv

from .training.ranks import ALONE, Ranks

ScriptedLocator = Callable[[dict[str, Any], int], Tensor]
"""(observation, number of glimpses so far) -> next locations, float32 (N, 2)."""

SCRIPTED_LOCATORS = ("random", "centre", "scan", "oracle")


def scan_path(num_locations: int) -> Tensor:
    """Locations on an outward sunflower spiral that covers the canvas evenly: float32 (num_locations, 2)."""
    number = torch.arange(num_locations, dtype=torch.float32)
    radius = 0.8 * ((number + 0.5) / max(num_locations, 1)).sqrt()
    angle = number * math.pi * (3 - math.sqrt(5))
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


def make_locator(
    name: str, env: GlimpseVectorEnv, generator: torch.Generator | None = None, ranks: Ranks = ALONE
) -> ScriptedLocator:
    """The scripted locator with this name.

    Args:
        name: "random": uniform on the canvas; "centre": always (0, 0); "scan": the same covering path in every episode;
            "oracle": the digit's centre, read from the hidden state; a reference, not an upper bound.
        env: the environment to play; the oracle reads its hidden state.
        generator: random numbers for "random", on the environment's device.
        ranks: the processes that share a batch; the environment has this rank's lanes.

    Raises:
        ValueError: no locator has that name.
    """
    path = scan_path(env.config.num_glimpses - 1).to(env.device)
    # The location of the last action is ignored, so the last one of the path is repeated for it.
    path = torch.cat((path, path[-1:] if len(path) else torch.zeros(1, 2, device=env.device)))

    def random(observation: dict[str, Any], num_taken: int) -> Tensor:
        del num_taken
        return ranks.draw(torch.rand, len(observation["location"]), generator, env.device) * 2 - 1

    def centre(observation: dict[str, Any], num_taken: int) -> Tensor:
        del num_taken
        return torch.zeros_like(observation["location"])

    def scan(observation: dict[str, Any], num_taken: int) -> Tensor:
        return path[num_taken - 1].expand_as(observation["location"])

    def oracle(observation: dict[str, Any], num_taken: int) -> Tensor:
        del observation, num_taken
        return env.digit_locations

    locators = {"random": random, "centre": centre, "scan": scan, "oracle": oracle}
    if name not in locators:
        raise ValueError(f"locator must be one of {', '.join(locators)}, got {name!r}")
    return locators[name]


class ScriptedPolicy:
    """Looks at scripted locations and guesses the label; its accuracy is that of chance.

    Args:
        locator: one of `SCRIPTED_LOCATORS`.
        env: the environment to play.
        seed: seed of the guesses and of random locations.
    """

    def __init__(self, locator: str, env: GlimpseVectorEnv, seed: int = 0) -> None:
        self.name = f"{locator}, guessing"
        self.num_classes = env.num_classes
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.locator = make_locator(locator, env, self.generator)

    def act(self, observation: dict[str, Any], state: int | None) -> tuple[dict[str, Any], int]:
        """The next action; the state is the number of glimpses so far."""
        num_taken = (state or 0) + 1
        shape = observation["location"].shape[:1]
        label = torch.randint(self.num_classes, shape, generator=self.generator, device=observation["location"].device)
        return {"location": self.locator(observation, num_taken), "label": label}, num_taken
