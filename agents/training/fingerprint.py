"""Fingerprint of what a run learns from: its environment and the data, so that others are noticed.

It depends neither on where the data lies nor on what fields and datasets are called.
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
    """What a run learns from, for config.json. Digests are SHA-256, in hexadecimal digits."""

    num_classes: Annotated[int, Interval(ge=1, le=2**31)]
    num_channels: Annotated[int, Interval(ge=1, le=3)]
    environment: SHA256
    """Of the environment config, but for which images it shows: dataset, data folder, split and size of the images."""
    train: SHA256
    """Of the images and labels of this split, as the next two."""
    validation: SHA256
    test: SHA256
    class_names: NotRequired[list[str]]
    """The classes' names, where they have any. Not part of the fingerprint: no network knows them."""


def describe_data(env_config: GlimpseConfig) -> Data:
    """What a run in this environment learns from. Reads all splits, each once a process.

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
    """One number for all of it, which checkpoints repeat."""
    return _sha256({name: value for name, value in data.items() if name != "class_names"})


def is_other_data(data: Data, env_config: GlimpseConfig, splits: Iterable[str], path: Any, instead: str | None) -> bool:
    """Whether an environment is another one than a run learned from, or shows other images.

    Args:
        data: what the run learned from.
        env_config: the environment.
        splits: those that are to be played; only these are read.
        path: the run's, for the message.
        instead: what to do then, for the message; None lets it be.

    Raises:
        ValueError: it is, and may not be; or it has another number of classes or channels, which no network takes.
        DatasetError: the dataset is missing or damaged.
    """
    others = ["environment"] if digest_of_environment(env_config) != data["environment"] else []
    for split in splits:
        found = load_dataset(env_config, split)
        ours, theirs = (found.num_classes, found.images.shape[1]), (data["num_classes"], data["num_channels"])
        if ours != theirs:
            forms = " and ".join(f"{classes} classes and {channels} channels" for classes, channels in (theirs, ours))
            raise ValueError(f"{path} and its {split} images must have the same classes and channels, got {forms}")
        if digest_of_split(env_config, split) != dict(data)[split]:
            others.append(f"{split} images")
        names = data.get("class_names")
        if names and found.class_names and tuple(names) != found.class_names and "class names" not in others:
            others.append("class names")
    if others and instead is not None:
        raise ValueError(f"{path} was trained on other data, not the same {' and '.join(others)}; {instead}")
    return bool(others)


def digest_of_environment(env_config: GlimpseConfig) -> str:
    """SHA-256 of an environment config.

    The keys are stored in every run, so they stay when a field gets another name. A field that is added gets a key only
    where its value makes the environment another one than it was without the field.
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
    """SHA-256 of a split's images and labels; computed once a process.

    Raises:
        DatasetError: the dataset is missing or damaged.
    """
    data = load_dataset(env_config, split)
    key = id(data.images), id(data.labels), data.num_classes
    if key not in _DIGESTS:
        found = hashlib.sha256(json.dumps([data.images.shape, data.num_classes]).encode())
        found.update(np.ascontiguousarray(data.images, np.uint8).data)
        found.update(np.ascontiguousarray(data.labels, "<i8").data)
        _DIGESTS[key] = found.hexdigest(), data
    return _DIGESTS[key][0]


_DIGESTS: dict[tuple[int, int, int], tuple[str, Dataset]] = {}
"""By the identity of the arrays, which `load_dataset` loads once a process; they are held, so that it stays theirs."""


def _sha256(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
