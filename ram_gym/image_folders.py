"""A folder with one folder of images per class, as torchvision's ImageFolder takes it, split or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ram_gym.arrays import Dataset, first_bits, set_aside
from ram_gym.config import SPLITS
from ram_gym.image_files import SUFFIXES, has_colours, read_bytes, read_image
from ram_gym.sources import DatasetError

SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
CACHED = 8
"""Splits that stay in memory."""


def load_folder(root: Path, split: str, image_size: int | None) -> Dataset:
    """The images of one split of a folder; see `ram_gym.load_dataset`.

    They are read once a process and shared, until a file of the folder changes.

    Args:
        root: absolute path of the folder.
        split: the split; where the folder has none of that name, training images are set aside, see `set_aside`.
        image_size: side that images are resized to; None: all must be of one size.

    Raises:
        DatasetError: the folder, or an image of it, is not as described; the message names the file.
    """
    return _load(root, _list_images(root), split, image_size)


class _File(NamedTuple):
    split: str
    class_name: str
    path: str
    size: int
    changed: int


def _list_images(root: Path) -> tuple[_File, ...]:
    """All images of a folder, by split, class and path.

    Raises:
        DatasetError: it has no folders of classes, or one of them has no image.
    """
    try:
        return tuple(
            _File(split, name, entry.path, entry.stat().st_size, entry.stat().st_mtime_ns)
            for split, classes in _find_splits(root).items()
            for name, folder in classes.items()
            for entry in _images_in(folder)
        )
    except OSError as error:
        raise DatasetError(f"{error.filename or root} cannot be read: {error.strerror}") from error


def _find_splits(root: Path) -> dict[str, dict[str, Path]]:
    """The folders of classes, by split and class. All are of "train" where the folder is not split."""
    folders = _folders_in(root)
    if "train" not in folders or not _folders_in(folders["train"]):
        if folders and set(folders) <= set(SPLIT_FOLDERS):
            raise DatasetError(f"{root} has {', '.join(folders)}, and no train with a folder per class")
        return {"train": _check_classes(root, folders)}
    splits: dict[str, dict[str, Path]] = {}
    for name, folder in folders.items():
        if name not in SPLIT_FOLDERS:
            raise DatasetError(f"{folder} is none of {', '.join(SPLIT_FOLDERS)}, which the folders beside it are")
        if SPLIT_FOLDERS[name] in splits:
            raise DatasetError(f"{root} has both val and validation; leave one of them")
        splits[SPLIT_FOLDERS[name]] = _check_classes(folder, _folders_in(folder))
    for classes in splits.values():
        for name, folder in classes.items():
            if name not in splits["train"]:
                raise DatasetError(f"{folder} is a class that {folders['train']} does not have")
    return {split: splits[split] for split in SPLITS if split in splits}


def _folders_in(path: Path) -> dict[str, Path]:
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    return {name: path / name for name in names if not name.startswith((".", "__"))}


def _check_classes(folder: Path, classes: dict[str, Path]) -> dict[str, Path]:
    if not classes:
        raise DatasetError(f"{folder} must hold a folder of images for each class, and holds no folders")
    for path in classes.values():
        if next(_images_in(path), None) is None:
            raise DatasetError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    return classes


def _images_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The images in a folder and the folders in it, in the order of their names."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images_in(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry


class _Plan(NamedTuple):
    # What a folder's splits are. Paths are in the order of the images, classes mixed.
    class_names: tuple[str, ...]
    paths: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    channels: int
    shape: tuple[int, int]  # height and width of the first image


@lru_cache(maxsize=CACHED)
def _plan(root: Path, files: tuple[_File, ...]) -> _Plan:
    class_names = tuple(sorted({file.class_name for file in files}))
    if len(class_names) < 2:
        raise DatasetError(f"{root} must hold at least two classes, and holds {class_names[0]} only")
    numbers = {name: number for number, name in enumerate(class_names)}
    paths: dict[str, list[str]] = {}
    labels: dict[str, np.ndarray] = {}
    for split in dict.fromkeys(file.split for file in files):
        own = [file for file in files if file.split == split]
        own_labels = np.array([numbers[file.class_name] for file in own], np.int64)
        order = _mix(own_labels)
        paths[split], labels[split] = [own[place].path for place in order], own_labels[order]
    if lacking := [split for split in SPLITS if split not in paths]:
        keys = [first_bits(read_bytes(path)) for path in paths["train"]]
        shares = set_aside(root, labels["train"], np.array(keys, np.uint64), lacking, class_names)
        of_train = paths["train"], labels["train"]
        for split, places in shares.items():
            paths[split], labels[split] = [of_train[0][place] for place in places], of_train[1][places]
    # One channel if all images are grey.
    every = (path for split in paths.values() for path in split)
    channels = 3 if any(has_colours(path) for path in every) else 1
    return _Plan(class_names, paths, labels, channels, read_image(paths["train"][0], channels, None).shape[1:])


def _mix(labels: np.ndarray) -> np.ndarray:
    """An order in which the images of each class lie evenly, so that the first hundred are of all classes."""
    places = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        places[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.lexsort((labels, places))


@lru_cache(maxsize=CACHED)
def _load(root: Path, files: tuple[_File, ...], split: str, image_size: int | None) -> Dataset:
    plan = _plan(root, files)
    paths, labels = plan.paths[split], plan.labels[split]
    height, width = plan.shape if image_size is None else (image_size, image_size)
    images = np.empty((len(paths), plan.channels, height, width), np.uint8)

    def read(start: int) -> None:
        for place in range(start, min(start + 32, len(paths))):
            image = read_image(paths[place], plan.channels, image_size)
            if image.shape[1:] != (height, width):
                raise DatasetError(
                    f"{paths[place]} has {image.shape[1]}x{image.shape[2]} pixels, {plan.paths['train'][0]} has "
                    f"{height}x{width}: give image_size (--image-size), which resizes all images"
                )
            images[place] = image

    # Pillow decodes without Python's lock, so threads help where images are large.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(read, range(0, len(paths), 32)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    images.setflags(write=False)
    labels.setflags(write=False)
    return Dataset(images, labels, len(plan.class_names), plan.class_names)
