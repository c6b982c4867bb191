"""Measure ram_gym and its agents on this machine, beside their peers, and write tables, plots and JSON."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from rich.console import Console

from agents.ram.config import preset
from benchmarks.cases import ROOT, Case, FailedError, Plan, run_and_write, run_cases
from benchmarks.plots import plot_growth
from benchmarks.report import show, write_tables
from benchmarks.timing import Settings
from benchmarks.training import PEER_BATCH
from ram_gym import TASKS

BATCHES = (1, 16, 256, 1024, 4096, 16_384, 65_536)
TRAINING_TASKS = ("mnist-28", "translated-60", "cluttered-60", "cluttered-100")
GPU_BATCHES = (1024, 4096)
"""A GPU trains these too."""
VECTOR_VARIANTS = ("NextStep torch", "NextStep numpy", "SameStep torch")
MOST_LANES_OF_PEERS = 1024
MOST_PROCESSES = 16
AP_GYM_TASKS = ("mnist-28", "digits")

GROWTH_TASK = "cluttered-60"
GROWTH_BATCH, GROWTH_BATCH_ON_GPU = 1024, 65_536
"""A GPU takes as long for a thousand lanes as for one: until its work fills it, the cost is that of starting it."""
GROWTH: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536),
    "canvas_size": (28, 40, 60, 80, 100, 140, 200),
    "num_clutter": (0, 1, 2, 4, 8, 16, 32, 64, 128),
    "num_scales": (1, 2, 3, 4, 5, 6),
}
"""What is changed, one at a time, in GROWTH_TASK with GROWTH_BATCH lanes (on a GPU GROWTH_BATCH_ON_GPU)."""
GROWTH_MEASURES = (
    ("stepping.vector", "NextStep torch"),
    ("stepping.sensor", "prepared"),
    ("stepping.scenes", ""),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, and where it is written."""

    task: tuple[str, ...] = ()
    """Tasks; default: all that the benchmark is about (growth has one of its own)."""
    batch: tuple[int, ...] = ()
    """Numbers of lanes; default: 1 to 65,536 (training: the preset's)."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads on the CPU."""
    device: tuple[str, ...] = ("cpu", "cuda")
    """PyTorch devices; "cuda" is skipped, and says so, where there is none."""
    quick: bool = False
    """A minute instead of an hour, on digits: to see that it works, not to measure."""
    out: Path | None = None
    """Folder for BENCHMARK.json, table.md and the plots; default: benchmarks/results, with --quick runs/benchmarks."""
    data_root: str | None = None
    """Folder with the datasets; default: $RAM_GYM_DATA, else a per-user cache folder."""
    memory_gb: float | None = None
    """Host memory in GiB that a measurement may take, else it is skipped; default: nine tenths of what is free."""
    repeats: int = 5
    """Timed repeats, of which the median and the spread are told."""
    seconds: float = 0.2
    """How long a repeat takes, about, and at least the warm-up before them."""
    rounds: int = 1
    """How often stepping, training and growth are measured, in fresh processes each time; medians are over the repeats
    of all rounds."""
    in_process: bool = False
    """Run here instead of in fresh processes, with the threads that this process has. For tests."""

    def __post_init__(self) -> None:
        numbers = {"batch": self.batch, "threads": self.threads, "repeats": (self.repeats,), "rounds": (self.rounds,)}
        for name, values in numbers.items():
            if any(value < 1 for value in values):
                raise ValueError(f"{name} must be at least 1, got {' '.join(map(str, values))}")
        for name, seconds in (("seconds", self.seconds), ("memory_gb", self.memory_gb)):
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be above 0, got {seconds}")
        for device in self.device:
            if re.fullmatch(r"cpu|cuda(:(0|[1-9]\d*))?", device) is None:
                raise ValueError(f"device must be cpu, cuda or cuda:NUMBER, got {device!r}")
        if self.in_process and self.rounds > 1:
            raise ValueError(f"rounds are of fresh processes: with in_process they must be 1, got {self.rounds}")
        if not self.threads or not self.device:
            raise ValueError("threads and device must name at least one each")
        for task in self.task:
            if task not in TASKS:
                raise ValueError(f"task must be among {', '.join(TASKS)}, got {task!r}")

    @property
    def folder(self) -> Path:
        """Where results are written."""
        return self.out or (ROOT / "runs" / "benchmarks" if self.quick else ROOT / "benchmarks" / "results")

    def plan(self) -> Plan:
        """What all cases share."""
        settings = Settings(2, 0.01, 0.0) if self.quick else Settings(self.repeats, self.seconds, self.seconds)
        root = self.data_root or os.environ.get("RAM_GYM_DATA")
        # Workers may run elsewhere.
        where = str(Path(root).absolute()) if root else None
        return Plan(settings, where, self.memory_gb, self.in_process, self.rounds)

    def tasks(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks to measure."""
        return self.task or (("digits",) if self.quick else default)

    def batches(self, default: tuple[int, ...] = BATCHES) -> tuple[int, ...]:
        """The batches to measure, rising."""
        return tuple(sorted(self.batch or ((1, 16) if self.quick else default)))


class Place(NamedTuple):
    """Where a case runs."""

    device: str
    threads: int


def places(options: Options) -> tuple[list[Place], list[str]]:
    """Where cases run, and notes on what is left out."""
    found, notes = [], []
    for device in options.device:
        if device.startswith("cuda") and int(device[5:] or 0) >= torch.cuda.device_count():
            notes.append(f"SKIPPED everything on {device}: no such GPU here")
        elif device.startswith("cuda"):
            found.append(Place(device, 1))
        else:
            found += [Place(device, threads) for threads in (options.threads[:1] if options.quick else options.threads)]
    if any(place.threads > (os.cpu_count() or 1) for place in found):
        notes.append(f"WARNING: more threads than the {os.cpu_count()} cores of this machine")
    return found, notes


def stepping_cases(options: Options, where: list[Place]) -> list[Case]:
    """Environment, sensor, scenes, peers and limit, by task, place and batch."""
    cases = []
    for task in options.tasks(tuple(TASKS)):
        for device, threads in where:
            on_cpu = device == "cpu"
            kinds = [("stepping.single", ""), ("peers.ap_gym_single", "")] if on_cpu else []
            cases += [Case(kind, task, 1, threads, device) for kind, _ in kinds if _is_wanted(kind, task)]
            for batch in options.batches():
                variants = [variant for variant in VECTOR_VARIANTS if on_cpu or "torch" in variant]
                kinds = [("stepping.vector", variant) for variant in variants]
                kinds += [("stepping.sensor", "prepared"), ("stepping.sensor", "fresh")]
                kinds += [("stepping.scenes", ""), ("stepping.limit", "")]
                if batch <= MOST_LANES_OF_PEERS:
                    kinds += [("peers.crops", "tensor bounds"), ("peers.crops", "python bounds")]
                if on_cpu and batch <= MOST_LANES_OF_PEERS:
                    kinds += [("peers.ap_gym_vector", ""), ("peers.gymnasium_vector", "sync")]
                if on_cpu and batch <= (2 if options.quick else MOST_PROCESSES):
                    kinds += [("peers.gymnasium_vector", "async")]
                cases += [Case(k, task, batch, threads, device, v) for k, v in kinds if _is_wanted(k, task)]
    return cases


def _is_wanted(measure: str, task: str) -> bool:
    return task in AP_GYM_TASKS or not measure.startswith("peers.ap_gym")


def stepping(options: Options) -> None:
    """Steps, glimpses and scenes per second: environment, sensor and scene making, ap_gym, Gymnasium, limit."""
    where, notes = places(options)
    notes.append("Actions were drawn before the clock started, for peers too.")
    _run("stepping", options, lambda plan: run_cases("stepping", stepping_cases(options, where), plan), notes)


def training(options: Options) -> None:
    """Images per second that the native agent learns from, what its matrix products allow, and a plain loop."""
    where, notes = places(options)
    notes.append("plain is a stand-in of our own for public training code, see benchmarks/README.md")
    cases = []
    for task in options.tasks(TRAINING_TASKS):
        for device, threads in where:
            on_gpu = device.startswith("cuda")
            batches = options.batch or ((preset(task).batch_size, *(GPU_BATCHES if on_gpu else ())))
            variants = ("", "graph", "bfloat16 graph") if on_gpu else ("", "bfloat16")
            cases += [Case("training.native", task, n, threads, device, v) for n in batches for v in variants]
            cases += [Case("training.limit", task, batches[0], threads, device, v) for v in ("", "bfloat16")]
            if not on_gpu:
                plain = ("as published", "quicker")
                cases += [Case("training.plain", task, PEER_BATCH, threads, device, variant) for variant in plain]
    _run("training", options, lambda plan: run_cases("training", cases, plan), notes)


def memory(options: Options) -> None:
    """Peak memory of the vector environment, per task and batch, each in a fresh process."""
    where, notes = places(options)
    where = list({place.device: place for place in where}.values())[:: -1 if options.quick else 1]
    cases = [
        Case("memory.peak", task, batch, threads, device)
        for task in options.tasks(tuple(TASKS))
        for device, threads in where
        for batch in options.batches()
    ]
    _run("memory", options, lambda plan: run_cases("memory", cases, plan, one_process_each=True), notes)


def growth(options: Options) -> None:
    """How cost grows with batch, canvas side, clutter and scales: a plot each."""
    where, notes = places(options)
    task, *others = options.tasks((GROWTH_TASK,))
    if others or options.batch:
        notes.append(f"WARNING: growth is drawn for one task, {task}, and with numbers of lanes of its own")
    points = []
    for device, threads in where:
        for sweep, values in GROWTH.items():
            for value in values[1:3] if options.quick else values:
                is_batch = sweep == "batch"
                lanes = GROWTH_BATCH if device == "cpu" else GROWTH_BATCH_ON_GPU
                batch = value if is_batch else 16 if options.quick else lanes
                overrides = {} if is_batch else {sweep: value}
                for measure, variant in GROWTH_MEASURES:
                    case = Case(measure, task, batch, threads, device, variant, overrides)
                    points.append((sweep, value, case))

    def run(plan: Plan) -> list[dict[str, Any]]:
        rows = run_cases("growth", [case for _, _, case in points], plan)
        return [{**row, "sweep": sweep, "value": value} for row, (sweep, value, _) in zip(rows, points, strict=True)]

    plot_growth(_run("growth", options, run, notes), options.folder)


def profile(options: Options) -> None:
    """Where an update of the native agent spends its time, recorded by torch.profiler."""
    where, notes = places(options)
    cases = [
        Case("training.profile", task, batch, threads, device)
        for task in options.tasks(TRAINING_TASKS)
        for device, threads in where
        for batch in options.batch or (preset(task).batch_size,)
    ]
    _run("profile", options, lambda plan: run_cases("profile", cases, plan), notes)


def run_all(options: Options) -> None:
    """All of them, one after the other."""
    for command in (stepping, training, memory, growth, profile):
        command(options)


COMMANDS = {
    "stepping": stepping,
    "training": training,
    "memory": memory,
    "growth": growth,
    "profile": profile,
    "all": run_all,
}


def _run(name: str, options: Options, make_rows: Any, notes: list[str]) -> dict[str, Any]:
    plan = options.plan()
    if plan.rounds > 1 and name in ("memory", "profile"):
        plan = dataclasses.replace(plan, rounds=1)
        notes.append("measured once: --rounds is for what has a rate")
    if options.quick:
        notes.append("--quick: these numbers show that it works, and are no measurement")
    result = run_and_write(name, options.folder, plan, lambda: make_rows(plan), notes)
    show(result)
    write_tables(options.folder)
    return result


def main(arguments: list[str]) -> None:
    """Runs one benchmark, or all.

    Raises:
        SystemExit: 2 for wrong arguments, 1 where a measurement failed, 130 where it was interrupted.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m benchmarks",
            description=__doc__,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (FailedError, ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        raise SystemExit(1 if isinstance(error, FailedError) else 2) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted.")
        raise SystemExit(130) from None
