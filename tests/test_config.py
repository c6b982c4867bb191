from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_gym import EVALUATION_SCENE_SEED, TASKS, GlimpseConfig, GlimpseEnv, get_task

DEFAULTS = {
    "dataset": "mnist",
    "data_root": None,
    "split": "train",
    "canvas_size": 28,
    "num_clutter": 0,
    "clutter_size": 8,
    "composition": "add",
    "num_glimpses": 6,
    "patch_size": 8,
    "num_scales": 1,
    "scale_factor": 2,
    "scene_seed": None,
    "image_size": None,
}
LEAST = {
    "canvas_size": 1,
    "num_clutter": 0,
    "clutter_size": 1,
    "num_glimpses": 1,
    "patch_size": 1,
    "num_scales": 1,
    "scale_factor": 2,
    "scene_seed": 0,
    "image_size": 1,
}
# Canvas, glimpses, patch, scales, clutter pieces of every task.
TABLE = {
    "digits": ("digits", 28, 6, 8, 1, 0),
    "mnist-28": ("mnist", 28, 6, 8, 1, 0),
    "translated-60": ("mnist", 60, 8, 12, 3, 0),
    "cluttered-60": ("mnist", 60, 8, 12, 3, 4),
    "cluttered-100": ("mnist", 100, 8, 12, 4, 4),
    "cluttered-100x8": ("mnist", 100, 8, 12, 4, 8),
}
IDS = {
    "digits": "RamGym/Digits-v0",
    "mnist-28": "RamGym/MNIST-v0",
    "translated-60": "RamGym/TranslatedMNIST-v0",
    "cluttered-60": "RamGym/ClutteredMNIST-v0",
    "cluttered-100": "RamGym/ClutteredMNIST100-v0",
    "cluttered-100x8": "RamGym/ClutteredMNIST100x8-v0",
}


def valid_fields() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "dataset": st.text(max_size=10),
            "data_root": st.none() | st.text(max_size=10),
            "split": st.sampled_from(["train", "validation", "test"]),
            "canvas_size": st.integers(1, 1000),
            "num_clutter": st.integers(0, 20),
            "clutter_size": st.integers(1, 100),
            "composition": st.sampled_from(["add", "overwrite"]),
            "num_glimpses": st.integers(1, 100),
            "patch_size": st.integers(1, 50),
            "num_scales": st.integers(1, 4),
            "scale_factor": st.integers(2, 3),
            "scene_seed": st.none() | st.integers(0, 2**63 - 1),
            "image_size": st.none() | st.integers(1, 1000),
        },
    )


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(GlimpseConfig()) == DEFAULTS


def test_fields_are_keyword_only_and_frozen() -> None:
    with pytest.raises(TypeError):
        GlimpseConfig("digits")  # type: ignore[misc]
    config = GlimpseConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.canvas_size = 60  # type: ignore[misc]


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_least_value_passes_and_one_less_is_named(name: str, least: int) -> None:
    assert getattr(GlimpseConfig(**{name: least}), name) == least
    with pytest.raises(ValueError, match=rf"^{name} must be at least {least}, got {least - 1}$"):
        GlimpseConfig(**{name: least - 1})


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("value", [True, 8.0, "8", [8], float("nan")], ids=repr)
def test_only_ints_pass_for_numbers(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        GlimpseConfig(**{name: value})
    assert str(caught.value) == f"{name} must be an int, got {value!r}"


@pytest.mark.parametrize("name", [name for name in LEAST if name not in ("scene_seed", "image_size")])
def test_none_is_a_number_for_the_scene_seed_and_the_image_size_only(name: str) -> None:
    assert GlimpseConfig(scene_seed=None, image_size=None) == GlimpseConfig()
    with pytest.raises(TypeError, match=f"^{name} must be an int, got None$"):
        GlimpseConfig(**{name: None})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"dataset": 3}, TypeError, "dataset must be a name or a path (str), got int"),
        ({"dataset": None}, TypeError, "dataset must be a name or a path (str), got NoneType"),
        ({"data_root": 3}, TypeError, "data_root must be a folder's path or None, got 3"),
        ({"split": "valid"}, ValueError, "split must be one of train, validation, test, got 'valid'"),
        ({"split": None}, TypeError, "split must be a str, got None"),
        ({"composition": "max"}, ValueError, "composition must be one of add, overwrite, got 'max'"),
        ({"composition": None}, TypeError, "composition must be a str, got None"),
        ({"scene_seed": 2**63}, ValueError, f"scene_seed must be below 2**63, got {2**63}"),
    ],
)
def test_bad_fields_are_named_with_what_came(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        GlimpseConfig(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(("factor", "most"), [(2, 9), (3, 6), (4, 5), (16, 3), (256, 2), (257, 1)])
def test_scales_stop_where_float32_would_round(factor: int, most: int) -> None:
    # A block of `side` pixels sums to at most 255 side^2, which float32 holds exactly below 2^24: side <= 256.
    assert factor ** (most - 1) <= 256 < factor**most
    assert GlimpseConfig(patch_size=1, num_scales=most, scale_factor=factor).num_scales == most
    with pytest.raises(ValueError, match="use fewer scales or a smaller factor") as caught:
        GlimpseConfig(patch_size=1, num_scales=most + 1, scale_factor=factor)
    assert f"{most + 1} " in str(caught.value)
    assert f"factor {factor} " in str(caught.value)


def test_more_pixels_than_float32_sums_exactly_are_named() -> None:
    assert 255 * 4**8 < 2**24 < 255 * 4**9
    GlimpseConfig(num_scales=9)
    for fields in ({"num_scales": 10}, {"num_scales": 2, "scale_factor": 257}):
        with pytest.raises(ValueError, match="sums more pixels than float32 holds"):
            GlimpseConfig(**fields)
    with pytest.raises(ValueError, match="at most 64"):
        GlimpseConfig(num_scales=10**6)


def test_numbers_and_paths_of_other_kinds_are_normalised() -> None:
    config = GlimpseConfig(canvas_size=np.int64(40), scene_seed=np.int32(3), data_root=Path("a") / "b")  # type: ignore[arg-type]
    assert config == GlimpseConfig(canvas_size=40, scene_seed=3, data_root="a/b")
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_a_dataset_is_a_name_or_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "svhn", "custom"):
        assert GlimpseConfig(dataset=name).data_path is None
    paths = {"shapes": tmp_path / "shapes", "~/a.npz": Path("/home/me/a.npz"), "/b/c": Path("/b/c")}
    for given_path, path in paths.items():
        assert GlimpseConfig(dataset=given_path).data_path == path
        assert GlimpseConfig(dataset=Path(given_path)) == GlimpseConfig(dataset=given_path)  # type: ignore[arg-type]


def test_blocks_and_patches_double_by_hand() -> None:
    config = GlimpseConfig(patch_size=12, num_scales=4)
    assert [config.block_side(scale) for scale in range(4)] == [1, 2, 4, 8]
    assert [config.patch_side(scale) for scale in range(4)] == [12, 24, 48, 96]
    config = GlimpseConfig(patch_size=5, num_scales=3, scale_factor=3)
    assert [config.block_side(scale) for scale in range(3)] == [1, 3, 9]
    assert [config.patch_side(scale) for scale in range(3)] == [5, 15, 45]


@given(valid_fields())
@settings(max_examples=60, deadline=None)
def test_json_round_trip_gives_the_same_config(fields: dict[str, Any]) -> None:
    config = GlimpseConfig(**fields)
    given_back = GlimpseConfig(**json.loads(json.dumps(config.to_dict())))
    assert given_back == config
    assert hash(given_back) == hash(config)
    assert given_back.to_dict() == {**DEFAULTS, **fields}


@given(valid_fields(), valid_fields())
@settings(max_examples=30, deadline=None)
def test_replace_changes_what_it_is_given_and_nothing_else(first: dict[str, Any], second: dict[str, Any]) -> None:
    config = GlimpseConfig(**first)
    assert config.replace(**second).to_dict() == {**DEFAULTS, **first, **second}
    assert config.to_dict() == {**DEFAULTS, **first}


def test_replace_names_unknown_fields_and_the_known_ones() -> None:
    with pytest.raises(TypeError) as caught:
        GlimpseConfig().replace(glimpses=3, canvas=60, num_scales=2)
    known = ", ".join(DEFAULTS)
    assert str(caught.value) == (
        f"got an unexpected keyword argument 'canvas', 'glimpses'; the fields of GlimpseConfig are {known}"
    )


def test_replace_validates() -> None:
    with pytest.raises(ValueError, match="num_glimpses must be at least 1, got 0"):
        GlimpseConfig().replace(num_glimpses=0)


@pytest.mark.parametrize(
    ("split", "scene_seed", "expected"),
    [
        ("train", None, None),
        ("validation", None, 2014),
        ("test", None, 2014),
        ("train", 5, 5),
        ("validation", 5, 5),
        ("test", 0, 0),
        ("train", 0, 0),
    ],
)
def test_only_training_draws_fresh_scenes(split: Any, scene_seed: int | None, expected: int | None) -> None:
    assert GlimpseConfig(split=split, scene_seed=scene_seed).fixed_scene_seed == expected
    assert EVALUATION_SCENE_SEED == 2014


def played_scene_seeds(env: gym.Env[Any, Any]) -> list[int]:
    seeds = []
    for episode in range(3):
        env.reset(seed=0 if episode == 0 else None)
        *_, info = env.step({"location": (0, 0), "label": 0})
        seeds.append(info["scene_seed"])
    return seeds


def test_episodes_follow_the_rule_for_scene_seeds() -> None:
    assert len(set(played_scene_seeds(GlimpseEnv(dataset="digits", num_glimpses=1)))) == 3
    assert played_scene_seeds(GlimpseEnv(dataset="digits", num_glimpses=1, split="validation")) == [2014] * 3
    assert played_scene_seeds(GlimpseEnv(dataset="digits", num_glimpses=1, split="test", scene_seed=0)) == [0] * 3
    assert played_scene_seeds(GlimpseEnv(dataset="digits", num_glimpses=1, scene_seed=7)) == [7] * 3


def test_the_table_has_these_tasks_and_no_others() -> None:
    assert {name: task.env_id for name, task in TASKS.items()} == IDS


@pytest.mark.parametrize("name", TABLE)
def test_tasks_have_the_published_numbers(name: str) -> None:
    dataset, canvas, glimpses, patch, scales, clutter = TABLE[name]
    assert TASKS[name].config.to_dict() == {
        **DEFAULTS,
        "dataset": dataset,
        "canvas_size": canvas,
        "num_glimpses": glimpses,
        "patch_size": patch,
        "num_scales": scales,
        "num_clutter": clutter,
    }
    assert TASKS[name].config.clutter_size == 8
    assert TASKS[name].config.scale_factor == 2


@pytest.mark.parametrize("name", TABLE)
def test_ids_make_the_table_s_config(name: str) -> None:
    assert get_task(name) is get_task(IDS[name]) is TASKS[name]
    env = gym.make(IDS[name], dataset="digits")
    assert env.unwrapped.config == TASKS[name].config.replace(dataset="digits")
    _, canvas, glimpses, patch, scales, _ = TABLE[name]
    observation, _ = env.reset(seed=0)
    assert observation["glimpse"].shape == (scales, patch, patch)
    assert env.unwrapped.canvas.shape == (1, canvas, canvas)
    ended = [env.step({"location": (0.0, 0.0), "label": 0})[2] for _ in range(glimpses)]
    assert ended == [False] * (glimpses - 1) + [True]


def test_unknown_tasks_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError) as caught:
        get_task("mnist-60")
    assert str(caught.value) == f"task must be one of {', '.join(TABLE)}, got 'mnist-60'"
