"""What a run is trained on and by: numbers depend on the processor, its threads and the packages' versions."""

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
"""Updates of fewer lanes are as quick on one thread as on more, and far quicker where other processes are busy."""

_threads = torch.get_num_threads()  # PyTorch's own choice, then whatever `choose_threads` chose last
_most_threads = _threads


def choose_threads(lanes: int) -> None:
    """Lets PyTorch compute on one thread where updates are small, else on as many as it chose itself.

    Threads wait for each other after each operation: a small one is over before the second thread is awake, and another
    process may keep that from running. A number that the user chose, by OMP_NUM_THREADS, MKL_NUM_THREADS or
    `torch.set_num_threads`, stays.

    Args:
        lanes: episodes that one update plays on this process.
    """
    global _threads
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS") or torch.get_num_threads() != _threads:
        return
    _threads = 1 if lanes < FEW_LANES else _most_threads
    torch.set_num_threads(_threads)


def circumstances(packages: tuple[str, ...] = (), ranks: int = 1) -> dict[str, Any]:
    """Versions and hardware of this process, for config.json.

    Args:
        packages: named beside `PACKAGES`.
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
