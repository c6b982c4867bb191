"""Reads the runs of a results folder, GROUP/TASK/NAME/seed-N, and makes its index.jsonl, a line for each run."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ram_gym import TASKS

from ..registry import preset, read_config
from ..training.config import TrainConfig
from ..training.run_folder import RunError, RunFolder

INDEX = "index.jsonl"
WHERE_IT_RAN = (
    *("seed", "data_root", "device", "checkpoint_minutes", "validate_every"),
    *("backpropagation", "cuda_graph", "compile"),
)
"""Fields of a training config in which the runs of one row may differ: they change numbers by rounding at most."""


class RunNumbers(NamedTuple):
    """Training config and numbers of one run; None for what was not measured."""

    path: Path
    agent: str
    config: TrainConfig
    seed: int
    validation_percent: float | None
    """Validation error of the best checkpoint."""
    test_percent: float | None
    """Test error, protocol "single"."""
    average_percent: float | None
    """Test error, protocol "average-10"."""
    scenes: int | None
    """Number of training scenes."""
    minutes: float | None
    """Minutes of training."""


def read_numbers(folder: RunFolder) -> RunNumbers:
    """Training config and numbers of a run, from its config.json and results.json.

    Raises:
        RunError: there is no run, or one of the files is damaged.
    """
    config = read_config(folder)
    results = folder.read_results()

    def read(entry: str, field: str) -> Any:
        return results.get(entry, {}).get(field)

    if "validation" not in results and (rows := folder.read_metrics()):  # training is not finished
        errors = [row["validation_error_percent"] for row in rows if "validation_error_percent" in row]
        results["validation"] = rows[-1] | ({"error_percent": min(errors)} if errors else {})
    validation = read("validation", "error_percent")
    scenes, steps, seconds = (read("validation", field) for field in ("scenes", "steps", "train_seconds"))
    if scenes is None and steps is not None:
        # Stable-Baselines3 counts steps; one scene has num_glimpses steps.
        scenes = steps // config.env_config.num_glimpses
    return RunNumbers(
        path=folder.path,
        agent=folder.read_agent(),
        config=config,
        seed=config.seed,
        validation_percent=read("validation single", "error_percent") if validation is None else validation,
        test_percent=read("test single", "error_percent"),
        average_percent=read("test average-10", "error_percent"),
        scenes=scenes,
        minutes=None if seconds is None else seconds / 60,
    )


class StoredRun(NamedTuple):
    """A run in a results folder."""

    id: str
    """GROUP/TASK/NAME/seed-N."""
    numbers: RunNumbers
    differs: dict[str, Any]
    """The fields of its training config that differ from the preset of its agent and task."""
    measured: dict[str, Any]
    """Content of its results.json."""
    old_name: str
    """Name of its folder when it was trained."""
    hardware: str

    @property
    def name(self) -> str:
        """GROUP/TASK/NAME."""
        return self.id.rpartition("/")[0]


class Results:
    """All runs of a results folder, read from config.json, metrics.jsonl and results.json of each.

    Args:
        root: the folder.

    Raises:
        RunError: a run's files are damaged, a run is not at the path that its training config gives, or runs of one
            name differ in more than the seed and the fields in `WHERE_IT_RAN`.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        runs = [self._read(path.parent) for path in self.root.rglob("config.json")]
        self.runs = sorted(runs, key=lambda run: (_order(run.name), run.numbers.seed))
        self.by_name: dict[str, list[StoredRun]] = {}
        for run in self.runs:
            self.by_name.setdefault(run.name, []).append(run)
        for name, (first, *others) in self.by_name.items():
            for other in others:
                if fields := differences(other.numbers.config, first.numbers.config):
                    raise RunError(f"{self.root}/{name}: seeds differ in {', '.join(fields)} too")

    def _read(self, path: Path) -> StoredRun:
        folder = RunFolder(path)
        numbers, about = read_numbers(folder), folder.read_about()
        parts = path.relative_to(self.root).parts
        if len(parts) != 4 or (parts[1], parts[3]) != (numbers.config.task, f"seed-{numbers.seed}"):
            expected = f"GROUP/{numbers.config.task}/NAME/seed-{numbers.seed}"
            raise RunError(f"{path} must be at {self.root}/{expected}, as its config.json says")
        words = about.get("command", [])
        out = words[words.index("--out") + 1] if "--out" in words else ""
        hardware, device = about["hardware"], numbers.config.device
        on_gpu, threads = device.startswith("cuda"), hardware["threads"]
        cpu = hardware.get("cpu", hardware.get("machine"))  # older runs have no "cpu"
        return StoredRun(
            id="/".join(parts),
            numbers=numbers,
            differs=differences(numbers.config, preset(numbers.agent, numbers.config.task)),
            measured=folder.read_results(),
            old_name=Path(out).name,
            hardware=hardware["gpus"][0] if on_gpu else f"{cpu}, {threads} thread{'s'[: threads > 1]}",
        )

    def select(self, *patterns: str) -> dict[str, list[StoredRun]]:
        """The runs whose names, GROUP/TASK/NAME, match a pattern: name -> runs in the order of seeds.

        The names are in the order of the patterns, then of the index.

        Raises:
            ValueError: no run matches a pattern.
        """
        selected: dict[str, list[StoredRun]] = {}
        for pattern in patterns:
            names = fnmatch.filter(self.by_name, pattern)
            if not names:
                raise ValueError(f"{self.root} holds no run {pattern!r}")
            selected |= {name: self.by_name[name] for name in names if name not in selected}
        return selected

    def index(self) -> str:
        """The text of index.jsonl: one JSON object per line and run."""
        return "".join(json.dumps(_index_line(run)) + "\n" for run in self.runs)


def _order(name: str) -> list[Any]:
    """Sort key of a name: group, position of the task in TASKS, then the name with its numbers as numbers."""
    group, task, rest = name.split("/")
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in rest.split("-")]
    return [group, list(TASKS).index(task), parts]


def _index_line(run: StoredRun) -> dict[str, Any]:
    numbers = run.numbers
    interval = run.measured.get("test single", {}).get("interval_percent")
    return {
        "id": run.id,
        "agent": numbers.agent,
        "task": numbers.config.task,
        "seed": numbers.seed,
        "differs": run.differs,
        "scenes": numbers.scenes,
        "validation_percent": _round(numbers.validation_percent),
        "test_percent": _round(numbers.test_percent),
        "test_interval_percent": interval and [_round(bound) for bound in interval],
        "average_10_percent": _round(numbers.average_percent),
        "minutes": _round(numbers.minutes, 2),
        "hardware": run.hardware,
        "old_name": run.old_name,
    }


def _round(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def differences(config: TrainConfig, other: TrainConfig) -> dict[str, Any]:
    """The fields in which a training config differs from another, with its values; without those in `WHERE_IT_RAN`."""
    ours, theirs = flatten(config), flatten(other)
    return {
        name: value for name, value in ours.items() if name not in WHERE_IT_RAN and theirs.get(name, value) != value
    }


def flatten(config: TrainConfig) -> dict[str, Any]:
    """The fields of a training config and of its environment config in one dict, as the command line has them."""
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return fields.pop("env_config") | fields


def as_options(fields: dict[str, Any]) -> str:
    """Fields of a training config as command-line options."""
    words = []
    for name, value in fields.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{option}")
        else:
            words.append(" ".join([f"--{option}", *map(str, value if isinstance(value, list) else [value])]))
    return " ".join(words)
