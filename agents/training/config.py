"""TrainConfig, the configuration of any agent, and NativeConfig, of the agents that training/loop.py trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from annotated_types import Interval
from typing_extensions import TypedDict

from ram_gym import GlimpseConfig, get_task

from .schema import Count, NotNegative, Positive, Seed, check_fields, check_stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EnvironmentOptions(GlimpseConfig):
    # What the command line offers of an environment config: all but the split, which each command chooses.
    __doc__ = GlimpseConfig.__doc__
    split: Annotated[Literal["train"], tyro.conf.Suppress] = "train"


class _Sizes(TypedDict):
    # How large an environment can be that is trained in: larger ones fit into no memory.
    image_size: Annotated[int, Interval(ge=1, le=4096)] | None
    canvas_size: Annotated[int, Interval(ge=1, le=4096)]
    num_clutter: Annotated[int, Interval(ge=0, le=4096)]
    num_glimpses: Annotated[int, Interval(ge=1, le=4096)]
    patch_size: Annotated[int, Interval(ge=1, le=512)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of any agent: where it learns, and what every training needs.

    All fields are checked against their annotations, see `agents.training.schema`.

    Raises:
        ValueError: a field has a wrong type or value; the message names the field, what it must be and what came.
    """

    added: ClassVar[dict[str, Any]] = {}
    """Fields that stored runs may lack, since they came later, and what such a run did."""
    added_to_env_config: ClassVar[dict[str, Any]] = {"image_size": None}
    """The same of the environment's fields."""

    task: str = "mnist-28"
    """Task whose environment and settings the run began from; see the README's table."""
    env_config: Annotated[GlimpseConfig, tyro.conf.arg(constructor=_EnvironmentOptions)] = None  # type: ignore[assignment]
    """The environment, training split; None takes the task's. Whoever evaluates chooses the split."""
    seed: Seed = 0
    """Seed of weights, scenes and whatever else is drawn."""
    device: str = "cpu"
    """PyTorch device, "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        usual = get_task(self.task).config
        if self.env_config is None:
            object.__setattr__(self, "env_config", usual)
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
    def agent(self) -> str:
        """Name of the agent, as `python -m agents train` takes it."""
        raise NotImplementedError

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        raise NotImplementedError

    shares_batches: ClassVar[bool] = False
    """Whether several processes can train it together."""

    def planned_fields(self) -> list[str]:
        """Names of the fields by which an epoch depends on the number of epochs."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict that `json.dumps` takes and `from_dict` gives back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """The configuration that `to_dict` gave, after a way through JSON.

        Raises:
            ValueError: a field is missing and was not added later, or unknown, or wrong; the message names it.
        """
        if isinstance(fields, dict):
            fields = {**cls.added, **fields}
            if isinstance(env_config := fields.get("env_config"), dict):
                fields["env_config"] = {**cls.added_to_env_config, **env_config}
        checked = check_stored(cls, fields)
        return cls(**{**checked, "env_config": GlimpseConfig(**checked["env_config"])})

    def moved(self, device: str | None, data_root: str | None) -> Self:
        """The same on another device, where given, and with its images read from another place.

        Args:
            device: None keeps it.
            data_root: the folder of the named datasets, None for the user's own; where the images are read from a path,
                that path now, None for the same.
        """
        env_config = self.env_config
        if env_config.data_path is None:
            env_config = env_config.replace(data_root=data_root)
        elif data_root is not None:
            env_config = env_config.replace(dataset=data_root)
        return dataclasses.replace(self, device=device or self.device, env_config=env_config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeConfig(TrainConfig):
    """The configuration of an agent that `agents.training.loop` trains: passes, batches and the optimizer."""

    epochs: Annotated[int, Interval(ge=1, le=2**20)] = 100
    """Passes over the training images; each pass draws new scenes."""
    batch_size: Count = 256
    """Scenes in one update. What is left of a pass that it does not divide is dropped."""

    learning_rate: Positive = 2e-3
    """Adam's largest learning rate."""
    learning_rate_schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    """One-cycle rises over the first tenth and falls to 0 along a cosine; cosine only falls."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW)."""
    max_gradient_norm: NotNegative = 1.0
    """Gradients are scaled down to this norm; 0 turns that off."""

    distorted_copies: Annotated[int, Interval(ge=0, le=100)] = 0
    """Copies of each training image, turned, scaled, sheared, shifted and bent a little, each in its own way. A pass
    shows every image once, as it is or as one of its copies. 0 trains on the images as they are."""

    validate_every: Count = 1
    """Epochs between evaluations on the validation split."""
    checkpoint_minutes: NotNegative = 2.0
    """A checkpoint is written with every evaluation, at least this often, and where training is stopped."""

    @property
    def training_env_config(self) -> GlimpseConfig:
        """The environment that an update plays in."""
        return self.env_config

    @property
    def episodes_per_scene(self) -> int:
        """Episodes that an update plays of each scene."""
        return 1

    def planned_fields(self) -> list[str]:
        """Names of the fields by which an epoch depends on the number of epochs."""
        return [] if self.learning_rate_schedule == "constant" else ["learning_rate_schedule"]


def nearest_task(task: str, known: Iterable[str]) -> str:
    """The known task whose settings suit a task best: itself, or else one with as many scales, clutter where it has
    clutter, and a canvas of nearly its size, in this order.

    Raises:
        ValueError: there is no such task.
    """
    wanted = get_task(task).config

    def distance(name: str) -> tuple[bool, bool, bool, int]:
        config = get_task(name).config
        scales, clutter = config.num_scales != wanted.num_scales, (config.num_clutter > 0) != (wanted.num_clutter > 0)
        return name != task, scales, clutter, abs(config.canvas_size - wanted.canvas_size)

    return min(known, key=distance)


def preset_fields(presets: dict[str, dict[str, Any]], task: str) -> dict[str, Any]:
    """What a task, or the nearest one that has a preset, changes in a configuration; see `nearest_task`."""
    return presets[nearest_task(task, presets)]


def learning_rate(config: NativeConfig, done: float) -> float:
    """The learning rate when a share `done` in [0, 1] of all updates is done."""
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    rise = 0.1 if config.learning_rate_schedule == "one-cycle" else 0.0
    if done < rise:
        return config.learning_rate * (0.04 + 0.96 * done / rise)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
