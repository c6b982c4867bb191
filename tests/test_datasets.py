from __future__ import annotations

import struct
from collections import UserList
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ram_gym import DatasetError, GlimpseEnv, load_dataset

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
GREY[0, 0, :2] = 0, 255
COLOUR = RNG.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2, 0])
FILES = [f"{prefix}-{kind}-ubyte" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


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
    ],
    ids=["NHW", "N1HW", "NHW1", "NCHW", "NHWC", "int64", "lists", "bool", "tensor", "float tensor"],
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
        ("cifar", "dataset must be one of digits, mnist, fashion-mnist, kmnist or your own images, got 'cifar'"),
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


def write_idx(path: Path, count: int) -> None:
    """An IDX file; image i is filled with i % 251 and label i is i % 10, so that splits can be told apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(count)
    if "images" in path.name:
        header, content = struct.pack(">4i", 0x803, count, 28, 28), np.repeat((numbers % 251).astype(np.uint8), 784)
    else:
        header, content = struct.pack(">2i", 0x801, count), numbers % 10
    path.write_bytes(header + content.astype(np.uint8).tobytes())


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torchvision asks the network for; a stand-in serves it."""
    asked: list[str] = []

    def serve(url: str, download_root: str, filename: str, md5: str) -> None:
        asked.append(url)
        write_idx(Path(download_root, filename.removesuffix(".gz")), 60_000 if "train" in filename else 10_000)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", serve)
    return asked


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)


def test_what_is_missing_is_downloaded_once_and_split(fetched: list[str], tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 50_000), ("validation", 50_000, 10_000), ("test", 0, 10_000)):
        data = load_dataset("kmnist", split, tmp_path)
        numbers = np.arange(first, first + count)
        assert (data.images.shape, data.images.dtype) == ((count, 1, 28, 28), np.uint8)
        np.testing.assert_array_equal(data.images[:, 0, 13, 27], numbers % 251)
        np.testing.assert_array_equal(data.labels, numbers % 10)
        assert not data.images.flags.writeable
        assert load_dataset("kmnist", split, str(tmp_path)) is data
        assert len(fetched) == 4


@pytest.mark.parametrize("by_argument", [True, False])
def test_the_folder_is_an_argument_or_a_variable(
    by_argument: bool, fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    monkeypatch.setenv("RAM_GYM_DATA", str(wrong if by_argument else right))
    env = GlimpseEnv(dataset="kmnist", split="test", data_root=str(right) if by_argument else None)
    env.reset(options={"index": 258})
    assert (env.canvas == 7).all()
    assert env.label == 8
    assert not wrong.exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"], ids="name={}".format)
def test_without_network_one_error_says_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        GlimpseEnv(dataset=name, split="test", data_root=str(tmp_path))
    message = str(caught.value)
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}[name]
    assert message.startswith(f"dataset {name!r} is not in {tmp_path / folder / 'raw'} and could not be downloaded")
    assert f'\n    python -c "import ram_gym; ram_gym.load_dataset({name!r}, data_root={str(tmp_path)!r})"\n' in message
    for word in ("Name or service not known", "RAM_GYM_DATA", "RamGym/Digits-v0"):
        assert word in message
    assert GlimpseEnv(dataset="digits", data_root=str(tmp_path)).reset(seed=0)[0]["glimpse"].shape == (1, 8, 8)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: content[:7] + b"\0" + content[8:],
        lambda content: b"<html>" + content,
    ],
    ids=["cut", "too long", "empty", "another count", "no IDX"],
)
def test_damaged_files_are_named(damage: Callable[[bytes], bytes], file: str, tmp_path: Path) -> None:
    raw = tmp_path / "KMNIST" / "raw"
    for name in FILES:
        write_idx(raw / name, 10_000 if "t10k" in name else 1)
    (raw / file).write_bytes(damage((raw / file).read_bytes()))
    with pytest.raises(DatasetError, match=f"{raw} is damaged: .*Remove it, so that it is downloaded again"):
        load_dataset("kmnist", "test", tmp_path)


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_too_few_images_are_damage(split: str, count: int, tmp_path: Path) -> None:
    for name in FILES:
        write_idx(tmp_path / "KMNIST" / "raw" / name, 70)
    with pytest.raises(DatasetError, match=rf"damaged: expected {count} images .* got \(70, 28, 28\)"):
        load_dataset("kmnist", split, tmp_path)


def test_well_formed_files_that_are_not_mnist_are_damage(fetched: list[str], tmp_path: Path) -> None:
    # The first twice: a failure is not remembered as a success.
    for split, prefix in (("test", "t10k"), ("test", "t10k"), ("train", "train")):
        with pytest.raises(DatasetError, match=f"{prefix}-images-idx3-ubyte is damaged: its md5 is not the published"):
            load_dataset("mnist", split, tmp_path)


@pytest.mark.mnist
@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_one_flipped_bit_in_mnist_is_found(file: str, mnist_root: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        content = bytearray(Path(mnist_root, "MNIST", "raw", name).read_bytes())
        content[5_000] ^= name == file
        (raw / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{file} is damaged: its md5 is not the published one. Remove it"):
        load_dataset("mnist", "test", tmp_path)


@pytest.mark.mnist
@pytest.mark.parametrize(
    ("split", "prefix", "kept", "counts"),
    [
        ("train", "train", slice(50_000), [4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988]),
        ("validation", "train", slice(50_000, None), [991, 1064, 990, 1030, 983, 915, 967, 1090, 1009, 961]),
        ("test", "t10k", slice(None), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist_splits(split: str, prefix: str, kept: slice, counts: list[int], mnist_root: str) -> None:
    raw = Path(mnist_root, "MNIST", "raw")
    images = np.frombuffer((raw / f"{prefix}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((raw / f"{prefix}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    data = load_dataset("mnist", split, mnist_root)
    assert np.array_equal(data.images, images.reshape(-1, 1, 28, 28)[kept])
    assert np.array_equal(data.labels, labels[kept])
    assert len(data.labels) == (50_000 if split == "train" else 10_000)
    assert np.bincount(data.labels).tolist() == counts
