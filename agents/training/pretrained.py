"""Pretrained runs: those that the repository holds, as `pretrained:NAME`; finding runs by name, and publishing them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from ram_gym import GlimpseConfig

from .run_folder import RunError, RunFolder

PRETRAINED = "pretrained:"
COMPUTED_IN_PRECISION = ("glimpse_network.", "core.")
"""What of RAM's network computes in `RamConfig.precision`, but for the location network's hidden layer."""
PRETRAINED_FOLDER = Path(__file__).parents[2] / "pretrained"


def find_run(name: str | os.PathLike[str]) -> RunFolder:
    """A run by the path of its folder or, as `pretrained:NAME`, one of those that the repository holds.

    Raises:
        RunError: no run of that name is held.
    """
    text = os.fspath(name)
    if not text.startswith(PRETRAINED):
        return RunFolder(text)
    wanted = text.removeprefix(PRETRAINED)
    held = sorted(path.parent.name for path in PRETRAINED_FOLDER.glob("*/config.json"))
    if wanted not in held:
        names = ", ".join(PRETRAINED + each for each in held) or "none, in this checkout"
        raise RunError(f"pretrained runs are {names}, got {text!r}")
    return RunFolder(PRETRAINED_FOLDER / wanted)


def publish(folder: RunFolder, name: str) -> Path:
    """Copies a finished run's configuration, best weights and results to where `pretrained:NAME` finds them.

    The folder that its data lay in is left out. Matrices that a run computes with in bfloat16 are stored so: its
    answers are the same, and the file is half as large.

    Returns:
        The new folder.

    Raises:
        RunError: there is no such run, its best checkpoint is missing or damaged, or the name is taken or not plain.
    """
    target = PRETRAINED_FOLDER / name
    if not re.fullmatch(r"[\w-]+", name):
        raise RunError(f"name must be letters, digits, '-' and '_', got {name!r}")
    if target.exists():
        raise RunError(f"{target} is there already: remove it first, or choose another name")
    about = folder.read_about()
    weights, header = folder.read_tensors("best.safetensors")
    results = folder.read_results()
    if about["config"].get("precision") == "bfloat16":
        weights |= {
            key: value.to(torch.bfloat16)
            for key, value in weights.items()
            if key.startswith(COMPUTED_IN_PRECISION) and value.ndim == 2
        }
    target.mkdir(parents=True)
    copy = RunFolder(target)
    env_config = {**about["config"]["env_config"], "data_root": None}
    path = GlimpseConfig(dataset=env_config["dataset"]).data_path
    if path is not None:
        env_config["dataset"] = path.name
    copy.write_json("config.json", {**about, "config": {**about["config"], "env_config": env_config}})
    copy.write_tensors("best.safetensors", weights, header)
    copy.write_json("results.json", results)
    return target
