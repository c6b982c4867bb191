"""What users hand over as a dataset, and what becomes of it."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.scripted import ScriptedPolicy
from ram_gym import (
    DatasetError,
    GlimpseEnv,
    GlimpseVectorEnv,
    arrays,
    evaluate,
    evaluate_all,
    get_task,
    load_dataset,
    write_report,
)

IMAGE = np.full((6, 6), 9, np.uint8)


class Pairs:
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


FORMS: dict[str, Any] = {
    "arrays": lambda images, labels: (images, labels),
    "other arrays": lambda images, labels: (images.copy(), labels.astype(np.int32)),
    "channels last": lambda images, labels: (images[..., None], labels),
    "floats": lambda images, labels: (images / 255, labels),
    "tensors": lambda images, labels: (torch.from_numpy(images), torch.from_numpy(labels)),
    "lists": lambda images, labels: [images.astype(int).tolist(), labels.tolist()],
    "pairs": Pairs,
    "splits": lambda images, labels: {"train": (images, labels), "test": (images[:2], labels[:2])},
}


def test_environments_share_one_copy_of_the_same_images(small_images: tuple) -> None:
    images, labels = (array.copy() for array in small_images)
    given = {name: make(images, labels) for name, make in FORMS.items()}
    envs = {name: GlimpseEnv(dataset=value, patch_size=4) for name, value in given.items()}
    data = {name: env._data for name, env in envs.items()}
    first = data["arrays"]
    for name, other in data.items():
        assert np.shares_memory(first.images, other.images), name
        assert np.shares_memory(first.labels, other.labels), name
    np.testing.assert_array_equal(first.images[:, 0], images)
    assert not np.shares_memory(first.images, images)
    assert not np.shares_memory(first.images, load_dataset((images[::-1], labels)).images)
    assert not np.shares_memory(first.images, load_dataset((images.reshape(20, 5, 6), labels)).images)


def test_a_later_change_of_the_callers_images_changes_new_environments_alone(small_images: tuple) -> None:
    images, labels = (array.copy() for array in small_images)
    options: dict[str, Any] = {"dataset": (images, labels), "canvas_size": 6, "patch_size": 4}
    old = GlimpseEnv(**options)
    images[0] = 255 - images[0]
    labels[0] = 4
    new = GlimpseEnv(**options)
    seen = {}
    for name, env in (("old", old), ("new", new)):
        env.reset(options={"index": 0})
        seen[name] = env.canvas[0], env.label
    np.testing.assert_array_equal(seen["old"][0][:, :5].max(), small_images[0][0].max())
    assert (seen["old"][1], seen["new"][1]) == (0, 4)
    assert np.array_equal(np.sort(old._data.images[0], None), np.sort(small_images[0][0], None))
    np.testing.assert_array_equal(new._data.images[0, 0], images[0])


def test_images_that_nobody_uses_are_forgotten(small_images: tuple) -> None:
    before = set(arrays._copies)
    env = GlimpseEnv(dataset=(small_images[0] // 2, small_images[1]), patch_size=4)
    assert set(arrays._copies) > before
    del env
    gc.collect()
    assert set(arrays._copies) <= before


@pytest.mark.parametrize("label", [0.7, 1.0, "3", "cat", None, [0, 1], np.array([1, 0])])
def test_labels_that_are_no_integers_are_refused_not_rounded(label: Any) -> None:
    with pytest.raises(DatasetError, match="item 2"):
        load_dataset([(IMAGE, 0), (IMAGE, 1), (IMAGE, label)])


@pytest.mark.parametrize("label", [1, np.int64(1), np.array(1), torch.tensor(1), np.uint8(1)])
def test_integers_of_every_kind_are_labels(label: Any) -> None:
    assert load_dataset([(IMAGE, 0), (IMAGE, label), (IMAGE, 0)]).labels.tolist() == [0, 1, 0]


def test_two_pairs_are_a_dataset_of_two_images() -> None:
    data = load_dataset([(IMAGE, 0), (IMAGE + 1, 1)])
    assert data.images[:, 0, 0, 0].tolist() == [9, 10]
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 6, 6), np.uint8), np.array(["a", "b"]), "integers"),
        (np.zeros((2, 6, 6), np.uint8), np.array([0, 2**40]), r"integers in \[0, 2\^31\)"),
        ([np.zeros((6, 6)), np.zeros((5, 6))], [0, 1], "one array"),
        (np.zeros((2, 6, 6), np.uint8), [[0], [1, 2]], "one array"),
    ],
)
def test_arrays_that_make_no_sense_are_one_clear_error(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset((images, labels))


def test_tensors_are_taken_even_with_gradients() -> None:
    images = torch.rand(3, 6, 6, requires_grad=True)
    data = load_dataset((images, torch.arange(3)))
    np.testing.assert_array_equal(data.images[:, 0], np.rint(images.detach().numpy() * 255))
    pairs = load_dataset([(image, torch.tensor(0)) for image in images])
    np.testing.assert_array_equal(pairs.images, data.images)


def test_all_splits_of_a_mapping_have_one_action_space() -> None:
    images = np.stack([IMAGE] * 4)
    splits = {"train": (images, [0, 1, 2, 3]), "test": (images, [0, 1, 0, 1]), "validation": load_dataset("digits")}
    for split in splits:
        assert load_dataset(splits, split).num_classes == 10
    assert GlimpseEnv(dataset=splits, split="test", canvas_size=28).action_space["label"].n == 10


def test_much_clutter_is_clipped_to_white() -> None:
    white = (np.full((2, 8, 8), 255, np.uint8), [0, 1])
    for count in (127, 128, 300):
        fields: dict[str, Any] = {"dataset": white, "canvas_size": 9, "clutter_size": 8, "num_clutter": count}
        single, vector = GlimpseEnv(**fields), GlimpseVectorEnv(2, **fields)
        single.reset(seed=0)
        vector.reset(seed=0)
        assert single.canvas.max() == vector.canvases.max() == 255
        assert sorted(set(single.canvas.ravel().tolist())) == [255]


def test_seeds_have_one_bound_and_an_empty_mask_is_refused() -> None:
    single, vector = GlimpseEnv(dataset="digits"), GlimpseVectorEnv(2, dataset="digits")
    single.reset(seed=2**62 - 1)
    vector.reset(seed=2**62 - 1)
    for env in (single, vector):
        with pytest.raises(ValueError, match="seed"):
            env.reset(seed=2**62)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="True somewhere"):
        vector.reset(options={"reset_mask": np.zeros(2, bool)})


def test_ready_scenes_on_a_cluttered_task_warn_and_have_no_distance_to_the_digit(tmp_path: Path) -> None:
    scenes = (np.random.default_rng(0).integers(0, 256, (6, 60, 60), dtype=np.uint8), np.arange(6) % 3)
    options: dict[str, Any] = {"output": "torch", "autoreset_mode": "Disabled"}
    cluttered = get_task("cluttered-60").config
    with pytest.warns(UserWarning, match="fill the canvas of 60x60 pixels, and num_clutter=4 adds clutter"):
        GlimpseEnv(cluttered, dataset=scenes)
    plain = cluttered.replace(num_clutter=0, num_glimpses=2, split="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = GlimpseVectorEnv(3, plain, dataset=scenes, **options)
    table = evaluate_all([lambda env: ScriptedPolicy("centre", env)], {"mine": env})
    (evaluation,) = table.by_task["mine"].values()
    assert evaluation.digit_locations is None
    assert evaluation.to_dict()["distance_by_glimpse_pixels"] is None
    assert evaluation.subset(torch.arange(6) < 2).distance_by_glimpse_pixels is None
    assert "from the image's centre" not in table.to_text()
    assert "distance" not in table.to_csv()
    write_report(tmp_path / "report.html", table, envs={"mine": env})
    text = (tmp_path / "report.html").read_text()
    for word in ("Distance from the image", "green cross", 'class="centre"'):
        assert word not in text
    # A smaller image, and a named dataset whose images are digits in their middle, have distances.
    for other in (plain.replace(canvas_size=61), plain.replace(canvas_size=28, dataset="digits")):
        data = scenes if other.dataset == "mnist" else None
        env = GlimpseVectorEnv(3, other, dataset=data, **options)
        distances = evaluate(ScriptedPolicy("centre", env), env, episodes=6).distance_by_glimpse_pixels
        assert distances is not None
        assert distances[1] == pytest.approx(0, abs=0.8)  # half a pixel off the centre, each way
