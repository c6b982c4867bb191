"""Timing: warm-up kept apart from repeats, medians with their spread, and what they were measured on."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "gymnasium", "torchvision", "ap_gym")
TUNING = ("GOMP_", "KMP_", "OMP_", "MALLOC_", "GLIBC_TUNABLES", "PYTORCH_", "TORCH_", "LD_PRELOAD")
"""Environment variables that change how fast things are; results name those that were set."""
MOST_GROWTH = 10
"""A warm-up goes on with this many times as many passes at most: one that was quick by chance tells little."""
LEAST_REPEATS = 3
LONGEST_SECONDS = 20.0
"""A measurement whose repeats take longer than this in all stops at LEAST_REPEATS of them."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long is measured."""

    repeats: int = 5
    """Timed repeats."""
    seconds: float = 0.2
    """A repeat makes as many passes as took this long at the end of the warm-up, at least one; so it takes about as
    long."""
    warm_up_seconds: float = 0.2
    """Untimed passes before the repeats go on for this long at least, and until as many as a repeat has have taken as
    long as a repeat shall; at least two are made."""


def measure(
    run: Callable[[], object],
    work: float,
    unit: str,
    settings: Settings,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Times a function: untimed passes first, then repeats of as many passes each as fill `settings.seconds`.

    Args:
        run: one pass.
        work: how much is done in a pass, in `unit`.
        unit: what is counted, in the plural: "lane-steps".
        settings: how long to measure.
        synchronize: waits for the device; called before each reading of the clock that ends something.
        clock: seconds.

    Returns:
        `unit`; `work` and `passes` of a repeat; `warm_up`: its passes and seconds; `seconds`: median, min and max of a
        repeat and each of them in `all`; `rate`: units a second, work / seconds, of the median, slowest and fastest;
        `page_faults` of the process (minor ones) in a pass.
    """
    wait = synchronize or (lambda: None)
    start = end = clock()
    passes, warm_up_passes = 1, 0
    while True:
        begin = end
        for _ in range(passes):
            run()
        wait()
        end = clock()
        warm_up_passes += passes
        # Not told from a single pass: waiting for the device takes longer than many a pass does.
        enough = max(1, math.ceil(passes * settings.seconds / max(end - begin, 1e-9)))
        if warm_up_passes >= 2 and end - start >= settings.warm_up_seconds and passes >= enough:
            break
        passes = min(enough, MOST_GROWTH * passes)
    seconds: list[float] = []
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    while len(seconds) < settings.repeats:
        if len(seconds) >= LEAST_REPEATS and sum(seconds) > LONGEST_SECONDS:
            break
        begin = clock()
        for _ in range(passes):
            run()
        wait()
        seconds.append(clock() - begin)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {
        "unit": unit,
        "work": work * passes,
        "passes": passes,
        "warm_up": {"passes": warm_up_passes, "seconds": end - start},
        **_spread(seconds, work * passes),
        "page_faults": faults / (passes * len(seconds)),
    }


def _spread(seconds: list[float], work: float) -> dict[str, Any]:
    """`seconds` and `rate` of repeats that did as much work each."""
    spread = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    rate = {"median": work / spread["median"], "min": work / spread["max"], "max": work / spread["min"]}
    return {"seconds": {**spread, "all": seconds}, "rate": rate}


def pool(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of a case's rows from several rounds: the first, with the repeats of all.

    Two processes that run the same code differ, by where their arrays came to lie, and a machine's speed wanders over
    minutes: a median over rounds says more than one over repeats. Rounds that skipped the case do not count, and are
    told in `rounds_skipped`; where all did, it is the row of the last.
    """
    rated = [row for row in rows if "rate" in row]
    if not rated or len(rows) == 1:
        return rows[-1]
    work = rated[0]["work"]
    seconds = [second * work / row["work"] for row in rated for second in row["seconds"]["all"]]
    faults = statistics.mean(row["page_faults"] for row in rated)
    skipped = {"rounds_skipped": len(rows) - len(rated)} if len(rated) < len(rows) else {}
    return {**rated[0], **_spread(seconds, work), "page_faults": faults, **skipped}


def synchronizer(device: str) -> Callable[[], object] | None:
    """What waits for a device to be done, for `measure`; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return lambda: torch.cuda.synchronize(device)


def hardware() -> dict[str, Any]:
    """What is measured on: processor, caches, memory, GPUs, versions, and how busy the machine was before."""
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        gpus.append({"name": about.name, "memory_gb": round(about.total_memory / 2**30, 1)})
    versions = {"python": platform.python_version()} | ({"CUDA": str(torch.version.cuda)} if gpus else {})
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    memory = meminfo("/proc/meminfo", "MemTotal")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": caches(),
        "memory_gb": None if memory is None else round(memory / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(TUNING)},
        "load_average_before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit that is measured, "+" if code was changed since; None without Git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/*.py"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + "+" * bool(changed)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def caches() -> dict[str, int]:
    """Bytes of the first core's data caches by level: {"L1": ..., "L2": ..., "L3": ...}; empty where not known."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    return found


def meminfo(path: str, field: str) -> int | None:
    """Bytes of a field of a file of Linux's that has kB in it, such as VmHWM of /proc/self/status; None without it."""
    file = Path(path)
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None
