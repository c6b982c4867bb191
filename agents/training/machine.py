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
