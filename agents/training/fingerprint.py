"""Fingerprints of a run's environment and data, to detect that a run is resumed or evaluated on other data.

A fingerprint depends on the contents, not on the folder of the data or the names of fields and datasets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, NotRequired

import numpy as np
from annotated_types import Interval, Len
from typing_extensions import TypedDict

from ram_gym import Dataset, GlimpseConfig, load_dataset

SHA256 = Annotated[str, Len(64, 64)]


class Data(TypedDict):
    """The environment and data that a run learns from, for config.json. Digests are SHA-256 in hexadecimal."""

    num_classes: Annotated[int, Interval(ge=1, le=2**31)]
    num_channels: Annotated[int, Interval(ge=1, le=3)]
    environment: SHA256
    """Digest of the environment config without its dataset, data folder, split and image size."""
    train: SHA256
    """Digest of the images and labels of the training split."""
    validation: SHA256
    """The same of the validation split."""
    test: SHA256
    """The same of the test split."""
    class_names: NotRequired[list[str]]
    """Names of the classes, if the dataset has any. Not part of the fingerprint, since networks do not use them."""


def describe_data(env_config: GlimpseConfig) -> Data:
    """The description of an environment and its data. Reads all three splits.

    Raises:
        DatasetError: the dataset is missing or damaged.
    """
    data = load_dataset(env_config, "train")
    described: Data = {
        "num_classes": data.num_classes,
        "num_channels": data.images.shape[1],
        "environment": digest_of_environment(env_config),
        "train": digest_of_split(env_config, "train"),
        "validation": digest_of_split(env_config, "validation"),
        "test": digest_of_split(env_config, "test"),
    }
    if data.class_names is not None:
        described["class_names"] = list(data.class_names)
    return described


def fingerprint(data: Data) -> str:
    """SHA-256 of the description, in hexadecimal, without the class names. Checkpoints store it too."""
    return _sha256({name: value for name, value in data.items() if name != "class_names"})


def is_other_data(data: Data, env_config: GlimpseConfig, splits: Iterable[str], path: Any, instead: str | None) -> bool:
    """Whether an environment or its images differ from those that a run learned from.

    Args:
        data: description of the run's environment and data.
        env_config: the environment config to compare with it.
        splits: the splits to compare; only these are read.
        path: path of the run, for the message.
        instead: what the user can do about a difference, for the message; None allows differences.

    Raises:
        ValueError: they differ and `instead` is given; or the numbers of classes or channels differ, which the run's
            network cannot take.
        DatasetError: the dataset is missing or damaged.
    """
    differing = ["environment"] if digest_of_environment(env_config) != data["environment"] else []
    for split in splits:
        dataset = load_dataset(env_config, split)
        ours, theirs = (dataset.num_classes, dataset.images.shape[1]), (data["num_classes"], data["num_channels"])
        if ours != theirs:
            forms = " and ".join(f"{classes} classes and {channels} channels" for classes, channels in (theirs, ours))
            raise ValueError(f"{path} and its {split} images must have the same classes and channels, got {forms}")
        if digest_of_split(env_config, split) != dict(data)[split]:
            differing.append(f"{split} images")
        names = data.get("class_names")
        if names and dataset.class_names and tuple(names) != dataset.class_names and "class names" not in differing:
            differing.append("class names")
    if differing and instead is not None:
        raise ValueError(f"{path} was trained on other data, not the same {' and '.join(differing)}; {instead}")
    return bool(differing)


def digest_of_environment(env_config: GlimpseConfig) -> str:
    """SHA-256 of an environment config.

    Every run stores this digest, so the keys stay the same when a field is renamed. Add a key for a new field only if
    its value is not the one under which the environment behaves as before.
    """
    return _sha256(
        {
            "canvas_size": env_config.canvas_size,
            "num_clutter": env_config.num_clutter,
            "clutter_size": env_config.clutter_size,
            "composition": env_config.composition,
            "num_glimpses": env_config.num_glimpses,
            "patch_size": env_config.patch_size,
            "num_scales": env_config.num_scales,
            "scale_factor": env_config.scale_factor,
            "scene_seed": env_config.scene_seed,
        }
    )


def digest_of_split(env_config: GlimpseConfig, split: str) -> str:
    """SHA-256 of a split's images and labels; cached in this process.

    Raises:
        DatasetError: the dataset is missing or damaged.
    """
    data = load_dataset(env_config, split)
    key = id(data.images), id(data.labels), data.num_classes
    if key not in _DIGESTS:
        sha256 = hashlib.sha256(json.dumps([data.images.shape, data.num_classes]).encode())
        sha256.update(np.ascontiguousarray(data.images, np.uint8).data)
        sha256.update(np.ascontiguousarray(data.labels, "<i8").data)
        _DIGESTS[key] = sha256.hexdigest(), data
    return _DIGESTS[key][0]


_DIGESTS: dict[tuple[int, int, int], tuple[str, Dataset]] = {}
"""Cache of digests by the ids of the arrays, which `load_dataset` caches; holding the arrays keeps the ids unique."""


def _sha256(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
