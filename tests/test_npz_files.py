"""Images and labels in .npz files: what is read from them, how they are split, and what is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ram_gym import DatasetError, GlimpseEnv, load_dataset

SPLITS = ("train", "validation", "test")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 6, 7), dtype=np.uint8)
LABELS = np.arange(60) % 3
NAMES = np.array(["ant", "bee", "cat"])
WHOLE = {"images": IMAGES, "labels": LABELS}
SPLIT: dict[str, Any] = {
    "images": IMAGES[:40],
    "labels": LABELS[:40],
    "images_validation": IMAGES[40:50],
    "labels_validation": LABELS[40:50],
    "images_test": IMAGES[50:],
    "labels_test": LABELS[50:],
}


def write(path: Path, content: dict[str, Any]) -> Path:
    np.savez_compressed(path, **content)
    return path


def test_all_splits_are_as_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.npz", {**SPLIT, "class_names": NAMES})
    for split, kept in zip(SPLITS, (slice(40), slice(40, 50), slice(50, None)), strict=True):
        data = load_dataset(path, split)
        np.testing.assert_array_equal(data.images[:, 0], IMAGES[kept])
        np.testing.assert_array_equal(data.labels, LABELS[kept])
        assert (data.num_classes, data.class_names) == (3, ("ant", "bee", "cat"))
        assert data.images is load_dataset(str(path), split).images
        assert not data.images.flags.writeable
    assert GlimpseEnv(dataset=path, patch_size=4).class_names == ("ant", "bee", "cat")
    assert capfd.readouterr().err == ""


def test_what_is_not_split_is_shared_out_by_content(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Worked out again: of the 20 images of each class, sorted by SHA-256, two test and the next two validate."""
    path = write(tmp_path / "a.npz", WHOLE)
    expected: dict[str, list[int]] = {split: [] for split in SPLITS}
    for label in range(3):
        own = [index for index in range(60) if LABELS[index] == label]
        own.sort(key=lambda index: hashlib.sha256(IMAGES[index].tobytes()).hexdigest())
        expected["test"] += own[:2]
        expected["validation"] += own[2:4]
        expected["train"] += own[4:]
    for split in SPLITS:
        data = load_dataset(path, split)
        np.testing.assert_array_equal(data.images[:, 0], IMAGES[sorted(expected[split])])
        np.testing.assert_array_equal(data.labels, LABELS[sorted(expected[split])])
        assert (data.num_classes, data.class_names) == (3, None)
        assert not data.images.flags.writeable
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("a tenth of each class is set aside for each, always the same: 48 train, 6 validation, 6 test")


def test_all_splits_have_the_classes_of_any(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {**SPLIT, "labels_test": LABELS[50:] + 2})
    assert {load_dataset(path, split).num_classes for split in SPLITS} == {5}
    names = np.array([*NAMES, "dog", "elk", "fox"])
    path = write(tmp_path / "b.npz", {**SPLIT, "labels_test": LABELS[50:] + 2, "class_names": names})
    assert {load_dataset(path, split).num_classes for split in SPLITS} == {6}
    assert load_dataset(path).class_names == tuple(names)


def test_sizes_may_differ_between_splits_where_images_are_resized(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {**SPLIT, "images_test": IMAGES[50:, :5]})
    with pytest.raises(DatasetError, match=r"a\.npz: images of all splits must have one size, or get it by image_size"):
        load_dataset(path)
    assert {load_dataset(path, split, image_size=4).images.shape[1:] for split in SPLITS} == {(1, 4, 4)}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", SPLIT)
    assert load_dataset(path).images[0, 0, 0, 0] == IMAGES[0, 0, 0]
    write(path, {**SPLIT, "images": 255 - IMAGES[:40]})
    os.utime(path, ns=(0, 0))
    assert load_dataset(path).images[0, 0, 0, 0] == 255 - IMAGES[0, 0, 0]


@given(arrays.arrays(np.uint8, st.tuples(st.integers(4, 40), st.just(3), st.just(2), st.just(2))), st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_is_written_comes_back(tmp_path_factory: Any, images: np.ndarray, data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(images), max_size=len(images))))
    labels[:2] = 0, 1
    split = {key.replace("images", "").replace("labels", ""): None for key in SPLIT}
    content = {f"images{end}": images for end in split} | {f"labels{end}": labels for end in split}
    path = write(tmp_path_factory.mktemp("npz") / "a.npz", content)
    for name in SPLITS:
        found = load_dataset(path, name)
        np.testing.assert_array_equal(found.images, images)
        np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x_train": IMAGES}, "must hold images and labels of each split, and holds x_train"),
        ({}, "must hold images and labels of each split, and holds nothing"),
        ({"images": IMAGES}, "must hold images and labels of each split, and holds images"),
        ({**WHOLE, "images_test": IMAGES}, "must hold images and labels of each split, and holds images_test"),
        ({**WHOLE, "image_test": IMAGES}, "may hold images, labels, .* and class_names, and holds image_test too"),
        ({**WHOLE, "labels": LABELS * 0}, "must hold images of at least two classes, and holds one"),
        ({**WHOLE, "labels": LABELS[:9]}, r", images: labels must have shape \(60,\), one an image, got \(9,\)"),
        ({**WHOLE, "images": IMAGES.astype(np.uint16) * 9}, ", images: images must be uint8 in"),
        ({**WHOLE, "labels": np.array(["a", "b", "c"] * 20)}, ", images: labels must be integers from 0 on, got dtype"),
        ({**WHOLE, "class_names": NAMES[:2]}, r": class_names must be 3 or more different strings, got \(2,\) of <U3"),
        ({**WHOLE, "class_names": NAMES[[0, 0, 1]]}, ": class_names must be 3 or more different strings"),
        ({**WHOLE, "class_names": np.arange(3)}, ": class_names must be 3 or more different strings, got .* of int64"),
        ({**WHOLE, "class_names": NAMES.astype(object)}, " cannot be read: Object arrays cannot be loaded when allow_"),
        ({"images": IMAGES[:3], "labels": LABELS[:3]}, " has 1 different images of class 0, too few for test and vali"),
        (
            {**SPLIT, "images_test": IMAGES[50:, None].repeat(3, 1)},
            ": images of all splits must have the same number of channels, got {'train': 1, 'validation': 1, .*: 3}",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_file(content: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", content)
    with pytest.raises(DatasetError, match=f"^{path}{' ' * message.startswith('m')}{message}") as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"no archive"])
def test_a_broken_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.NPZ"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{path} cannot be read: "):
        load_dataset(path)
    other = tmp_path / "a.npy"
    np.save(other, IMAGES)
    with pytest.raises(DatasetError, match=f"got '{other}', which is neither a folder nor an .npz file"):
        load_dataset(other)
