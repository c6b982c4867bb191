"""Folders of images: what is read from them, how they are split, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from ram_gym import Dataset, DatasetError, GlimpseConfig, GlimpseEnv, GlimpseVectorEnv, has_dataset, load_dataset
from ram_gym.arrays import set_aside
from tests.shapes import NAMES, write_shapes

SPLITS = ("train", "validation", "test")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "shapes", 20, side=12)


def rows(data: Dataset) -> Counter[tuple[bytes, int]]:
    return Counter((image.tobytes(), int(label)) for image, label in zip(data.images, data.labels, strict=True))


def expected_rows(folder: Path) -> Counter[tuple[bytes, int]]:
    """As torchvision reads it."""
    pairs = ImageFolder(str(folder))
    return Counter((np.asarray(image).transpose(2, 0, 1).tobytes(), label) for image, label in pairs)


def save(path: Path, pixels: np.ndarray | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), 7, np.uint8) if pixels is None else pixels).save(path, **options)


def test_a_folder_of_splits_holds_what_torchvision_reads(tmp_path: Path) -> None:
    for number, (name, each) in enumerate({"train": 6, "val": 3, "test": 2}.items()):
        write_shapes(tmp_path / name, each, seed=number, side=10)
    (tmp_path / "train" / "circle" / "more").mkdir()
    save(tmp_path / "train" / "circle" / "more" / "LAST.PNG", np.full((10, 10, 3), 3, np.uint8))
    (tmp_path / "train" / "circle" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    for split, name in zip(SPLITS, ("train", "val", "test"), strict=True):
        data = load_dataset(tmp_path, split)
        assert rows(data) == expected_rows(tmp_path / name)
        assert (data.images.dtype, data.labels.dtype, data.images.shape[1:]) == (np.uint8, np.int64, (3, 10, 10))
        assert (data.num_classes, data.class_names) == (4, NAMES)
        assert not data.images.flags.writeable | data.labels.flags.writeable
        assert load_dataset(str(tmp_path), split) is data
        # The first images are of all classes, so that a few scenes show something of each.
        assert sorted(data.labels[:4]) == [0, 1, 2, 3] == sorted(data.labels[4:8])
    images, labels, num_classes = load_dataset(tmp_path)
    assert (len(images), len(labels), num_classes) == (25, 25, 4)


def test_a_folder_without_splits_is_shared_out_by_content(shapes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Worked out again: of each class, sorted by SHA-256, the first tenth tests and the next one validates."""
    parts = {split: load_dataset(shapes, split) for split in SPLITS}
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"ram_gym: {shapes} has no validation and no test images, so a tenth of each class is set aside for each, "
        "always the same: 64 train, 8 validation, 8 test"
    )
    expected: dict[str, Counter[tuple[bytes, int]]] = {split: Counter() for split in SPLITS}
    for label, name in enumerate(NAMES):
        files = sorted((shapes / name).iterdir(), key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
        for place, path in enumerate(files):
            split = "test" if place < 2 else "validation" if place < 4 else "train"
            expected[split][np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(), label] += 1
    assert {split: rows(data) for split, data in parts.items()} == expected
    # Names and order of the files do not matter.
    other = shapes.parent / "other"
    for name in NAMES:
        (other / name).mkdir(parents=True)
        for path in (shapes / name).iterdir():
            shutil.copy(path, other / name / f"{hash(path.name) % 10**9}.png")
    for split, data in parts.items():
        assert rows(load_dataset(other, split)) == rows(data)


@pytest.mark.parametrize(
    ("folders", "counts"),
    [(("train", "test"), (36, 4, 8)), (("train", "validation"), (36, 8, 4)), (("train",), (32, 4, 4))],
)
def test_only_splits_that_are_missing_are_set_aside(
    folders: tuple[str, ...], counts: tuple[int, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(folders):
        write_shapes(tmp_path / name, 10 if name == "train" else 2, seed=number, side=9)
    parts = [load_dataset(tmp_path, split) for split in SPLITS]
    assert tuple(len(data.labels) for data in parts) == counts
    for data in parts:
        assert set(np.bincount(data.labels, minlength=4)) == {len(data.labels) // 4}
    lacking = [split for split in SPLITS if split not in folders]
    assert f"has no {' and no '.join(lacking)} images, so" in capfd.readouterr().err


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_shares_partition_the_images_and_keep_copies_together(pairs: list[tuple[int, int]], both: bool) -> None:
    labels, keys = np.array([label for label, _ in pairs]), np.array([key for _, key in pairs], np.uint64)
    lacking = ("validation", "test") if both else ("validation",)
    different = {label: sorted(set(keys[labels == label].tolist())) for label in set(labels.tolist())}
    if min(map(len, different.values())) <= len(lacking):
        with pytest.raises(DatasetError, match="too few for"):
            set_aside(Path("x"), labels, keys, lacking, None)
        return
    shares = set_aside(Path("x"), labels, keys, lacking, None)
    assert sorted(np.concatenate(list(shares.values())).tolist()) == list(range(len(labels)))
    for label, own in different.items():
        tenth = max(1, len(own) // 10)
        taken = 0
        for split in ("test", "validation"):
            if split in lacking:
                places = shares[split][labels[shares[split]] == label]
                assert set(keys[places].tolist()) == set(own[taken : taken + tenth])
                taken += tenth


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    grey = write_shapes(tmp_path / "grey", 5, side=9, mode="L")
    data = load_dataset(grey)
    assert data.images.shape == (12, 1, 9, 9)
    everything = {np.asarray(Image.open(path)).tobytes() for path in grey.rglob("*.png")}
    assert {image.tobytes() for image in data.images} <= everything
    (grey / "circle" / "00000.png").unlink()
    save(grey / "circle" / "colour.png", np.full((9, 9, 3), (1, 2, 3), np.uint8))
    mixed = [load_dataset(grey, split).images for split in SPLITS]
    assert {images.shape[1] for images in mixed} == {3}
    is_grey = [bool((image == image[:1]).all()) for images in mixed for image in images]
    assert (sum(is_grey), len(is_grey)) == (19, 20)


def test_other_modes_that_hold_8_bits_of_grey_or_colours_are_taken(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pictures = {
        "RGB.png": Image.fromarray(pixels),
        "RGBA.png": Image.fromarray(pixels).convert("RGBA"),
        "P.png": Image.fromarray(pixels).quantize(64),
        "1.png": Image.fromarray(pixels[..., 0] > 127),
        "LA.png": Image.fromarray(pixels[..., 1]).convert("LA"),
        "CMYK.tiff": Image.fromarray(pixels).convert("CMYK"),
    }
    for folder in ("train/a", "test/a", "validation/a", "train/b"):
        (tmp_path / folder).mkdir(parents=True)
    for name, picture in pictures.items():
        picture.save(tmp_path / "train" / "a" / name)
    for name in ("train/b", "test/a", "validation/a"):
        save(tmp_path / name / "x.png", pixels)
    data = load_dataset(tmp_path)
    expected = [np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for _, picture in sorted(pictures.items())]
    np.testing.assert_array_equal(data.images[data.labels == 0], expected)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    for name in ("a", "b"):
        for split in SPLITS:
            save(tmp_path / split / name / "x.png", pixels, exif=exif)
    np.testing.assert_array_equal(load_dataset(tmp_path).images[0, 0], np.rot90(pixels, -1))


def test_images_are_resized_as_pillow_resizes_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = ((9, 13), (20, 7), (6, 6), (31, 30))
    for number, (height, width) in enumerate(sizes):
        for split in SPLITS:
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            save(tmp_path / split / "ab"[number % 2] / f"{number}.png", pixels)
    with pytest.raises(DatasetError) as caught:
        load_dataset(tmp_path)
    first, other = tmp_path / "train" / "a" / "0.png", tmp_path / "train" / "b" / "1.png"
    expected = f"{other} has 20x7 pixels, {first} has 9x13: give image_size (--image-size), which resizes all images"
    assert str(caught.value) == expected
    data = load_dataset(tmp_path, image_size=6)
    for place, number in enumerate((0, 1, 2, 3)):
        picture = Image.open(tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
        small = np.asarray(picture.resize((6, 6), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(data.images[place], small)
    # Arrays and named datasets too, and means stay.
    digits = load_dataset("digits", "test")
    small_digits = load_dataset("digits", "test", image_size=14)
    assert small_digits.images.shape == (358, 1, 14, 14)
    halves = digits.images.reshape(358, 1, 14, 2, 14, 2).mean((3, 5))
    assert abs(small_digits.images - halves).mean() < 6
    assert abs(small_digits.images.mean() - digits.images.mean()) < 0.5
    assert load_dataset("digits", "test", image_size=28) is digits
    pair = load_dataset((digits.images, digits.labels), image_size=14)
    assert np.shares_memory(pair.images, load_dataset((digits.images.copy(), digits.labels), image_size=14).images)
    np.testing.assert_array_equal(pair.images, small_digits.images)


def test_a_changed_folder_is_read_again_and_environments_keep_what_they_have(shapes: Path) -> None:
    old = GlimpseEnv(dataset=shapes, canvas_size=12)
    before = load_dataset(shapes)
    save(shapes / "circle" / "00000.png", np.full((12, 12, 3), 99, np.uint8))
    save(shapes / "circle" / "new.png", np.full((12, 12, 3), 98, np.uint8))
    parts = [load_dataset(shapes, split) for split in SPLITS]
    assert sum(len(data.images) for data in parts) == 81
    assert {98, 99} <= {int(image.max()) for data in parts for image in data.images}
    assert old._data is before


def test_environments_show_a_folder_and_its_copies_find_it(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(shapes.parent)
    options: dict[str, Any] = {"dataset": "shapes", "canvas_size": 20, "image_size": 12}
    options |= {"num_scales": 2, "patch_size": 4}
    single = gym.make("RamGym/Glimpse-v0", split="test", **options).unwrapped
    assert isinstance(single, GlimpseEnv)
    vector = GlimpseVectorEnv(3, split="test", render_mode="rgb_array", **options)
    assert single.class_names == vector.class_names == NAMES
    assert single.config.dataset == vector.config.dataset == str(shapes)
    assert single.action_space["label"].n == 4  # type: ignore[index]
    assert single.observation_space["glimpse"].shape == (6, 4, 4)  # type: ignore[index]
    monkeypatch.chdir(tmp_path.parent)
    copy = pickle.loads(pickle.dumps(single))
    data = load_dataset(shapes, "test")
    observation, _ = vector.reset(seed=5)
    for lane, env in enumerate((single, copy)):
        alone, _ = env.reset(seed=5 + lane)
        np.testing.assert_array_equal(alone["glimpse"], observation["glimpse"][lane])
        np.testing.assert_array_equal(env.canvas, vector.canvases[lane].numpy())
    single.reset(options={"index": 3, "scene_seed": 0})
    left, top = ((single.digit_location + 1) * 10 - 6).round().astype(int)
    np.testing.assert_array_equal(single.canvas[:, top : top + 12, left : left + 12], data.images[3])
    assert single.canvas.sum() == data.images[3].sum()
    assert len(vector.render() or ()) == 3


def test_a_config_stands_for_its_dataset(shapes: Path) -> None:
    config = GlimpseConfig(dataset=str(shapes), image_size=5, split="validation")
    assert load_dataset(config) is load_dataset(shapes, "validation", image_size=5)
    assert load_dataset(config, "test") is load_dataset(shapes, "test", image_size=5)
    assert has_dataset(str(shapes))
    assert not has_dataset(str(shapes / "none"))


def empty_a_class(root: Path) -> None:
    for path in (root / "square").iterdir():
        path.unlink()


def one_class(root: Path) -> None:
    for name in NAMES[1:]:
        shutil.rmtree(root / name)


def as_splits(*names: str) -> Callable[[Path], None]:
    def move(root: Path) -> None:
        for name in NAMES:
            for split in names:
                shutil.copytree(root / name, root / split / name)
            shutil.rmtree(root / name)

    return move


def with_test_class(root: Path) -> None:
    as_splits("train", "test")(root)
    (root / "test" / "square").rename(root / "test" / "star")


def with_third_folder(root: Path) -> None:
    as_splits("train", "test")(root)
    (root / "extra").mkdir()


def few(root: Path) -> None:
    for path in sorted((root / "cross").iterdir())[2:]:
        path.unlink()


def to_file(**options: Any) -> Callable[[Path], None]:
    picture = Image.fromarray(**options)

    def replace(root: Path) -> None:
        picture.save(root / "circle" / "00003.png")

    return replace


def with_palette(root: Path) -> None:
    palette = Image.open(root / "circle" / "00000.png").quantize(4)
    palette.save(root / "circle" / "00003.png", transparency=0)


def deep_colours(root: Path) -> None:
    """A PNG file of 16-bit colours, which Pillow opens as 8-bit RGB."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)
    lines = (b"\0" + bytes(range(72))) * 12
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (root / "circle" / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)


FULL = np.full((12, 12, 4), 255, np.uint8)
HALF = np.where(np.arange(4) < 3, FULL, 128).astype(np.uint8)
FILE = "{root}/circle/00003.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "dataset must be one of .*, got '{root}', and there is no such path"),
        (empty_a_class, "{root}/square holds no images \\(.bmp, .*\\)"),
        (one_class, "{root} must hold at least two classes, and holds circle only"),
        (lambda root: [shutil.rmtree(root / name) for name in NAMES], "{root} must hold a folder of images for each "),
        (as_splits("val", "test"), "{root} has test, val, and no train with a folder per class"),
        (as_splits("train", "val", "validation"), "{root} has both val and validation; leave one of them"),
        (with_test_class, "{root}/test/star is a class that {root}/train does not have"),
        (with_third_folder, "{root}/extra is none of train, validation, val, test, which the folders beside it are"),
        (few, "{root} has 2 different images of class cross, too few for test and validation images too: add some"),
        (lambda root: (root / "circle/00003.png").write_bytes(b"GIF"), f"{FILE} cannot be read: it is no image that "),
        (lambda root: (root / "circle/00003.png").write_bytes(b""), f"{FILE} cannot be read: it is no image that Pill"),
        (
            lambda root: (root / "circle/00003.png").write_bytes((root / "circle/00004.png").read_bytes()[:-40]),
            f"{FILE} cannot be read: ",
        ),
        (to_file(obj=np.zeros((12, 12), np.uint16)), f"{FILE} has 16 or more bits a channel; save it with 8"),
        (deep_colours, f"{FILE} has 16 or more bits a channel; save it with 8"),
        (to_file(obj=HALF, mode="RGBA"), f"{FILE} has transparent pixels; save it on a background, as grey or RGB"),
        (with_palette, f"{FILE} has transparent pixels; save it on a background, as grey or RGB"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_file(change: Any, message: str, shapes: Path) -> None:
    change(shapes)
    with pytest.raises(DatasetError, match=message.format(root=shapes)) as caught:
        load_all(shapes)
    assert "\n" not in str(caught.value)


def load_all(path: Path) -> None:
    for split in SPLITS:
        GlimpseEnv(dataset=path, split=split, canvas_size=12)


def test_an_opaque_picture_with_alpha_is_taken(shapes: Path) -> None:
    to_file(obj=FULL, mode="RGBA")(shapes)
    assert sum((load_dataset(shapes, split).images == 255).all((1, 2, 3)).sum() for split in SPLITS) == 1
