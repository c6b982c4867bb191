"""Contents of a run's files, as annotated types that `agents.training.schema` checks."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, NotRequired

from annotated_types import Interval
from typing_extensions import TypedDict

from .fingerprint import SHA256, Data
from .schema import Count, NotNegative, Percent, Whole, check_stored


class Resumed(TypedDict):
    """One resumption of a run."""

    epoch: Whole
    """Number of complete epochs when it was resumed."""
    command: list[str]
    versions: dict[str, str]
    hardware: dict[str, Any]


class About(TypedDict):
    """Content of config.json."""

    format: int
    agent: str
    config: dict[str, Any]
    """Fields of a TrainConfig."""
    fingerprint: SHA256
    """Fingerprint of `data`; checkpoints store it too."""
    data: Data
    command: list[str]
    versions: dict[str, str]
    hardware: dict[str, Any]
    resumed: NotRequired[list[Resumed]]


class BestHeader(TypedDict):
    """Metadata of best.safetensors."""

    epoch: Count
    fingerprint: SHA256


class LastHeader(TypedDict):
    """Metadata of last.safetensors."""

    epoch: Annotated[int, Interval(ge=0, le=2**20)]
    """Number of complete epochs."""
    update_in_epoch: Whole
    seconds: NotNegative
    """Training time, without validation."""
    best_error: Percent | None
    """Lowest validation error, in percent; None before the first validation."""
    best_epoch: Whole
    fingerprint: SHA256


class Row(TypedDict):
    """A row of metrics.jsonl. All further fields must be numbers."""

    epoch: Count
    scenes: NotRequired[Whole]
    steps: NotRequired[Whole]
    train_seconds: NotRequired[NotNegative]
    train_accuracy_percent: NotRequired[Percent]
    validation_error_percent: NotRequired[Percent]


class Result(TypedDict):
    """An entry of results.json: the validation at the end of training, or an evaluation."""

    epoch: NotRequired[Whole]
    """Epoch of the best network."""
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
    """Whether the evaluation used another environment or other data than the run learned from."""


def check_row(row: Any) -> None:
    """Checks a row of metrics.jsonl.

    Raises:
        ValueError: it is not an object, or a field is wrong; the message names the field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"it must be an object, got {reprlib.repr(row)}")
    named = {name: value for name, value in row.items() if name in Row.__annotations__}
    check_stored(Row, named)
    check_stored(dict[str, float], {name: value for name, value in row.items() if name not in named})


HEADERS: dict[str, type] = {"best.safetensors": BestHeader, "last.safetensors": LastHeader}
"""Types of the metadata of a run's safetensors files, by file name."""
