"""`python -m agents summary`: finished runs as one table, a row for each configuration, with the spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ram_gym import get_task

from ..registry import RunConfig, read_config
from ..training.run_folder import RunError, RunFolder, find_run

SAME_ROW = ("seed", "data_root", "device", "checkpoint_minutes", "validate_every")
"""Fields of a configuration in which the runs of one row may differ."""

NUMBERS = ("seed", "validation", "test", "average-10", "scenes", "min")
"""Headings of the columns of numbers; min: minutes of training."""
MISSING = "-: not measured"


class RunNumbers(NamedTuple):
    """What one run is, and what was found of it; None for what was not."""

    path: Path
    agent: str
    config: RunConfig
    seed: int
    validation_percent: float | None
    """Validation error of the best checkpoint."""
    test_percent: float | None
    """Test error, protocol "single"."""
    average_percent: float | None
    """Test error, protocol "average-10"."""
    scenes: int | None
    """Scenes trained on."""
    minutes: float | None
    """Minutes of training."""


def summarise(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")],
    markdown: Path | None = None,
) -> None:
    """One table of finished runs, from what their folders say; nothing is played.

    Runs that differ in the seed alone (or in where they ran) are one row, with mean and sample standard deviation over
    the seeds.

    Args:
        runs: Run folders or pretrained:NAME.
        markdown: Markdown file to write the table to.
    """
    if not runs:
        raise ValueError("runs must name run folders or pretrained:NAME, got none")
    rows = group([read_numbers(find_run(name)) for name in runs])
    Console().print(to_table(rows))
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(to_markdown(rows), encoding="utf-8")


def read_numbers(folder: RunFolder) -> RunNumbers:
    """What config.json and results.json of a run say.

    Raises:
        RunError: there is no run, or one of the files is damaged.
    """
    config = read_config(folder)
    results = folder.read_json("results.json", {})
    if not isinstance(results, dict):
        raise RunError(f"{folder.path}/results.json is damaged: it holds no object")

    def find(entry: str, field: str) -> Any:
        found = results.get(entry, {})
        if not isinstance(found, dict):
            raise RunError(f"{folder.path}/results.json is damaged: {entry!r} is no object, got {found!r}")
        value = found.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RunError(f"{folder.path}/results.json is damaged: {field} of {entry!r} is no number, got {value!r}")
        return value

    validation = find("validation", "error_percent")
    scenes, steps, seconds = (find("validation", field) for field in ("scenes", "steps", "train_seconds"))
    if scenes is None and steps is not None:
        # Stable-Baselines3 counts steps; an episode, of one scene, has as many as glimpses.
        scenes = steps // config.environment().num_glimpses
    return RunNumbers(
        path=folder.path,
        agent=folder.read_agent(),
        config=config,
        seed=config.to_dict()["seed"],
        validation_percent=find("validation single", "error_percent") if validation is None else validation,
        test_percent=find("test single", "error_percent"),
        average_percent=find("test average-10", "error_percent"),
        scenes=scenes,
        minutes=None if seconds is None else seconds / 60,
    )


def group(runs: Sequence[RunNumbers]) -> list[list[RunNumbers]]:
    """Runs of one configuration together, by seed; configurations in the order they are first met.

    Raises:
        RunError: two runs have one configuration and seed, so that one of them says nothing of the spread over seeds.
    """
    rows: dict[str, dict[int, RunNumbers]] = {}
    for run in runs:
        fields = {name: value for name, value in run.config.to_dict().items() if name not in SAME_ROW}
        row = rows.setdefault(json.dumps([run.agent, fields], sort_keys=True), {})
        if run.seed in row:
            both = f"{row[run.seed].path} and {run.path}"
            raise RunError(f"{both} are runs of one configuration with seed {run.seed}: name one of them")
        row[run.seed] = run
    return [[row[seed] for seed in sorted(row)] for row in rows.values()]


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation of the values that are there; None where there are too few."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return statistics.mean(there), statistics.stdev(there) if len(there) > 1 else None


def to_table(rows: Sequence[Sequence[RunNumbers]]) -> Table:
    """The table for a terminal: under the name of each configuration a line for each seed, then their spread."""
    shown = Table(box=box.SIMPLE_HEAD, caption=f"errors in %; last lines: mean ± sample standard deviation; {MISSING}")
    shown.add_column("run", overflow="fold")
    for heading in NUMBERS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(Text(f"{_describe_task(row[0].config)}: {_describe_agent(row[0])}", style="bold"))
        columns = [column for column, _ in _columns(row)]
        for run, *values in zip(row, *columns, strict=True):
            shown.add_row(Text(f"  {run.path.resolve().name}"), *values)
        if len(row) > 1:
            shown.add_row(f"  {len(row)} seeds", *(closing for _, closing in _columns(row)))
        shown.add_section()
    return shown


def to_markdown(rows: Sequence[Sequence[RunNumbers]]) -> str:
    """The table in Markdown: a line for each configuration."""
    lines = [("runs", "agent", "task", "seeds", *NUMBERS[1:]), ("---",) * 3 + ("---:",) * len(NUMBERS)]
    for row in rows:
        names = ", ".join(f"`{run.path.resolve().name}`" for run in row)
        values = [_in_one(each) + (f" ({closing})" if closing else "") for each, closing in _columns(row)]
        # The runs stand by seed, so that the count is all there is to say of the seeds.
        values[4] = _in_one(list(dict.fromkeys(_columns(row)[4][0])))  # most often as many for each seed
        lines.append((names, _describe_agent(row[0]), _describe_task(row[0].config), str(len(row)), *values[1:]))
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    note = f"Errors in %, of each seed; of several, in brackets, mean ± sample standard deviation; {MISSING}."
    return "\n".join([*table, "", note]) + "\n"


def _in_one(values: Sequence[str]) -> str:
    """The values in one cell; where nothing was measured, one stroke for all of them."""
    return "-" if set(values) == {"-"} else ", ".join(values)


def _columns(row: Sequence[RunNumbers]) -> list[tuple[list[str], str]]:
    """Under each heading of `NUMBERS` the runs' own values, and what closes them."""
    errors = [[getattr(run, name) for run in row] for name in ("validation_percent", "test_percent", "average_percent")]
    return [
        ([str(run.seed) for run in row], ""),
        *(([_number(value, ".2f") for value in values], _spread(values)) for values in errors),
        ([_number(run.scenes, ",") for run in row], ""),
        ([_number(run.minutes, ".1f") for run in row], ""),
    ]


def _describe_agent(run: RunNumbers) -> str:
    locator = run.config.to_dict().get("locator", "learned")
    return run.agent if locator == "learned" else f"{run.agent}, {locator} locator"


def _describe_task(config: RunConfig) -> str:
    """The task, and what of it the run changes."""
    ours, usual = config.environment(), get_task(config.task).config
    parts = [config.task]
    parts += [ours.composition] if ours.composition != usual.composition else []
    parts += [str(ours.dataset)] if ours.dataset != usual.dataset else []
    parts += [f"{ours.num_glimpses} glimpses"] if ours.num_glimpses != usual.num_glimpses else []
    return ", ".join(parts)


def _spread(values: Sequence[float | None]) -> str:
    """Of several values, their mean ± sample standard deviation."""
    found = spread(values)
    if len(values) < 2 or found is None:
        return ""
    return f"{found[0]:.2f} ± {_number(found[1], '.2f')}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
