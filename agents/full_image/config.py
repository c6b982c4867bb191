"""FullImageConfig, the training config of networks that see the whole canvas, and the presets of each task."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, cast

import tyro
from annotated_types import MaxLen, MinLen

from ram_gym import GlimpseConfig

from ..training.config import NativeConfig, preset_fields
from ..training.schema import Units

Network = Literal["cnn", "mlp"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullImageConfig(NativeConfig):
    """Training config of a whole-image network. With the package versions it determines every number of the run.

    Raises:
        ValueError: a field has a wrong type or value; the message names the field, what it must be and what came.
    """

    network: Annotated[Network, tyro.conf.Suppress] = "cnn"
    """Convolutional, or fully connected."""
    channels: Annotated[tuple[Units, ...], MinLen(1)] = (16, 32, 64, 128)
    """cnn: channels of each block of 3x3 convolution, batch normalization and ReLU. Max-pooling halves width and height
    between blocks; the average over all pixels follows the last."""
    hidden_sizes: Annotated[tuple[Units, ...], MaxLen(64)] = (256, 256)
    """mlp: units of each hidden layer; the default is the paper's fully connected baseline."""

    @property
    def agent(self) -> str:
        """Name of the agent: that of its network."""
        return self.network

    def __post_init__(self) -> None:
        super().__post_init__()
        max_blocks = self.env_config.canvas_size.bit_length()
        if len(self.channels) > max_blocks:
            raise ValueError(f"channels must be 1 to {max_blocks} numbers for this canvas, got {len(self.channels)}")

    @property
    def training_env_config(self) -> GlimpseConfig:
        """`env_config` with the cheapest glimpses, which these networks do not use; the scenes are the same."""
        return self.env_config.replace(num_glimpses=1, num_scales=1, patch_size=1)


_CNN_SMALL = {"epochs": 20, "learning_rate": 5e-3, "weight_decay": 0.05}
_CNN_LARGE = {**_CNN_SMALL, "channels": (16, 32, 64, 128, 128)}
_MLP = {"epochs": 30, "learning_rate": 1e-3, "weight_decay": 0.1}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cnn": {
        "digits": {**_CNN_SMALL, "epochs": 30, "batch_size": 64},
        "mnist-28": _CNN_SMALL,
        "translated-60": _CNN_LARGE,
        "cluttered-60": _CNN_LARGE,
        "cluttered-100": _CNN_LARGE,
        "cluttered-100x8": _CNN_LARGE,
    },
    "mlp": {
        "digits": {**_MLP, "epochs": 60, "batch_size": 64},
        "mnist-28": _MLP,
        "translated-60": {**_MLP, "epochs": 60},
        "cluttered-60": {**_MLP, "epochs": 60},
        "cluttered-100": {**_MLP, "epochs": 60},
        "cluttered-100x8": {**_MLP, "epochs": 60},
    },
}
"""Presets: network -> task -> fields of FullImageConfig and their values."""

CONFIG = FullImageConfig


def preset(task: str, agent: str) -> FullImageConfig:
    """The training config with the defaults of `train AGENT --task TASK`; see `agents.registry.Agent`."""
    network = cast(Network, agent)
    return FullImageConfig(network=network, task=task, **preset_fields(PRESETS[network], task))
