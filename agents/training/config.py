"""TrainConfig: what the configurations of all gradient-trained agents have in common."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

from ram_gym import GlimpseConfig, get_task

MAX_SEED = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: what it trains on, how long, and the optimizer.

    Raises:
        ValueError: a field is out of range; the message names the field, what it must be and what came.
    """

    lowest: ClassVar[dict[str, float]] = {
        "seed": 0,
        "epochs": 1,
        "batch_size": 1,
        "weight_decay": 0,
        "max_gradient_norm": 0,
        "distorted_copies": 0,
        "validate_every": 1,
        "checkpoint_minutes": 0,
    }

    task: str = "mnist-28"
    """Task to learn; see the README's table."""
    dataset: str | None = None
    """Name of the images, "fashion-mnist" for instance; None takes the task's."""
    composition: Literal["add", "overwrite"] = "add"
    """How the digit meets the clutter, see GlimpseConfig."""
    num_glimpses: int | None = None
    """Number of glimpses; None takes the task's."""
    data_root: str | None = None
    """Folder with the datasets; default: $RAM_GYM_DATA, else a per-user cache folder."""
    seed: int = 0
    """Seed of weights, scenes and whatever else is drawn."""
    device: str = "cpu"
    """PyTorch device, "cpu" or "cuda"."""
    epochs: int = 100
    """Passes over the training images; each pass draws new scenes."""
    batch_size: int = 256
    """Scenes in one update. What is left of a pass that it does not divide is dropped."""

    learning_rate: float = 2e-3
    """Adam's largest learning rate."""
    learning_rate_schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    """One-cycle rises over the first tenth and falls to 0 along a cosine; cosine only falls."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns that off."""

    distorted_copies: int = 0
    """Copies of each training image, turned, scaled, sheared, shifted and bent a little, each in its own way. A pass
    shows every image once, as it is or as one of its copies. 0 trains on the images as they are."""

    validate_every: int = 1
    """Epochs between evaluations on the validation split."""
    checkpoint_minutes: float = 2.0
    """A checkpoint is written with every evaluation, at least this often, and where training is stopped."""

    def __post_init__(self) -> None:
        get_task(self.task)
        for name, low in self.lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name, value in self.to_dict().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.seed >= MAX_SEED:
            raise ValueError(f"seed must be below {MAX_SEED}, got {self.seed}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    def environment(self) -> GlimpseConfig:
        """The environment that the run trains on, training split."""
        overrides: dict[str, Any] = {"composition": self.composition, "data_root": self.data_root}
        if self.dataset is not None:
            overrides["dataset"] = self.dataset
        if self.num_glimpses is not None:
            overrides["num_glimpses"] = self.num_glimpses
        return get_task(self.task).config.replace(**overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict that `json.dumps` takes and the class gives back from keyword arguments."""
        return dataclasses.asdict(self)


def learning_rate(config: TrainConfig, done: float) -> float:
    """The learning rate when a share `done` in [0, 1] of all updates is done."""
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    rise = 0.1 if config.learning_rate_schedule == "one-cycle" else 0.0
    if done < rise:
        return config.learning_rate * (0.04 + 0.96 * done / rise)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
