"""Finding runs by path or as `pretrained:NAME`, and publishing a run as one of the repository's pretrained runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from ram_gym import GlimpseConfig

from .run_folder import RunError, RunFolder

PRETRAINED = "pretrained:"
COMPUTED_IN_PRECISION = ("glimpse_network.", "core.")
"""First parts of the names of RAM's weights that compute in `RamConfig.precision`. The location network's hidden layer
computes in it too, and is stored in float32.
"""
PRETRAINED_FOLDER = Path(__file__).parents[2] / "pretrained"


def find_run(name: str | os.PathLike[str]) -> RunFolder:
    """A run, by the path of its folder, or by `pretrained:NAME` if it is one of the repository's.

    Raises:
        RunError: there is no pretrained run of that name.
    """
    text = os.fspath(name)
    if not text.startswith(PRETRAINED):
        return RunFolder(text)
    wanted_name = text.removeprefix(PRETRAINED)
    pretrained_names = sorted(path.parent.name for path in PRETRAINED_FOLDER.glob("*/config.json"))
    if wanted_name not in pretrained_names:
        names = ", ".join(PRETRAINED + name for name in pretrained_names) or "none, in this checkout"
        raise RunError(f"pretrained runs are {names}, got {text!r}")
    return RunFolder(PRETRAINED_FOLDER / wanted_name)


def publish(folder: RunFolder, name: str) -> Path:
    """Copies a finished run's configuration, best weights and results to pretrained/, for use as `pretrained:NAME`.

    The copy leaves out the path of the data folder. Matrices that a run computes with in bfloat16 are stored in
    bfloat16: the answers are the same, and the file is half as large.

    Returns:
        The new folder.

    Raises:
        RunError: there is no such run, its best checkpoint is missing or damaged, or the name is taken or has
            other characters than letters, digits, "-" and "_".
    """
    target = PRETRAINED_FOLDER / name
    if not re.fullmatch(r"[\w-]+", name):
        raise RunError(f"name must be letters, digits, '-' and '_', got {name!r}")
    if target.exists():
        raise RunError(f"{target} exists already: remove it first, or choose another name")
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
