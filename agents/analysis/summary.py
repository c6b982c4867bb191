"""`python -m agents summary`: a table of finished runs, a row for each training config, with the spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from ram_gym.files import printable, write_file

from ..terminal import make_console, say
from ..training.environment import describe_environment
from ..training.pretrained import find_run
from ..training.run_folder import RunError, RunFolder
from .cells import Markdown, code, format_number, format_spread, markdown_table
from .pages import stale_files
from .results import WHERE_IT_RAN, RunNumbers, flatten, read_numbers

NUMBERS = ("seed", "validation", "test", "average-10", "scenes", "min")
"""Headings of the columns of numbers; min: minutes of training."""
MISSING = "-: not measured"
CHECKOUT = Path(__file__).parents[2]


def summarise(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")] = (),
    markdown: Path | None = None,
    write: bool = False,
) -> None:
    """Make one table of finished runs from their stored results.

    Runs that differ only in the seed, or in device and data folder, are one row, with mean and sample standard
    deviation over the seeds.

    Args:
        runs: Run folders or pretrained:NAME.
        markdown: Markdown file to write the table to.
        write: Generate results/index.jsonl and the tables of all pages (RESULTS.md, docs/results/) from the runs in
            results/. Takes no RUN.
    """
    if write:
        if runs or markdown is not None:
            raise ValueError("--write takes no RUN and no --markdown: it writes the tables of all pages")
        for path, text in [*stale_files(CHECKOUT)]:
            write_file(path, text)
            say(str(path))
        return
    if not runs:
        raise ValueError("runs must name run folders or pretrained:NAME, got none")
    rows = group([read_numbers(find_run(name)) for name in runs])
    if markdown is not None:
        write_file(markdown, to_markdown(rows))
    make_console().print(to_table(rows))


def group(runs: Sequence[RunNumbers]) -> list[list[RunNumbers]]:
    """Groups runs by training config, in the order of their first run; in each group the runs are in order of seeds.

    Raises:
        RunError: two runs have the same training config and the same seed.
    """
    rows: dict[str, dict[int, RunNumbers]] = {}
    for run in runs:
        fields = {name: value for name, value in flatten(run.config).items() if name not in WHERE_IT_RAN}
        row = rows.setdefault(json.dumps([run.agent, fields], sort_keys=True), {})
        if run.seed in row:
            both = f"{row[run.seed].path} and {run.path}"
            raise RunError(f"{both} have the same training config and seed {run.seed}: name one of them")
        row[run.seed] = run
    return [[row[seed] for seed in sorted(row)] for row in rows.values()]


def to_table(rows: Sequence[Sequence[RunNumbers]]) -> Table:
    """The table for a terminal: for each training config its name, a line for each seed, and their spread."""
    shown = Table(box=box.SIMPLE_HEAD, caption=f"errors in %; last lines: mean ± sample standard deviation; {MISSING}")
    shown.add_column("run", overflow="fold")
    for heading in NUMBERS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(Text(f"{_describe_task(row[0])}: {_describe_agent(row[0])}", style="bold"))
        columns = [column for column, _ in _columns(row)]
        for run, *values in zip(row, *columns, strict=True):
            shown.add_row(Text(f"  {_name(run)}"), *values)
        if len(row) > 1:
            shown.add_row(f"  {len(row)} seeds", *(closing for _, closing in _columns(row)))
        shown.add_section()
    return shown


def to_markdown(rows: Sequence[Sequence[RunNumbers]]) -> str:
    """The table in Markdown: a line for each training config."""
    lines = []
    for row in rows:
        names = Markdown(", ".join(code(_name(run)) for run in row))
        values = [_in_one(cells) + (f" ({closing})" if closing else "") for cells, closing in _columns(row)]
        # Seeds usually have the same number of scenes, so each number is listed once.
        values[4] = _in_one(list(dict.fromkeys(_columns(row)[4][0])))
        lines.append((names, _describe_agent(row[0]), _describe_task(row[0]), str(len(row)), *values[1:]))
    table = markdown_table(("runs", "agent", "task", "seeds", *NUMBERS[1:]), lines, left=3)
    note = f"Errors in %, of each seed; of several, in brackets, mean ± sample standard deviation; {MISSING}."
    return f"{table}\n\n{note}\n"


def _name(run: RunNumbers) -> str:
    return printable(RunFolder(run.path).name)


def _in_one(values: Sequence[str]) -> str:
    """The values in one cell; a single "-" if none was measured."""
    return "-" if set(values) == {"-"} else ", ".join(values)


def _columns(row: Sequence[RunNumbers]) -> list[tuple[list[str], str]]:
    """For each heading of `NUMBERS`: the value of each run, and their spread."""
    errors = [[getattr(run, name) for run in row] for name in ("validation_percent", "test_percent", "average_percent")]
    return [
        ([str(run.seed) for run in row], ""),
        *(([format_number(value, ".2f") for value in values], format_spread(values)) for values in errors),
        ([format_number(run.scenes, ",") for run in row], ""),
        ([format_number(run.minutes, ".1f") for run in row], ""),
    ]


def _describe_agent(run: RunNumbers) -> str:
    locator = run.config.to_dict().get("locator", "learned")
    return run.agent if locator == "learned" else f"{run.agent}, {locator} locator"


def _describe_task(run: RunNumbers) -> str:
    return describe_environment(run.config.task, run.config.env_config)
