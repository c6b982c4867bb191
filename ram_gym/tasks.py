"""The one table of tasks: short name -> Gymnasium id and what the task changes in GlimpseConfig."""

from __future__ import annotations

from typing import Any, NamedTuple

from ram_gym.config import GlimpseConfig


class Task(NamedTuple):
    """A named environment configuration."""

    env_id: str
    """The Gymnasium id it is registered as."""
    overrides: dict[str, Any]
    """The fields of GlimpseConfig that it sets."""
    summary: str
    """What it is, in a line."""

    @property
    def config(self) -> GlimpseConfig:
        """The whole configuration."""
        return GlimpseConfig(**self.overrides)


_FOVEATED = {"num_glimpses": 8, "patch_size": 12}
_TRANSLATED = {**_FOVEATED, "canvas_size": 60, "num_scales": 3}

_CLUTTERED_100 = {**_FOVEATED, "canvas_size": 100, "num_clutter": 4, "num_scales": 4}

# Sizes and glimpses of the MNIST tasks: Mnih et al. 2014, section 4.1 and 4.2.
TASKS: dict[str, Task] = {
    "digits": Task("RamGym/Digits-v0", {"dataset": "digits"}, "scikit-learn's digits, 28x28; needs no download"),
    "mnist-28": Task("RamGym/MNIST-v0", {}, "MNIST, 28x28"),
    "translated-60": Task("RamGym/TranslatedMNIST-v0", _TRANSLATED, "MNIST anywhere on 60x60"),
    "cluttered-60": Task(
        "RamGym/ClutteredMNIST-v0",
        {**_TRANSLATED, "num_clutter": 4},
        "MNIST anywhere on 60x60 with 4 clutter pieces",
    ),
    "cluttered-100": Task(
        "RamGym/ClutteredMNIST100-v0",
        _CLUTTERED_100,
        "MNIST anywhere on 100x100 with 4 clutter pieces",
    ),
    "cluttered-100x8": Task(
        "RamGym/ClutteredMNIST100x8-v0",
        {**_CLUTTERED_100, "num_clutter": 8},
        "MNIST anywhere on 100x100 with 8 clutter pieces",
    ),
}

FREE_ENV_ID = "RamGym/Glimpse-v0"
"""The id whose configuration is given by keyword alone."""


def get_task(name: str) -> Task:
    """The task of a short name or a Gymnasium id.

    Raises:
        ValueError: there is none; the message lists the names.

    Example:
        >>> get_task("mnist-28").env_id
        'RamGym/MNIST-v0'
    """
    for short_name, task in TASKS.items():
        if name in (short_name, task.env_id):
            return task
    raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
