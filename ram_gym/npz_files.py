"""Images and labels in an .npz file, split or not."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ram_gym.arrays import Dataset, first_bits, freeze, from_arrays, resized, set_aside
from ram_gym.config import SPLITS
from ram_gym.files import printable
from ram_gym.sources import DatasetError

_KEYS = {
    "train": ("images", "labels"),
    "validation": ("images_validation", "labels_validation"),
    "test": ("images_test", "labels_test"),
}


def load_npz(path: Path, split: str, image_size: int | None) -> Dataset:
    """The images of one split of an .npz file; see `ram_gym.load_dataset`.

    The file is read once a process and its images are shared, until it changes.

    Args:
        path: absolute path of the file.
        split: the split; where the file has none of that name, training images are set aside, see `set_aside`.
        image_size: side that images are resized to; None: as they are.

    Raises:
        DatasetError: the file is not as described; the message names it.
    """
    state = path.stat()
    splits = _read_npz(path, (state.st_size, state.st_mtime_ns))
    sizes = {split: data.images.shape[2:] for split, data in splits.items()}
    if image_size is None and len(set(sizes.values())) > 1:
        raise DatasetError(f"{path}: images of all splits must have one size, or get it by image_size, got {sizes}")
    return resized(splits[split], image_size)


@lru_cache(maxsize=2)
def _read_npz(path: Path, state: tuple[int, int]) -> dict[str, Dataset]:
    """All splits of an .npz file."""
    del state  # a changed file is read again
    arrays = _read_arrays(path)
    class_names = arrays.pop("class_names", None)
    splits = {}
    for split, (images, labels) in _KEYS.items():
        if (images in arrays) != (labels in arrays) or (split == "train" and images not in arrays):
            raise DatasetError(
                f"{path} must hold images and labels of each split, and holds {', '.join(arrays) or 'nothing'}"
            )
        if images in arrays:
            try:
                splits[split] = from_arrays(arrays.pop(images), arrays.pop(labels))
            except DatasetError as error:
                raise DatasetError(f"{path}, {images}: {error}") from error
    if arrays:
        allowed = [name for names in _KEYS.values() for name in names]
        raise DatasetError(f"{path} may hold {', '.join(allowed)} and class_names, and holds {', '.join(arrays)} too")
    names = _check_names(path, class_names, splits)
    if lacking := [split for split in SPLITS if split not in splits]:
        train = splits["train"]
        keys = np.array([first_bits(image.tobytes()) for image in train.images], np.uint64)
        shares = set_aside(path, train.labels, keys, lacking, names)
        for split, places in shares.items():
            splits[split] = freeze(train.images[places], train.labels[places], train.num_classes, names)
    num_classes = len(names) if names else max(data.num_classes for data in splits.values())
    return {split: Dataset(data.images, data.labels, num_classes, names) for split, data in splits.items()}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # broken files raise errors of many kinds
        raise DatasetError(f"{path} cannot be read: {printable(str(error))}") from error


def _check_names(path: Path, names: np.ndarray | None, splits: dict[str, Dataset]) -> tuple[str, ...] | None:
    """The names of the classes, if the file has them; refuses splits that do not fit together."""
    channels = {split: data.images.shape[1] for split, data in splits.items()}
    if len(set(channels.values())) > 1:
        raise DatasetError(f"{path}: images of all splits must have the same number of channels, got {channels}")
    if len(np.unique(splits["train"].labels)) < 2:
        raise DatasetError(f"{path} must hold images of at least two classes, and holds one")
    if names is None:
        return None
    num_classes = max(data.num_classes for data in splits.values())
    if names.ndim != 1 or names.dtype.kind != "U" or not num_classes <= len(set(names.tolist())) == len(names):
        raise DatasetError(
            f"{path}: class_names must be {num_classes} or more different strings, got {names.shape} of {names.dtype}"
        )
    return tuple(names.tolist())
