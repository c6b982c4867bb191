"""What the files of a run hold, as annotations that `agents.training.schema` checks."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, NotRequired

from annotated_types import Interval
from typing_extensions import TypedDict

from .fingerprint import SHA256, Data
from .schema import Count, NotNegative, Percent, Whole, check_stored


class Resumed(TypedDict):
    """Where and by what a run went on."""

    epoch: Whole
    """Complete epochs, after which it went on."""
    command: list[str]
    versions: dict[str, str]
    hardware: dict[str, Any]


class About(TypedDict):
    """config.json."""

    format: int
    agent: str
    config: dict[str, Any]
    """Fields of a TrainConfig."""
    fingerprint: SHA256
    """Of `data`; checkpoints repeat it."""
    data: Data
    command: list[str]
    versions: dict[str, str]
    hardware: dict[str, Any]
    resumed: NotRequired[list[Resumed]]


class BestHeader(TypedDict):
    """What best.safetensors holds beside the weights."""

    epoch: Count
    fingerprint: SHA256


class LastHeader(TypedDict):
    """What last.safetensors holds beside the tensors."""

    epoch: Annotated[int, Interval(ge=0, le=2**20)]
    """Complete epochs."""
    update_in_epoch: Whole
    seconds: NotNegative
    """Training time, validation not counted."""
    best_error: Percent | None
    """Lowest validation error, in percent; None before the first validation."""
    best_epoch: Whole
    fingerprint: SHA256


class Row(TypedDict):
    """A row of metrics.jsonl; what else it holds are numbers too."""

    epoch: Count
    scenes: NotRequired[Whole]
    steps: NotRequired[Whole]
    train_seconds: NotRequired[NotNegative]
    train_accuracy_percent: NotRequired[Percent]
    validation_error_percent: NotRequired[Percent]


class Result(TypedDict):
    """An entry of results.json: the run's own validation, or what an evaluation found."""

    epoch: NotRequired[Whole]
    """The epoch that the best network is of."""
    epochs: NotRequired[Whole]
    train_seconds: NotRequired[NotNegative]
    scenes: NotRequired[Whole | None]
    steps: NotRequired[Whole | None]
    error_percent: NotRequired[Percent]
    task: NotRequired[str]
    policy: NotRequired[str]
    protocol: NotRequired[str]
    split: NotRequired[str]
    episodes: NotRequired[Whole]
    errors: NotRequired[Whole]
    interval_percent: NotRequired[list[Percent]]
    accuracy_percent: NotRequired[Percent]
    accuracy_interval_percent: NotRequired[list[Percent]]
    accuracy_by_glimpse_percent: NotRequired[list[Percent] | None]
    distance_by_glimpse_pixels: NotRequired[list[NotNegative] | None]
    spread_by_glimpse_pixels: NotRequired[list[NotNegative] | None]
    other_data: NotRequired[bool]
    """Whether the run learned from other data than it was measured on."""


def check_row(row: Any) -> None:
    """Refuses what is no row of metrics.jsonl.

    Raises:
        ValueError: a field is wrong; the message names it.
    """
    if not isinstance(row, dict):
        raise ValueError(f"it must be an object, got {reprlib.repr(row)}")
    known = {name: value for name, value in row.items() if name in Row.__annotations__}
    check_stored(Row, known)
    check_stored(dict[str, float], {name: value for name, value in row.items() if name not in known})


HEADERS: dict[str, type] = {"best.safetensors": BestHeader, "last.safetensors": LastHeader}
"""Of the safetensors files of a run, by name."""
