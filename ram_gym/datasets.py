"""`load_dataset`: labelled images by name, from a folder or a file, or the caller's own arrays.

Splits of the datasets that torchvision downloads: the test split is the published one; the last 10,000 training images
are "validation" and the others "train". Splits of the digits: of every ten images the first six train, the next two
validate and the last two test.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ram_gym import downloads
from ram_gym.arrays import SOURCES, Dataset, freeze, from_user, resized
from ram_gym.config import SPLITS, GlimpseConfig
from ram_gym.downloads import DATA_ROOT_VARIABLE
from ram_gym.image_folders import load_folder
from ram_gym.npz_files import load_npz
from ram_gym.sources import DatasetError

VALIDATION_SIZE = 10_000


def default_data_root() -> Path:
    """The folder of the named datasets where none is given: $RAM_GYM_DATA, else a per-user cache."""
    if os.environ.get(DATA_ROOT_VARIABLE):
        return Path(os.environ[DATA_ROOT_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "ram_gym"


def has_dataset(dataset: str | os.PathLike[str], data_root: str | os.PathLike[str] | None = None) -> bool:
    """Whether `load_dataset` of a name or path would find its files, so that it would download nothing.

    Example:
        >>> has_dataset("digits")
        True
    """
    path = GlimpseConfig(dataset=os.fspath(dataset)).data_path
    if path is not None:
        return path.exists()
    return dataset not in downloads.SOURCES or not downloads.lacks(os.fspath(dataset), _root(data_root))


def is_centred(dataset: str) -> bool:
    """Whether each image of a dataset shows one thing on black, in its middle. Of paths and arrays nobody knows."""
    return dataset == "digits" or (dataset in downloads.SOURCES and downloads.SOURCES[dataset].is_centred)


def _root(data_root: str | os.PathLike[str] | None) -> Path:
    return (Path(data_root).expanduser() if data_root is not None else default_data_root()).absolute()


def load_dataset(
    source: Any,
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> Dataset:
    """The labelled images of one split.

    Args:
        source: one of
            a name: "digits", "mnist", "fashion-mnist", "kmnist", "cifar10" or "svhn";
            the path of a folder with one folder of images per class, in train, validation (or val) and test or some of
            them, or without these; classes are numbered in the order of their names;
            the path of an .npz file with `images` and `labels` for training, `images_validation`, `labels_validation`,
            `images_test` and `labels_test` or some of them, and `class_names` if there are any;
            a pair (images, labels): images (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3 (the former where
            both fit), uint8, bool or floats in [0, 1]; labels integers (N,) from 0 on; used as they are, whatever
            the split;
            a map-style dataset (`len` and integer indexing) of (image, label) pairs, used likewise;
            a mapping from split names to any of the last two; the number of classes is that of all splits;
            a `GlimpseConfig`, for its dataset, split, data_root and image_size.
        split: "train", "validation" or "test"; None: "train", or the config's.
        data_root: the folder with torchvision's datasets; None: see `default_data_root`. A dataset that it lacks is
            downloaded, by one process where several need it. Named datasets alone read it.
        image_size: side that images are resized to, without regard to their aspect ratio; None: as they are.

    Returns:
        The split's images, labels, number of classes (one more than the largest label, or as many as have names) and
        class names. Images of a folder are grey if all its files are, else RGB; they are turned as their EXIF data say.
        Where a folder or .npz file lacks a split, a tenth of each class of its training images is that split, the same
        ones in every process, and a line on stderr says so. Images of names and paths are loaded once a process and
        shared. Your own are copied, once for all environments of a process that are given the same ones, whether as the
        same arrays or not: if you change your arrays later, environments that exist stay as they are, and new ones have
        the new images.

    Raises:
        DatasetError: the name is unknown, files are missing or damaged, or images or arrays do not fit together.

    Example:
        >>> load_dataset("digits", "test").images.shape
        (358, 1, 28, 28)
    """
    if isinstance(source, GlimpseConfig):
        return load_dataset(source.dataset, split or source.split, source.data_root, source.image_size)
    split = "train" if split is None else split
    if split not in SPLITS:
        raise DatasetError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if isinstance(source, str | os.PathLike):
        return _load_named_or_path(os.fspath(source), split, data_root, image_size)
    if isinstance(source, Mapping):
        if split not in source:
            raise DatasetError(f"dataset has no split {split!r}; it has {', '.join(map(str, source))}")
        splits = {name: from_user(images) for name, images in source.items()}
        channels = {name: data.images.shape[1] for name, data in splits.items()}
        if len(set(channels.values())) > 1:
            raise DatasetError(f"splits must have the same number of channels, got {channels}")
        # One action space for all splits, though one of them may lack the last class.
        num_classes = max(data.num_classes for data in splits.values())
        return resized(splits[split]._replace(num_classes=num_classes), image_size)
    return resized(from_user(source), image_size)


def _load_named_or_path(
    source: str, split: str, data_root: str | os.PathLike[str] | None, image_size: int | None
) -> Dataset:
    if source == "digits":
        return resized(_load_digits(split), image_size)
    if source in downloads.SOURCES:
        return resized(_load_downloaded(source, split, _root(data_root)), image_size)
    path = GlimpseConfig(dataset=source).data_path
    if path is not None and path.is_dir():
        return load_folder(path, split, image_size)
    if path is not None and path.is_file() and path.suffix.lower() == ".npz":
        return load_npz(path, split, image_size)
    what = "which is neither a folder nor an .npz file" if path and path.exists() else "and there is no such path"
    raise DatasetError(f"dataset must be {SOURCES}, got {source!r}, {what}")


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
    return freeze(np.stack(images)[:, None], digits.target[wanted].astype(np.int64), 10, None)


@functools.cache
def _load_downloaded(name: str, split: str, root: Path) -> Dataset:
    images, labels = downloads.read(name, split != "test", root)
    kept = {
        "train": slice(0, len(images) - VALIDATION_SIZE),
        "validation": slice(len(images) - VALIDATION_SIZE, None),
        "test": slice(None),
    }[split]
    return freeze(images[kept], labels[kept].astype(np.int64), 10, downloads.SOURCES[name].class_names)
