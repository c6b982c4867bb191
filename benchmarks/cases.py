"""Cases: single measurements, run in fresh processes with their number of threads, and written as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from agents.training.progress import show_progress
from benchmarks.timing import Settings, hardware, meminfo, pool
from ram_gym import GlimpseConfig, get_task

ROOT = Path(__file__).parents[1]
WORKER = "from benchmarks.cases import work; work()"


class FailedError(RuntimeError):
    """A measurement failed; what it printed says why."""


class SkippedError(Exception):
    """A measurement cannot be made here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement."""

    measure: str
    """The function that makes it, "module.function" in this package: takes a Case and a Plan, returns a dict."""
    task: str
    batch: int = 1
    threads: int = 1
    device: str = "cpu"
    variant: str = ""
    """What the function offers a choice of."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of GlimpseConfig to change in the task."""

    def config(self, plan: Plan) -> GlimpseConfig:
        """The environment that is measured, on the training split."""
        return get_task(self.task).config.replace(data_root=plan.data_root, **self.overrides)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all cases of a run share."""

    settings: Settings = dataclasses.field(default_factory=Settings)
    data_root: str | None = None
    memory_gb: float | None = None
    """Host memory in GiB that a case on the CPU may take; None: nine tenths of what is free when it begins."""
    in_process: bool = False
    """Run in this process, for tests; threads are then what the process has."""
    rounds: int = 1
    """How often all cases are measured, each time in fresh processes; see `timing.pool`."""


def run_cases(title: str, cases: list[Case], plan: Plan, *, one_process_each: bool = False) -> list[dict[str, Any]]:
    """Runs cases one after the other and shows progress.

    Neighbouring cases of the same task, device and number of threads share a process, unless `one_process_each`.

    Returns:
        One row a case: its fields, and either `torch_threads`, the threads that PyTorch had, and what its function
        returned, or `skipped`, the reason.
    """
    rows: list[dict[str, Any]] = []
    num_rows = plan.rounds * len(cases)
    start = time.monotonic()
    with show_progress(title) as report:
        for _ in range(plan.rounds):
            for row in _rows(cases, plan, one_process_each):
                rows.append(row)
                share = len(rows) / num_rows
                text = f"{len(rows)}/{num_rows} {describe(row)}"
                report(share, text, (time.monotonic() - start) / share * (1 - share))
    return [pool(rows[number :: len(cases)]) for number in range(len(cases))]


def describe(row: dict[str, Any]) -> str:
    """A case in a few words."""
    overrides = " ".join(f"{key}={value}" for key, value in row["overrides"].items())
    parts = (row["measure"].partition(".")[2], row["task"], overrides, f"x{row['batch']}", row["variant"])
    return " ".join(part for part in (*parts, place(row)) if part)


def place(row: dict[str, Any]) -> str:
    """Where a case runs: "1 thread", "2 threads", "cuda"."""
    return f"{row['threads']} thread{'s' * (row['threads'] > 1)}" if row["device"] == "cpu" else row["device"]


def _rows(cases: list[Case], plan: Plan, one_process_each: bool) -> Iterator[dict[str, Any]]:
    if plan.in_process:
        yield from (run_case(case, plan) for case in cases)
        return
    if one_process_each:
        groups = [[case] for case in cases]
    else:
        groups = [list(group) for _, group in groupby(cases, lambda case: (case.task, case.device, case.threads))]
    for group in groups:
        while group:
            done = 0
            for row in _run_in_worker(group, plan):
                done += 1
                yield row
            if done < len(group):  # the worker died: that case is lost, the others go on in a new one
                yield {**dataclasses.asdict(group[done]), "skipped": "its process was killed, most likely for memory"}
                done += 1
            group = group[done:]


def run_case(case: Case, plan: Plan) -> dict[str, Any]:
    """One row; see `run_cases`."""
    import torch

    module, _, function = case.measure.partition(".")
    row = dataclasses.asdict(case)
    try:
        found = getattr(importlib.import_module(f"benchmarks.{module}"), function)(case, plan)
    except SkippedError as reason:
        return {**row, "skipped": str(reason)}
    except (MemoryError, RuntimeError) as error:
        # PyTorch has no class of its own for an allocation on the CPU that failed.
        text = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "memory: you tried to allocate" not in text:
            raise
        return {**row, "skipped": f"does not fit in memory: {text.rpartition('memory: ')[2] or 'refused'}"}
    return {**row, "torch_threads": torch.get_num_threads(), **found}


def _run_in_worker(cases: list[Case], plan: Plan) -> Iterator[dict[str, Any]]:
    threads = str(cases[0].threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }
    order = {"plan": dataclasses.asdict(plan), "cases": [dataclasses.asdict(case) for case in cases]}
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(order))
            worker.stdin.close()
            for line in worker.stdout:
                yield json.loads(line)
        except BaseException:
            worker.kill()
            raise
    if worker.returncode > 0:  # below 0: a signal, which the caller reports
        raise FailedError(f"a benchmark failed, see above: {describe(dataclasses.asdict(cases[0]))} and what follows")


def work() -> None:
    """What a worker process does: reads a plan and cases from standard input, prints a row of JSON after each case."""
    order = json.load(sys.stdin)
    settings = Settings(**order["plan"].pop("settings"))
    plan = Plan(settings=settings, **order["plan"])
    cases = [Case(**case) for case in order["cases"]]
    results, sys.stdout = sys.stdout, sys.stderr  # others may print as they like
    if cases[0].device == "cpu":
        _limit_memory(plan.memory_gb)
    for case in cases:
        print(json.dumps(run_case(case, plan)), file=results, flush=True)


def _limit_memory(gigabytes: float | None) -> None:
    """Makes allocations beyond the budget fail here, before they make the machine kill something."""
    free = meminfo("/proc/meminfo", "MemAvailable")
    budget = int(gigabytes * 2**30) if gigabytes is not None else int(0.9 * free) if free is not None else None
    if budget is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (budget, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def run_and_write(
    name: str, folder: Path, plan: Plan, make_rows: Callable[[], list[dict[str, Any]]], notes: list[str]
) -> dict[str, Any]:
    """Runs a benchmark and writes FOLDER/NAME.json: command, time, hardware, settings, notes and rows."""
    folder.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    before = hardware()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows = make_rows()
    skipped = [f"SKIPPED {describe(row)}: {row['skipped']}" for row in rows if "skipped" in row]
    for row in rows:
        if "rounds_skipped" in row:
            skipped.append(f"SKIPPED {describe(row)} in {row['rounds_skipped']} of {plan.rounds} rounds")
    result = {
        "name": name,
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "started": started,
        "hardware": before,
        "settings": {**dataclasses.asdict(plan.settings), "rounds": plan.rounds},
        "notes": [*notes, *skipped],
        "rows": rows,
    }
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
