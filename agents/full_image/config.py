"""FullImageConfig: all that defines a training run of a network on whole canvases, and the presets per task."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import tyro

from ram_gym import GlimpseConfig

from ..training.config import TrainConfig

Network = Literal["cnn", "mlp"]

NETWORKS: tuple[Network, ...] = ("cnn", "mlp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullImageConfig(TrainConfig):
    """One training run. Together with the package versions it determines every number of the run.

    Raises:
        ValueError: a field is out of range; the message names the field, what it must be and what came.
    """

    lowest: ClassVar[dict[str, float]] = {**TrainConfig.lowest}

    network: Annotated[Network, tyro.conf.Suppress] = "cnn"
    """Convolutional, or fully connected."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Of the cnn: channels of each block, a 3x3 convolution, batch normalization and ReLU; width and height are
    halved between blocks and averaged away after the last."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Of the mlp: units of each hidden layer; the default is the paper's fully connected baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {self.network!r}")
        for name in ("channels", "hidden_sizes"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)  # JSON has lists
            if not all(isinstance(size, int) and size >= 1 for size in sizes):
                raise ValueError(f"{name} must be integers of at least 1, got {sizes}")
        most = self.environment().canvas_size.bit_length()
        if not 1 <= len(self.channels) <= most:
            raise ValueError(f"channels must be 1 to {most} numbers for this canvas, got {len(self.channels)}")

    def training_environment(self) -> GlimpseConfig:
        """The same scenes as `environment()`, which do not depend on the sensor, with the cheapest sensor."""
        return self.environment().replace(num_glimpses=1, num_scales=1, patch_size=1)


_CNN_SMALL = {"epochs": 20, "learning_rate": 5e-3, "weight_decay": 0.05}
_CNN_LARGE = {**_CNN_SMALL, "channels": (16, 32, 64, 128, 128)}
_MLP = {"epochs": 30, "learning_rate": 1e-3, "weight_decay": 0.1}

PRESETS: dict[Network, dict[str, dict[str, Any]]] = {
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
"""What each task changes in FullImageConfig."""


def preset(network: Network, task: str) -> FullImageConfig:
    """The configuration that `python -m agents train NETWORK --task TASK` starts from.

    Raises:
        ValueError: there is no preset of that name.
    """
    if task not in PRESETS[network]:
        raise ValueError(f"task must be one of {', '.join(PRESETS[network])}, got {task!r}")
    return FullImageConfig(network=network, task=task, **PRESETS[network][task])
