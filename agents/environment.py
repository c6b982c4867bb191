"""The environments that runs train and are measured on."""

from __future__ import annotations

import torch

from ram_gym import GlimpseConfig, GlimpseVectorEnv, load_dataset

EVALUATION_LANES = 1000


def make_env(setting: GlimpseConfig, device: str, num_envs: int | None = None) -> GlimpseVectorEnv:
    """The vector environment that runs train and are evaluated on, with tensors on a device.

    Without `num_envs` it is for evaluation: as many lanes as there are images, at most `EVALUATION_LANES`.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if num_envs is None:
        images = load_dataset(setting.dataset, setting.split, setting.data_root).images
        num_envs = min(len(images), EVALUATION_LANES)
    return GlimpseVectorEnv(
        num_envs,
        setting,
        device=device,
        output="torch",
        autoreset_mode="Disabled",
    )
