"""Hardware and package versions of a run, on which its numbers depend, and the number of threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ram_gym

PACKAGES = ("gymnasium", "numpy", "torch", "torchvision")

FEW_LANES = 256
"""Updates of fewer lanes run on one thread: as fast as on several, and much faster on a busy machine."""


@contextmanager
def chosen_threads(lanes: int) -> Iterator[None]:
    """While inside, PyTorch computes on one thread if updates are small.

    Threads wait for each other after each operation: a small one is over before the second thread is awake, and another
    process may keep that from running. A number that the user chose by OMP_NUM_THREADS or MKL_NUM_THREADS stays.

    Args:
        lanes: episodes that one update plays on this process.
    """
    threads = torch.get_num_threads()
    is_chosen = bool(os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"))
    if is_chosen or lanes >= FEW_LANES:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def circumstances(packages: tuple[str, ...] = (), ranks: int = 1) -> dict[str, Any]:
    """Versions and hardware of this process, for config.json.

    Args:
        packages: further packages, besides `PACKAGES`.
        ranks: the number of processes that train together.
    """
    versions = {"python": platform.python_version(), "ram_gym": ram_gym.__version__}
    versions |= {package: metadata.version(package) for package in (*PACKAGES, *packages)}
    return {"versions": versions, "hardware": {**_hardware(), "ranks": ranks}}


def _hardware() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}
