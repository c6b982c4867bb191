from __future__ import annotations

from collections import UserList
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ram_gym import DatasetError, load_dataset

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
GREY[0, 0, :2] = 0, 255
COLOUR = RNG.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2, 0])


class Pairs(UserList[Any]):
    """A map-style dataset, which is no list."""


@pytest.mark.parametrize(
    ("given_images", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
        (GREY.astype(np.int64), GREY[:, None]),
        (GREY.tolist(), GREY[:, None]),
        (GREY >= 128, np.where(GREY >= 128, 255, 0)[:, None]),
        (torch.tensor(GREY), GREY[:, None]),
        (torch.tensor(COLOUR) / 255, COLOUR),
        (torch.tensor(GREY >= 128).bfloat16(), np.where(GREY >= 128, 255, 0)[:, None]),
    ],
    ids=["NHW", "N1HW", "NHW1", "NCHW", "NHWC", "int64", "lists", "bool", "tensor", "float tensor", "bfloat16"],
)
def test_layouts_and_dtypes_give_the_same_bytes(given_images: Any, expected: np.ndarray) -> None:
    data = load_dataset((given_images, LABELS))
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.images, expected)
    assert (data.labels.dtype, data.num_classes) == (np.int64, 3)
    assert data.labels.tolist() == [2, 0, 1, 2, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_the_nearest_of_256_levels(dtype: Any) -> None:
    levels = np.arange(256).reshape(1, 16, 16)
    data = load_dataset(((levels / 255).astype(dtype), [0]))
    np.testing.assert_array_equal(data.images[0], levels)
    between = np.array([[[0.0, 0.49 / 255, 0.51 / 255, 254.49 / 255, 254.51 / 255, 1.0]]], np.float64)
    assert load_dataset((between, [0])).images.ravel().tolist() == [0, 0, 1, 254, 255, 255]


def test_images_in_bfloat16_are_taken_for_the_numbers_they_are() -> None:
    # bfloat16 keeps 8 bits of a number: 1/3 is 0.333984375, 200/255 is 0.78515625, both exactly.
    images = torch.tensor([[[0.0, 1 / 3, 200 / 255, 1.0]]]).to(torch.bfloat16)
    assert images.double().flatten().tolist() == [0, 0.333984375, 0.78515625, 1]
    assert load_dataset((images, [0])).images.ravel().tolist() == [0, 85, 200, 255]
    assert load_dataset([(images[0], 0)]).images.ravel().tolist() == [0, 85, 200, 255]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([Image.fromarray(image) for image in GREY], GREY[:, None]),
        ([Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in COLOUR], COLOUR),
        ([torch.tensor(image)[None] / 255 for image in GREY], GREY[:, None]),
        ([torch.tensor(image) for image in COLOUR], COLOUR),
    ],
    ids=["PIL L", "PIL RGB", "float tensors 1HW", "uint8 tensors CHW"],
)
@pytest.mark.parametrize("as_label", [int, np.int64, torch.tensor])
def test_map_style_datasets_of_pictures_and_tensors(images: Any, expected: np.ndarray, as_label: Any) -> None:
    data = load_dataset(Pairs([(image, as_label(int(label))) for image, label in zip(images, LABELS, strict=True)]))
    np.testing.assert_array_equal(data.images, expected)
    assert data.labels.tolist() == LABELS.tolist()


def test_a_mapping_gives_each_split_its_own_images() -> None:
    splits = {"train": (GREY[:3], LABELS[:3]), "test": Pairs([(GREY[3], 1), (GREY[4], 0)])}
    np.testing.assert_array_equal(load_dataset(splits, "train").images[:, 0], GREY[:3])
    np.testing.assert_array_equal(load_dataset(splits, "test").images[:, 0], GREY[3:])
    assert load_dataset(splits, "test").labels.tolist() == [1, 0]
    with pytest.raises(DatasetError, match="dataset has no split 'validation'; it has train, test"):
        load_dataset(splits, "validation")
    for split in ("train", "validation", "test"):  # without a mapping, every split is the same
        np.testing.assert_array_equal(load_dataset((GREY, LABELS), split).images[:, 0], GREY)
    for source in ("digits", (GREY, LABELS), splits):
        with pytest.raises(DatasetError, match="split must be one of train, validation, test, got 'val'"):
            load_dataset(source, "val")


def test_results_are_read_only_copies() -> None:
    images, labels = GREY.copy(), LABELS.copy()
    data = load_dataset((images[:, None], labels))
    images[:], labels[:] = 0, 0
    np.testing.assert_array_equal(data.images[:, 0], GREY)
    assert data.labels.tolist() == LABELS.tolist()
    for array in data[:2]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    images[0] = 1  # the caller's own array stays writable
    assert load_dataset(data) is data


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "cifar",
            "dataset must be one of digits, mnist, .*, a folder of .* got 'cifar', and there is no such path",
        ),
        (3, "dataset must be one of .* a pair .* or a map-style dataset, got int"),
        (None, "dataset must be one of .*, got NoneType"),
        (iter([(GREY[0], 0)]), "dataset must be one of .*, got list_iterator"),
        ((GREY[0], [0]), r"images must be \(N, H, W\), .* got shape \(4, 6\)"),
        ((GREY[..., None].repeat(4, -1), LABELS), r"with 1 or 3 channels, got shape \(5, 4, 6, 4\)"),
        ((COLOUR[None], LABELS), r"got shape \(1, 5, 3, 4, 6\)"),
        ((GREY / 255.0 + 0.01, LABELS), r"float images must lie in \[0, 1\]; scale them"),
        ((GREY / 255.0 - 0.01, LABELS), r"float images must lie in \[0, 1\]"),
        ((GREY * np.nan, LABELS), r"float images must lie in \[0, 1\]"),
        ((GREY.astype(float), LABELS), r"float images must lie in \[0, 1\]"),
        ((GREY.astype(np.int16) - 1, LABELS), r"images must be uint8 in \[0, 255\] .* got int16, -1 to"),
        ((GREY.astype(np.int16) + 1, LABELS), r"images must be uint8 in \[0, 255\] .* got int16, .* to 256"),
        ((GREY.astype(str), LABELS), r"images must be uint8 in \[0, 255\] .* got dtype <U"),
        ((GREY.astype(np.int64) % 2, LABELS), "images of 0 and 1 must be bool or floats, got int64"),
        ((GREY[:0], LABELS[:0]), r"images must hold at least one, got shape \(0, "),
        ((GREY, LABELS + 2**31), r"labels must be integers in \[0, 2\^31\), got"),
        ((GREY.astype(object), LABELS), "got dtype object"),
        ((GREY, LABELS[:4]), r"labels must have shape \(5,\), one an image, got \(4,\)"),
        ((GREY, LABELS[:, None]), r"labels must have shape \(5,\), one an image, got \(5, 1\)"),
        ((GREY, LABELS - 1), r"labels must be integers in \[0, 2\^31\), got -1 to"),
        ((GREY, LABELS / 1.0), "labels must be integers from 0 on, got dtype float64"),
        ((GREY, LABELS > 0), "labels must be integers from 0 on, got dtype bool"),
        (Pairs([]), "dataset is empty"),
        (Pairs([(GREY[0], 0), (GREY[1, :2], 0)]), r"image 1 has shape \(2, 6\), image 0 \(4, 6\); make them equal"),
        (Pairs([(GREY[0], 0), (GREY[1], 0, 0)]), r"dataset item 1 must be a pair \(image, label\)"),
        (Pairs([(GREY[0], -1)]), r"labels must be integers in \[0, 2\^31\), got -1 to -1"),
    ],
)
def test_what_does_not_fit_is_named(source: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(source)


def test_digits_splits_are_shared_and_partition_the_images_of_scikit_learn() -> None:
    digits = load_digits()
    places = {"train": (0, 1, 2, 3, 4, 5), "validation": (6, 7), "test": (8, 9)}
    seen = []
    for split, size in (("train", 1080), ("validation", 359), ("test", 358)):
        rows = [row for row in range(1797) if row % 10 in places[split]]
        data = load_dataset("digits", split)
        assert (data.images.shape, data.images.dtype, data.num_classes) == ((size, 1, 28, 28), np.uint8, 10)
        assert not data.images.flags.writeable | data.labels.flags.writeable
        assert load_dataset("digits", split) is data
        assert data.labels.tolist() == digits.target[rows].tolist()
        # Shrunk again, each image is nearest to the one of scikit-learn's that it was enlarged from.
        pictures = [Image.fromarray(image[0]).resize((8, 8), Image.Resampling.BOX) for image in data.images]
        small = np.stack([np.asarray(picture, float).ravel() for picture in pictures]) / 255 * 16
        distances = (small**2).sum(1)[:, None] - 2 * small @ digits.data.T + (digits.data**2).sum(1)
        assert (distances.argmin(axis=1) == rows).mean() > 0.99
        seen += rows
    assert sorted(seen) == list(range(1797))
