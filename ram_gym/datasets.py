"""Labelled images: torchvision's MNIST family, scikit-learn's embedded digits, or the caller's own arrays.

Splits of the MNIST family: the test split is the published one; the last 10,000 training images are "validation" and
the others "train". Splits of the digits: of every ten images the first six train, the next two validate and the
last two test.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from ram_gym import downloads
from ram_gym.config import SPLITS
from ram_gym.coordinates import as_numpy
from ram_gym.downloads import DATA_ROOT_VARIABLE, DatasetError

VALIDATION_SIZE = 10_000


class Dataset(NamedTuple):
    """The labelled images of one split."""

    images: np.ndarray
    """uint8 (N, C, H, W), read-only."""
    labels: np.ndarray
    """int64 (N,) in [0, num_classes), read-only."""
    num_classes: int
    """Number L of classes."""


DATASET_NAMES = ("digits", *downloads.SOURCES)


def default_data_root() -> Path:
    """The folder that datasets are looked for in when none is given: $RAM_GYM_DATA, else a per-user cache."""
    if os.environ.get(DATA_ROOT_VARIABLE):
        return Path(os.environ[DATA_ROOT_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "ram_gym"


def has_dataset(name: str, data_root: str | os.PathLike[str] | None = None) -> bool:
    """Whether `load_dataset` of a named dataset would find its files, so that it would download nothing.

    Example:
        >>> has_dataset("digits")
        True
    """
    return name not in downloads.SOURCES or not downloads.lacks(name, _root(data_root))


def _root(data_root: str | os.PathLike[str] | None) -> Path:
    return (Path(data_root).expanduser() if data_root is not None else default_data_root()).absolute()


def load_dataset(source: Any, split: str = "train", data_root: str | os.PathLike[str] | None = None) -> Dataset:
    """The labelled images of one split.

    Args:
        source: one of
            a name: "digits", "mnist", "fashion-mnist" or "kmnist";
            a pair (images, labels): images (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3 (the former where
            both fit), uint8, bool or floats in [0, 1]; labels integers (N,) from 0 on; used as they are, whatever
            the split;
            a map-style dataset (`len` and integer indexing) of (image, label) pairs, used likewise;
            a mapping from split names to any of the last two; the number of classes is that of all splits.
        split: "train", "validation" or "test".
        data_root: the folder with torchvision's datasets; None: see `default_data_root`. A dataset that is not there
            is downloaded, by one process where several need it. Only the MNIST family reads it.

    Returns:
        The split's images and labels, and the number of classes, one more than the largest label. A named dataset is
        loaded once a process and shared. Your own images are copied, once for all environments of a process that are
        given the same ones, whether as the same arrays or not: if you change your arrays later, environments that exist
        stay as they are, and new ones have the new images.

    Raises:
        DatasetError: the name is unknown, the files are missing or damaged, or the arrays do not fit together.

    Example:
        >>> load_dataset("digits", "test").images.shape
        (358, 1, 28, 28)
    """
    if split not in SPLITS:
        raise DatasetError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if isinstance(source, str):
        if source == "digits":
            return _load_digits(split)
        if source in downloads.SOURCES:
            return _load_downloaded(source, split, _root(data_root))
        raise DatasetError(f"dataset must be one of {', '.join(DATASET_NAMES)} or your own images, got {source!r}")
    if isinstance(source, Mapping):
        if split not in source:
            raise DatasetError(f"dataset has no split {split!r}; it has {', '.join(map(str, source))}")
        splits = {name: _from_user(images) for name, images in source.items()}
        channels = {name: data.images.shape[1] for name, data in splits.items()}
        if len(set(channels.values())) > 1:
            raise DatasetError(f"splits must have the same number of channels, got {channels}")
        # One action space for all splits, though one of them may lack the last class.
        return splits[split]._replace(num_classes=max(data.num_classes for data in splits.values()))
    return _from_user(source)


def _from_user(source: Any) -> Dataset:
    if isinstance(source, Dataset):
        return source
    is_pair = isinstance(source, tuple | list) and len(source) == 2
    if is_pair and not all(isinstance(item, tuple) and len(item) == 2 and np.ndim(item[1]) == 0 for item in source):
        return _from_arrays(_as_array("images", source[0]), _as_array("labels", source[1]))
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return _from_pairs(source)
    raise DatasetError(
        f"dataset must be one of {', '.join(DATASET_NAMES)}, a pair (images, labels) or a map-style dataset, "
        f"got {type(source).__name__}"
    )


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
    return _from_arrays(np.stack(images), np.asarray(labels))


def _from_arrays(images: np.ndarray, labels: np.ndarray) -> Dataset:
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
    if images.dtype == np.bool_:
        images = images * np.uint8(255)
    elif np.issubdtype(images.dtype, np.floating):
        if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
            raise DatasetError("float images must lie in [0, 1]; scale them, or give uint8 in [0, 255]")
        images = np.rint(images * 255)
    elif not np.issubdtype(images.dtype, np.integer):
        raise DatasetError(f"images must be uint8 in [0, 255] or floats in [0, 1], got dtype {images.dtype}")
    elif images.min() < 0 or images.max() > 255:
        found = f"{images.min()} to {images.max()}"
        raise DatasetError(f"images must be uint8 in [0, 255] or floats in [0, 1], got {images.dtype}, {found}")
    elif images.dtype != np.uint8 and images.max() == 1:
        raise DatasetError(f"images of 0 and 1 must be bool or floats, got {images.dtype}, which is in [0, 255]")
    if labels.shape != (len(images),):
        raise DatasetError(f"labels must have shape ({len(images)},), one an image, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"labels must be integers from 0 on, got dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DatasetError(f"labels must be integers in [0, 2^31), got {labels.min()} to {labels.max()}")
    images, labels = _shared(images.astype(np.uint8, copy=False)), _shared(labels.astype(np.int64, copy=False))
    return Dataset(images, labels, int(labels.max()) + 1)


_copies: WeakValueDictionary[tuple[str, tuple[int, ...], bytes], np.ndarray] = WeakValueDictionary()


def _shared(array: np.ndarray) -> np.ndarray:
    """A read-only copy of an array, the same one for all arrays that hold the same numbers while somebody uses it."""
    array = np.ascontiguousarray(array)
    key = (array.dtype.str, array.shape, hashlib.sha256(array.data).digest())
    copy = _copies.get(key)
    if copy is None:
        copy = array.copy()
        copy.setflags(write=False)
        _copies[key] = copy
    return copy


def _frozen(images: np.ndarray, labels: np.ndarray, num_classes: int) -> Dataset:
    images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Dataset(images, labels, num_classes)


@functools.cache
def _load_digits(split: str) -> Dataset:
    """The 1,797 8x8 digits that scikit-learn ships, resized to 28x28 (bicubic)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    tenth = np.arange(len(digits.target)) % 10
    wanted = {"train": tenth < 6, "validation": (tenth == 6) | (tenth == 7), "test": tenth > 7}[split]
    small = np.rint(digits.images[wanted] * (255 / 16)).astype(np.uint8)
    images = [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)) for image in small]
    return _frozen(np.stack(images)[:, None], digits.target[wanted].astype(np.int64), 10)


@functools.cache
def _load_downloaded(name: str, split: str, root: Path) -> Dataset:
    images, labels = downloads.read(name, split != "test", root)
    kept = {
        "train": slice(0, len(images) - VALIDATION_SIZE),
        "validation": slice(len(images) - VALIDATION_SIZE, None),
        "test": slice(None),
    }[split]
    return _frozen(images[kept, None], labels[kept].astype(np.int64), 10)
