"""Labelled images as arrays: what a dataset is, and how the caller's own arrays become one."""

from __future__ import annotations

import hashlib
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from ram_gym.config import SPLITS
from ram_gym.coordinates import as_numpy
from ram_gym.files import printable
from ram_gym.image_files import resize
from ram_gym.sources import NAMES, DatasetError

SOURCES = f"one of {', '.join(NAMES)}, a folder of images, an .npz file, a pair (images, labels) or a map-style dataset"
"""What a dataset may be, for messages."""


class _Arrays(NamedTuple):
    images: np.ndarray
    """uint8 (N, C, H, W), read-only."""
    labels: np.ndarray
    """int64 (N,) in [0, num_classes), read-only."""
    num_classes: int
    """Number L of classes."""


class Dataset(_Arrays):
    """The labelled images of one split: a tuple (images, labels, num_classes), with the classes' names beside it.

    images: uint8 (N, C, H, W), C 1 or 3, read-only.
    labels: int64 (N,) in [0, num_classes), read-only.
    num_classes: number L of classes.
    """

    class_names: tuple[str, ...] | None = None
    """L names; None where classes have numbers only."""

    def __new__(
        cls, images: np.ndarray, labels: np.ndarray, num_classes: int, class_names: Sequence[str] | None = None
    ) -> Dataset:
        """A dataset of arrays as described above."""
        data = super().__new__(cls, images, labels, num_classes)
        data.class_names = None if class_names is None else tuple(class_names)
        return data

    def _replace(self, **changes: Any) -> Dataset:
        """A copy with other images, labels, num_classes or class_names."""
        return Dataset(**{**self._asdict(), "class_names": self.class_names, **changes})


def from_user(source: Any) -> Dataset:
    """A dataset of the caller's own images.

    Args:
        source: a `Dataset`, a pair (images, labels) or a map-style dataset, as `load_dataset` takes them.

    Raises:
        DatasetError: it is none of these, or the arrays do not fit together.
    """
    if isinstance(source, Dataset):
        return source
    is_pair = isinstance(source, tuple | list) and len(source) == 2
    if is_pair and not all(isinstance(item, tuple) and len(item) == 2 and np.ndim(item[1]) == 0 for item in source):
        return from_arrays(_as_array("images", source[0]), _as_array("labels", source[1]))
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return _from_pairs(source)
    raise DatasetError(f"dataset must be {SOURCES}, got {type(source).__name__}")


def _as_array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach") and str(value.dtype).startswith(("torch.bfloat16", "torch.float8")):
        value = value.float()  # NumPy has no such floats
    try:
        return np.asarray(as_numpy(value))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{name} must be one array, all rows of one shape: {error}") from error


def _from_pairs(pairs: Any) -> Dataset:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for index in range(len(pairs)):
        try:
            image, label = pairs[index]
            label = operator.index(label.item() if hasattr(label, "item") else label)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"dataset item {index} must be a pair (image, label), label an int: {error}") from error
        mode = getattr(image, "mode", None)
        if isinstance(mode, str) and mode not in ("1", "L", "RGB"):
            raise DatasetError(f"image {index} has PIL mode {mode!r}; convert it to 'L' or 'RGB'")
        image = _as_array(f"image {index}", image)
        if images and image.shape != images[0].shape:
            raise DatasetError(f"image {index} has shape {image.shape}, image 0 {images[0].shape}; make them equal")
        images.append(image)
        labels.append(label)
    if not images:
        raise DatasetError("dataset is empty; expected at least one image")
    return from_arrays(np.stack(images), np.asarray(labels))


def from_arrays(images: np.ndarray, labels: np.ndarray) -> Dataset:
    """A dataset of images and labels, of the layouts and dtypes that `load_dataset` takes.

    Raises:
        DatasetError: they are of another form, or do not fit together.
    """
    images, labels = _as_bytes(_channels_first(images)), _check_labels(labels, len(images))
    return Dataset(_shared(images), _shared(labels), int(labels.max()) + 1)


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Images of any layout as (N, C, H, W)."""
    given = images.shape
    if images.ndim and not len(images):
        raise DatasetError(f"images must hold at least one, got shape {given}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise DatasetError(
            f"images must be (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, got shape {given}"
        )
    return images


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """Images of any dtype as uint8 in [0, 255]."""
    if images.dtype == np.bool_:
        images = images * np.uint8(255)
    elif np.issubdtype(images.dtype, np.floating):
        if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
            raise DatasetError("float images must lie in [0, 1]; scale them, or give uint8 in [0, 255]")
        images = np.rint(images * 255)
    elif not np.issubdtype(images.dtype, np.integer):
        raise DatasetError(f"images must be uint8 in [0, 255] or floats in [0, 1], got dtype {images.dtype}")
    elif images.min() < 0 or images.max() > 255:
        got = f"{images.min()} to {images.max()}"
        raise DatasetError(f"images must be uint8 in [0, 255] or floats in [0, 1], got {images.dtype}, {got}")
    elif images.dtype != np.uint8 and images.max() == 1:
        raise DatasetError(f"images of 0 and 1 must be bool or floats, got {images.dtype}, which is in [0, 255]")
    return images.astype(np.uint8, copy=False)


def _check_labels(labels: np.ndarray, num_images: int) -> np.ndarray:
    """Labels as int64 (N,)."""
    if labels.shape != (num_images,):
        raise DatasetError(f"labels must have shape ({num_images},), one an image, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"labels must be integers from 0 on, got dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DatasetError(f"labels must be integers in [0, 2^31), got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64, copy=False)


def resized(data: Dataset, image_size: int | None) -> Dataset:
    """The same images with height and width `image_size`, as `resize` of image_files resizes them; None: as they are.

    Resized once for all who use the same images, see `_shared`.
    """
    if image_size is None or data.images.shape[2:] == (image_size, image_size):
        return data
    return data._replace(images=_shared(data.images, image_size))


def _resize(images: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 (N, C, H, W) -> uint8 (N, C, image_size, image_size)."""
    from PIL import Image

    result = np.empty((*images.shape[:2], image_size, image_size), np.uint8)
    for image, small in zip(images, result, strict=True):
        for plane, out in zip(image, small, strict=True):
            out[...] = resize(Image.fromarray(plane), image_size)
    return result


_copies: WeakValueDictionary[tuple[Any, ...], np.ndarray] = WeakValueDictionary()


def _shared(array: np.ndarray, image_size: int | None = None) -> np.ndarray:
    """A read-only copy of an array, resized where a size is given.

    It is the same copy for all arrays that hold the same numbers, while somebody uses it.
    """
    array = np.ascontiguousarray(array)
    key = (array.dtype.str, array.shape, hashlib.sha256(array.data).digest(), image_size)
    copy = _copies.get(key)
    if copy is None:
        copy = array.copy() if image_size is None else _resize(array, image_size)
        copy.setflags(write=False)
        _copies[key] = copy
    return copy


def freeze(images: np.ndarray, labels: np.ndarray, num_classes: int, class_names: Sequence[str] | None) -> Dataset:
    """A dataset of arrays that nobody else holds, which become read-only."""
    images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Dataset(images, labels, num_classes, class_names)


def set_aside(
    path: Path, labels: np.ndarray, keys: np.ndarray, lacking: Sequence[str], class_names: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Shares out the training images where splits are missing, and says so on stderr.

    Each missing split gets a tenth of each class, at least one image. Which ones, depends on the images' contents
    alone: sorted by their SHA-256, the first tenth is for the test split, the next for validation. Images of a class
    that are the same file stay together, in one split.

    Args:
        path: of the data, for messages.
        labels: int64 (N,).
        keys: uint64 (N,), the first bits of each image's SHA-256.
        lacking: the missing splits.
        class_names: for messages.

    Returns:
        The places of the images of "train" and of each missing split, rising.

    Raises:
        DatasetError: a class has too few different images.
    """
    shares = np.full(len(labels), "train", "U10")
    lacking = [split for split in reversed(SPLITS) if split in lacking]
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        different, number = np.unique(keys[own], return_inverse=True)
        tenth = max(1, len(different) // 10)
        if len(different) <= len(lacking):
            name = class_names[label] if class_names else label
            raise DatasetError(
                f"{path} has {len(different)} different images of class {name}, too few for {' and '.join(lacking)} "
                f"images too: add some, or add {' and '.join(lacking)} images of your own"
            )
        for place, split in enumerate(lacking):
            shares[own[(number >= place * tenth) & (number < (place + 1) * tenth)]] = split
    places = {split: np.flatnonzero(shares == split) for split in ("train", *reversed(lacking))}
    counts = ", ".join(f"{len(own):,} {split}" for split, own in places.items())
    missing, each = " and no ".join(reversed(lacking)), "each" if len(lacking) > 1 else "them"
    print(
        f"ram_gym: {printable(str(path))} has no {missing} images, so a tenth of each class is set aside for {each}, "
        f"always the same: {counts}",
        file=sys.stderr,
        flush=True,
    )
    return places


def first_bits(content: bytes) -> int:
    """The first 64 bits of the SHA-256 of an image, for `set_aside`."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
