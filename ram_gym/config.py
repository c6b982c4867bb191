"""GlimpseConfig: everything that defines a glimpse environment, as one validated, JSON-able value."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from ram_gym.arguments import as_integer
from ram_gym.sources import NAMES

Split = Literal["train", "validation", "test"]
Composition = Literal["add", "overwrite"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COMPOSITIONS: tuple[Composition, ...] = ("add", "overwrite")

EVALUATION_SCENE_SEED = 2014
"""The published scene seed: every validation and test scene is drawn with it unless another one is asked for."""

MAX_SCALES = 64
"""More scales than any canvas has use for."""

CUSTOM_DATASET = "custom"
"""What `GlimpseConfig.dataset` says when the images came from the caller and not from a named dataset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlimpseConfig:
    """What one glimpse environment is: its images, its scenes, its sensor and its episode length.

    Sizes and counts are ints of at least 1, but for `num_clutter`, of at least 0, and `scale_factor`, of at least 2.

    Args:
        dataset: name of the dataset, "digits", "mnist", "fashion-mnist", "kmnist", "cifar10" or "svhn"; or the path of
            a folder with one folder of images per class, or of an .npz file, see `load_dataset` ("custom" for the
            caller's own arrays).
        image_size: side in pixels that images are resized to, both height and width; None: images stay as they are.
        data_root: folder with the named datasets as torchvision lays them out; None: $RAM_GYM_DATA, else a per-user
            cache folder.
        split: which images are shown: "train", "validation" (the last 10,000 training images of a named dataset) or
            "test".
        canvas_size: side S of the square canvas in pixels; at least the height and the width of the images.
        num_clutter: number of clutter pieces: crops of other images of the same split at random places.
        clutter_size: side of a clutter piece in pixels; at most the height and the width of the images.
        composition: how the digit meets the clutter: "add" sums and clips at 255, "overwrite" lets the digit's box
            replace it.
        num_glimpses: number T of glimpses; an episode has exactly T steps, of which the last one answers.
        patch_size: side P in pixels of the finest patch, and of every patch after pooling.
        num_scales: number K of patches around each location; 255 * scale_factor^(2K - 2), the largest sum of pixels,
            must be below 2^24, which float32 holds exactly: at most 9 patches with factor 2, 6 with 3, 5 with 4.
        scale_factor: each patch is this many times as wide as the one before.
        scene_seed: seed of placement and clutter, in [0, 2^63). None: on "train" a fresh one each episode, else
            EVALUATION_SCENE_SEED.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field is out of range; the message names the field, what it must be and what came.

    Example:
        >>> GlimpseConfig(canvas_size=60, num_clutter=4).canvas_size
        60
    """

    dataset: str = "mnist"
    data_root: str | None = None
    split: Split = "train"
    canvas_size: int = 28
    num_clutter: int = 0
    clutter_size: int = 8
    composition: Composition = "add"
    num_glimpses: int = 6
    patch_size: int = 8
    num_scales: int = 1
    scale_factor: int = 2
    scene_seed: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if name in ("scene_seed", "image_size") and value is None:
                continue
            number = as_integer(value)
            if number is None:
                raise TypeError(f"{name} must be an int, got {value!r}")
            object.__setattr__(self, name, number)
            if number < low:
                raise ValueError(f"{name} must be at least {low}, got {number}")
        if not isinstance(self.dataset, str | os.PathLike):
            raise TypeError(f"dataset must be a name or a path (str), got {type(self.dataset).__name__}")
        object.__setattr__(self, "dataset", os.fspath(self.dataset))
        if self.data_root is not None:
            if not isinstance(self.data_root, str | os.PathLike):
                raise TypeError(f"data_root must be a folder's path or None, got {self.data_root!r}")
            object.__setattr__(self, "data_root", os.fspath(self.data_root))
        for name in ("split", "composition"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str, got {getattr(self, name)!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.composition not in COMPOSITIONS:
            raise ValueError(f"composition must be one of {', '.join(COMPOSITIONS)}, got {self.composition!r}")
        if self.scene_seed is not None and self.scene_seed >= 2**63:
            raise ValueError(f"scene_seed must be below 2**63, got {self.scene_seed}")
        if self.num_scales > MAX_SCALES:
            raise ValueError(f"num_scales must be at most {MAX_SCALES}, got {self.num_scales}")
        if 255 * self.block_side(self.num_scales - 1) ** 2 >= 2**24:
            raise ValueError(
                f"num_scales {self.num_scales} with scale_factor {self.scale_factor} sums more pixels than float32 "
                "holds exactly; use fewer scales or a smaller factor"
            )

    @property
    def data_path(self) -> Path | None:
        """The absolute path of the folder or file that the images are read from; None for a named dataset."""
        if self.dataset in (CUSTOM_DATASET, *NAMES):
            return None
        return Path(self.dataset).expanduser().absolute()

    def block_side(self, scale: int) -> int:
        """Side in pixels of the square that one value of a patch at `scale` averages."""
        return self.scale_factor**scale

    def patch_side(self, scale: int) -> int:
        """Side in canvas pixels of the patch at `scale`."""
        return self.patch_size * self.block_side(scale)

    @property
    def fixed_scene_seed(self) -> int | None:
        """The scene seed that every episode uses, or None where each episode draws a fresh one."""
        if self.scene_seed is not None or self.split == "train":
            return self.scene_seed
        return EVALUATION_SCENE_SEED

    def replace(self, **overrides: Any) -> GlimpseConfig:
        """A copy with some fields changed.

        Raises:
            TypeError: an override is no field; the message begins like Python's own, which some libraries look for, and
                lists the fields.
        """
        names = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise TypeError(
                f"got an unexpected keyword argument {', '.join(map(repr, unknown))}; "
                f"the fields of GlimpseConfig are {', '.join(names)}"
            )
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict that `json.dumps` takes and `GlimpseConfig(**fields)` gives back."""
        return dataclasses.asdict(self)


_LOWEST = {
    "canvas_size": 1,
    "num_clutter": 0,
    "clutter_size": 1,
    "num_glimpses": 1,
    "patch_size": 1,
    "num_scales": 1,
    "scale_factor": 2,
    "scene_seed": 0,
    "image_size": 1,
}
