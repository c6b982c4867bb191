"""TrainConfig, the training config of every agent, and NativeConfig, that of the agents training/loop.py trains."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from annotated_types import Interval
from typing_extensions import TypedDict

from ram_gym import GlimpseConfig, get_task

from .schema import Count, NotNegative, Positive, Seed, check_fields, check_stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EnvironmentOptions(GlimpseConfig):
    # The fields of GlimpseConfig that are options of `train`: all but the split.
    __doc__ = GlimpseConfig.__doc__
    split: Annotated[Literal["train"], tyro.conf.Suppress] = "train"


class _Sizes(TypedDict):
    # Upper limits of an environment that is trained on: larger ones do not fit into memory.
    image_size: Annotated[int, Interval(ge=1, le=4096)] | None
    canvas_size: Annotated[int, Interval(ge=1, le=4096)]
    num_clutter: Annotated[int, Interval(ge=0, le=4096)]
    num_glimpses: Annotated[int, Interval(ge=1, le=4096)]
    patch_size: Annotated[int, Interval(ge=1, le=512)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ABC):
    """Training config of any agent: all fields that every agent shares, the environment config among them.

    All fields are checked against their annotations, see `agents.training.schema`.

    Raises:
        ValueError: a field has a wrong type or value; the message names the field, what it must be and what came.
    """

    added: ClassVar[dict[str, Any]] = {}
    """Fields that older stored runs lack, with the values that those runs had."""
    added_to_env_config: ClassVar[dict[str, Any]] = {"image_size": None}
    """The same for the fields of the environment config."""

    task: str = "mnist-28"
    """Task whose environment config and preset are the defaults; see the README's table."""
    env_config: Annotated[GlimpseConfig, tyro.conf.arg(constructor=_EnvironmentOptions)] = None  # type: ignore[assignment]
    """Environment config, with the training split; None takes the task's. Evaluation chooses its own split."""
    seed: Seed = 0
    """Seed of the weights, the scenes and all other random draws."""
    device: str = "cpu"
    """PyTorch device, "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        task_config = get_task(self.task).config
        if self.env_config is None:
            object.__setattr__(self, "env_config", task_config)
        elif isinstance(self.env_config, _EnvironmentOptions):
            object.__setattr__(self, "env_config", GlimpseConfig(**self.env_config.to_dict()))
        for name, value in check_fields(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        sizes = {name: getattr(self.env_config, name) for name in _Sizes.__annotations__}
        check_fields(_Sizes, sizes)
        if self.env_config.data_path is not None:  # the same wherever the run is read
            env_config = self.env_config.replace(dataset=str(self.env_config.data_path), data_root=None)
            object.__setattr__(self, "env_config", env_config)
        if self.env_config.split != "train":
            raise ValueError(f"env_config.split must be 'train', got {self.env_config.split!r}")

    @property
    @abstractmethod
    def agent(self) -> str:
        """Name of the agent, as `python -m agents train` takes it."""

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Number of epochs of the whole run."""

    shares_batches: ClassVar[bool] = False
    """Whether several processes can train one run together."""

    @abstractmethod
    def planned_fields(self) -> list[str]:
        """Names of the fields that make what an epoch does depend on the total number of epochs."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict for `json.dumps`; `from_dict` reverses it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """The configuration from what `to_dict` returned, also after `json.dumps` and `json.loads`.

        Raises:
            ValueError: a field is unknown, wrong, or missing and not added later; the message names it.
        """
        if isinstance(fields, dict):
            fields = {**cls.added, **fields}
            if isinstance(env_config := fields.get("env_config"), dict):
                fields["env_config"] = {**cls.added_to_env_config, **env_config}
        checked = check_stored(cls, fields)
        return cls(**{**checked, "env_config": GlimpseConfig(**checked["env_config"])})

    def moved(self, device: str | None, data_root: str | None) -> Self:
        """The same configuration on another device, with its images read from another folder.

        Args:
            device: PyTorch device; None keeps the configuration's.
            data_root: for a named dataset, the folder with the datasets; None is the default folder. For images read
                from a path, the new path; None keeps the path.
        """
        env_config = self.env_config
        if env_config.data_path is None:
            env_config = env_config.replace(data_root=data_root)
        elif data_root is not None:
            env_config = env_config.replace(dataset=data_root)
        return dataclasses.replace(self, device=device or self.device, env_config=env_config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeConfig(TrainConfig):
    """Training config of an agent that `agents.training.loop` trains: epochs, batches and the optimizer."""

    epochs: Annotated[int, Interval(ge=1, le=2**20)] = 100
    """Passes over the training images; each pass draws new scenes."""
    batch_size: Count = 256
    """Scenes in one update. The last, incomplete batch of a pass is dropped."""

    learning_rate: Positive = 2e-3
    """Adam's largest learning rate."""
    learning_rate_schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    """One-cycle rises over the first tenth and falls to 0 along a cosine; cosine only falls."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW)."""
    max_gradient_norm: NotNegative = 1.0
    """Gradients are scaled down to this norm; 0 turns that off."""

    distorted_copies: Annotated[int, Interval(ge=0, le=100)] = 0
    """Randomly distorted copies of each training image: rotated, scaled, sheared, shifted and bent a little. A pass
    shows each image once, undistorted or as one of its copies. 0 turns that off."""

    validate_every: Count = 1
    """Epochs between evaluations on the validation split."""
    checkpoint_minutes: NotNegative = 2.0
    """Longest time between two checkpoints. Each validation and each interrupt writes one too."""

    @property
    def training_env_config(self) -> GlimpseConfig:
        """Environment config that training plays; validation plays `env_config`."""
        return self.env_config

    @property
    def episodes_per_scene(self) -> int:
        """Episodes that an update plays on each scene."""
        return 1

    def planned_fields(self) -> list[str]:
        """Names of the fields that make what an epoch does depend on the total number of epochs."""
        return [] if self.learning_rate_schedule == "constant" else ["learning_rate_schedule"]


def nearest_task(task: str, candidates: Iterable[str]) -> str:
    """The candidate that is most like a task: the task itself; else one with the same number of scales, then one that
    also has clutter or also has none, then the one whose canvas size is nearest.

    Raises:
        ValueError: there is no such task.
    """
    target = get_task(task).config

    def distance(name: str) -> tuple[bool, bool, bool, int]:
        config = get_task(name).config
        scales, clutter = config.num_scales != target.num_scales, (config.num_clutter > 0) != (target.num_clutter > 0)
        return name != task, scales, clutter, abs(config.canvas_size - target.canvas_size)

    return min(candidates, key=distance)


def preset_fields(presets: dict[str, dict[str, Any]], task: str) -> dict[str, Any]:
    """The preset of a task, or of the nearest task that has one: fields and their values; see `nearest_task`."""
    return presets[nearest_task(task, presets)]


def learning_rate(config: NativeConfig, done: float) -> float:
    """The learning rate after a share `done`, in [0, 1], of all updates."""
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    rise = 0.1 if config.learning_rate_schedule == "one-cycle" else 0.0
    if done < rise:
        return config.learning_rate * (0.04 + 0.96 * done / rise)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
