"""The environments of runs, for training and evaluation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ram_gym import Dataset, GlimpseConfig, GlimpseVectorEnv, get_task, has_dataset, load_dataset
from ram_gym.files import printable

from ..terminal import say
from .config import TrainConfig
from .fingerprint import Data

EVALUATION_LANES = 1000
"""Most lanes of an environment for evaluation."""


def check_device(device: str) -> None:
    """Checks that PyTorch can use a device.

    Raises:
        ValueError: PyTorch cannot use it; the message says why.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def find_data_root(env_config: GlimpseConfig, data_root: str | None) -> str | None:
    """The folder with the images of a stored run, for `TrainConfig.moved`.

    It is the folder that the user gives, else that of the run if the dataset is in it, else None. The run may come from
    another machine, so nothing is created or downloaded in its folder.

    Args:
        env_config: environment config of the run.
        data_root: the folder that the user gives, if any.
    """
    stored = env_config.data_root
    if data_root is not None or stored is None or has_dataset(env_config.dataset, stored):
        return data_root or stored
    say(f"The run's data folder, {stored}, has no {env_config.dataset} here: using your default data folder")
    return None


def make_env(
    env_config: GlimpseConfig, device: str, num_envs: int | None = None, images: np.ndarray | None = None
) -> GlimpseVectorEnv:
    """The vector environment for training and evaluation, with tensors on a device.

    Args:
        env_config: its environment config.
        device: PyTorch device of its tensors.
        num_envs: number of lanes; None is for evaluation: the number of images, at most `EVALUATION_LANES`.
        images: images to show instead of the dataset's M images, uint8 (M * k, C, H, W); entry i has the label of image
            i modulo M.

    Raises:
        ValueError: the device cannot be used.
    """
    check_device(device)
    data = load_dataset(env_config)
    replaced = None if images is None else data._replace(images=images, labels=np.resize(data.labels, len(images)))
    return GlimpseVectorEnv(
        min(len(data.images), EVALUATION_LANES) if num_envs is None else num_envs,
        env_config,
        dataset=replaced,
        device=device,
        output="torch",
        autoreset_mode="Disabled",
    )


def make_blank_env(config: TrainConfig, data: Data, output: Literal["torch", "numpy"] = "torch") -> GlimpseVectorEnv:
    """An environment of one black image, with the spaces of a run's environment: builds its network without data."""
    check_device(config.device)
    image = np.zeros((1, data["num_channels"], 1, 1), np.uint8)
    dataset = Dataset(image, np.zeros(1, np.int64), data["num_classes"])
    env_config = config.env_config.replace(num_clutter=0)
    return GlimpseVectorEnv(
        1, env_config, dataset=dataset, device=config.device, output=output, autoreset_mode="SameStep"
    )


def describe_environment(task: str, env_config: GlimpseConfig) -> str:
    """The task and the fields in which an environment config differs from it: "cluttered-60, overwrite, 5 glimpses".

    Args:
        task: name of the task.
        env_config: the environment config; data folder and split are left out.
    """
    task_fields = get_task(task).config.to_dict()
    parts = [task]
    for name, value in env_config.to_dict().items():
        if name in ("data_root", "split") or value == task_fields[name]:
            continue
        if name == "dataset" and env_config.data_path is not None:
            value = printable(env_config.data_path.name)
        words = name.removeprefix("num_").replace("_", " ")
        if name.startswith("num_"):
            parts.append(f"{value} {words.removesuffix('s') if value == 1 else words}")
        else:
            parts.append(value if isinstance(value, str) else f"{words} {value}")
    return ", ".join(parts)
