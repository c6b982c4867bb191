"""Hardware and package versions of a run, on which its numbers depend, and the number of threads."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ram_gym

PACKAGES = ("gymnasium", "numpy", "torch", "torchvision")

FEW_LANES = 256
"""Updates of fewer lanes run on one thread: as fast as on several, and much faster on a busy machine."""

_threads = torch.get_num_threads()  # PyTorch's default, later the last choice of `choose_threads`
_most_threads = _threads


def choose_threads(lanes: int) -> None:
    """Makes PyTorch compute on one thread if updates are small, else on its default number of threads.

    Threads wait for each other after each operation, and a small operation is done before a second thread has started.
    A number that the user chose, by OMP_NUM_THREADS, MKL_NUM_THREADS or `torch.set_num_threads`, is kept.

    Args:
        lanes: episodes that one update plays in this process.
    """
    global _threads
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS") or torch.get_num_threads() != _threads:
        return
    _threads = 1 if lanes < FEW_LANES else _most_threads
    torch.set_num_threads(_threads)


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
