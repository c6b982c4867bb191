"""The environments that runs train and are measured on."""

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


def check_device(device: str) -> None:
    """Refuses a device that PyTorch cannot use here.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def find_data_root(env_config: GlimpseConfig, given: str | None) -> str | None:
    """Where to read the images of a stored run, as `TrainConfig.moved` takes it.

    The folder given, else the run's own if it holds them, else None. The run may be somebody else's. So nothing is made
    or downloaded in the folder that it names.

    Args:
        env_config: the run's environment.
        given: what the user asks for.
    """
    stored = env_config.data_root
    if given is not None or stored is None or has_dataset(env_config.dataset, stored):
        return given or stored
    say(f"The run's data folder, {stored}, has no {env_config.dataset} here: using your own, as without --data-root")
    return None


def make_env(
    setting: GlimpseConfig, device: str, num_envs: int | None = None, images: np.ndarray | None = None
) -> GlimpseVectorEnv:
    """The vector environment that runs train and are evaluated on, with tensors on a device.

    Args:
        setting: its configuration.
        device: where its tensors are.
        num_envs: lanes; None is for evaluation: as many as there are images, at most `EVALUATION_LANES`.
        images: shown instead of the setting's own, uint8 (M * k, C, H, W); entry i has the label of image i modulo M.

    Raises:
        ValueError: the device cannot be used.
    """
    check_device(device)
    data = load_dataset(setting)
    shown = None if images is None else data._replace(images=images, labels=np.resize(data.labels, len(images)))
    return GlimpseVectorEnv(
        min(len(data.images), EVALUATION_LANES) if num_envs is None else num_envs,
        setting,
        dataset=shown,
        device=device,
        output="torch",
        autoreset_mode="Disabled",
    )


def make_blank_env(config: TrainConfig, data: Data, output: Literal["torch", "numpy"] = "torch") -> GlimpseVectorEnv:
    """An environment of one black image, with the spaces of a run's own: to make its network without its data."""
    check_device(config.device)
    image = np.zeros((1, data["num_channels"], 1, 1), np.uint8)
    dataset = Dataset(image, np.zeros(1, np.int64), data["num_classes"])
    env_config = config.env_config.replace(num_clutter=0)
    return GlimpseVectorEnv(
        1, env_config, dataset=dataset, device=config.device, output=output, autoreset_mode="SameStep"
    )


def describe_environment(task: str, env_config: GlimpseConfig) -> str:
    """The task, and whatever of its environment is different here: "cluttered-60, overwrite, 5 glimpses".

    Args:
        task: name of the task.
        env_config: the environment; where its data lies and which split it shows is not described.
    """
    usual = get_task(task).config.to_dict()
    parts = [task]
    for name, value in env_config.to_dict().items():
        if name in ("data_root", "split") or value == usual[name]:
            continue
        if name == "dataset" and env_config.data_path is not None:
            value = printable(env_config.data_path.name)
        words = name.removeprefix("num_").replace("_", " ")
        if name.startswith("num_"):
            parts.append(f"{value} {words.removesuffix('s') if value == 1 else words}")
        else:
            parts.append(value if isinstance(value, str) else f"{words} {value}")
    return ", ".join(parts)
