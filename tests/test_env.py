from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from ram_gym import GlimpseConfig, GlimpseEnv, take_glimpses


def make(small_images: tuple, **fields: Any) -> GlimpseEnv:
    return GlimpseEnv(dataset=small_images, **{"canvas_size": 12, "num_glimpses": 3, "patch_size": 4, **fields})


def act(x: float = 0.0, y: float = 0.0, label: int = 0) -> dict[str, Any]:
    return {"location": np.array([x, y], np.float32), "label": label}


def test_an_episode_step_by_step(small_images: tuple) -> None:
    env = make(small_images, num_scales=2)
    observation, info = env.reset(seed=1, options={"index": 7, "location": (0.5, -0.5)})
    assert info == {}
    assert observation["location"].tolist() == [0.5, -0.5]

    def expected(x: float, y: float) -> np.ndarray:
        return take_glimpses(env.canvas[None], np.array([[x, y]], np.float32), env.config)[0]

    np.testing.assert_array_equal(observation["glimpse"], expected(0.5, -0.5))
    observation, reward, terminated, truncated, info = env.step(act(-0.25, 0.75, label=2))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {})
    np.testing.assert_array_equal(observation["glimpse"], expected(-0.25, 0.75))
    observation, reward, terminated, _, _ = env.step(act(9, -9))
    assert observation["location"].tolist() == [1, -1]
    np.testing.assert_array_equal(observation["glimpse"], expected(1, -1))
    assert not terminated
    last = observation
    observation, reward, terminated, truncated, info = env.step(act(0, 0, label=2))  # image 7 has label 7 % 5
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert {k: info[k] for k in ("label", "prediction", "is_success", "index")} == {
        "label": 2,
        "prediction": 2,
        "is_success": True,
        "index": 7,
    }
    np.testing.assert_array_equal(observation["glimpse"], last["glimpse"])
    assert observation["location"].tolist() == [1, -1]
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(act())


def test_a_wrong_answer_is_worth_nothing(small_images: tuple) -> None:
    env = make(small_images, num_glimpses=1)
    env.reset(options={"index": 7})
    _, reward, terminated, _, info = env.step(act(label=3))
    assert (reward, terminated, info["is_success"], info["label"], info["prediction"]) == (0.0, True, False, 2, 3)


def test_what_info_tells_gives_the_same_scene_again(small_images: tuple) -> None:
    env = make(small_images, num_glimpses=1, num_clutter=2, clutter_size=3)
    env.reset(seed=3)
    canvas, info = env.canvas, env.step(act())[4]
    other = make(small_images, num_glimpses=1, num_clutter=2, clutter_size=3)
    other.reset(seed=99, options={"index": info["index"], "scene_seed": info["scene_seed"]})
    np.testing.assert_array_equal(other.canvas, canvas)


def test_seeds_repeat_episodes_and_differ(small_images: tuple) -> None:
    def play(seed: int) -> list[float]:
        env = make(small_images)
        numbers: list[float] = []
        for episode in range(3):
            observation, _ = env.reset(seed=seed if episode == 0 else None)
            numbers += [*observation["location"].tolist(), float(observation["glimpse"].sum())]
        return numbers

    assert play(5) == play(5)
    assert play(5) != play(6)
    unseeded = {make(small_images).reset()[0]["location"].tobytes() for _ in range(5)}
    assert len(unseeded) == 5


def test_episodes_of_one_seed_cover_the_images_evenly(small_images: tuple) -> None:
    env = make(small_images, num_glimpses=1)
    env.reset(seed=0)
    counts = np.zeros(20)
    for _ in range(4000):
        counts[env.step(act())[4]["index"]] += 1
        env.reset()
    assert counts.min() > 140
    assert counts.max() < 270


BAD_ACTIONS = [
    ({"location": (np.nan, 0), "label": 0}, "finite"),
    ({"location": (0, np.inf), "label": 0}, "finite"),
    ({"location": (0, 0, 0), "label": 0}, r"\(2,\), \(x, y\), got shape \(3,\)"),
    ({"location": "here", "label": 0}, "numbers"),
    ({"location": (0, 0), "label": 5}, r"\[0, 5\)"),
    ({"location": (0, 0), "label": -1}, r"\[0, 5\)"),
    ({"location": (0, 0), "label": 1.0}, "integer"),
    ({"location": (0, 0), "label": None}, "integer"),
    ({"location": (0, 0), "label": True}, "integer"),
    ({"location": (0, 0)}, "no label"),
    ({"location": (0, 0), "label": 0, "speed": 1}, "unknown speed"),
    (np.zeros(3), "dict"),
]


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS)
def test_a_bad_action_is_an_error_and_changes_nothing(small_images: tuple, action: Any, message: str) -> None:
    env, untouched = make(small_images, num_glimpses=2), make(small_images, num_glimpses=2)
    env.reset(seed=1)
    untouched.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    for _ in range(2):
        ours, theirs = env.step(act(0.3, 0.3, 1)), untouched.step(act(0.3, 0.3, 1))
        np.testing.assert_array_equal(ours[0]["glimpse"], theirs[0]["glimpse"])
        assert ours[1:] == theirs[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": 20}, r"\[0, 20\)"),
        ({"index": 1.5}, "integer"),
        ({"scene_seed": -1}, "scene_seed"),
        ({"location": (np.nan, 0)}, "finite"),
        ({"location": (1, 2, 3)}, "shape"),
        ({"reset_mask": [True]}, "unknown reset_mask"),
        ({"idx": 3}, "unknown idx"),
    ],
)
def test_a_bad_option_is_an_error_and_changes_nothing(small_images: tuple, options: dict, message: str) -> None:
    env, untouched = make(small_images), make(small_images)
    env.reset(seed=1)
    untouched.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=4, options=options)
    np.testing.assert_array_equal(env.step(act())[0]["glimpse"], untouched.step(act())[0]["glimpse"])
    np.testing.assert_array_equal(env.reset()[0]["glimpse"], untouched.reset()[0]["glimpse"])


@pytest.mark.parametrize("num_glimpses", [1, 2, 4])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_what_callers_do_to_what_they_hold_changes_nothing(
    small_images: tuple, num_glimpses: int, render_mode: str | None
) -> None:
    careful, careless = (make(small_images, num_glimpses=num_glimpses, render_mode=render_mode) for _ in range(2))
    place = np.array([0.25, -0.5], np.float32)
    for options in ({}, {"location": place}):
        handed: list[np.ndarray] = []
        given = {key: value.copy() for key, value in options.items()}
        ours, theirs = careful.reset(seed=3, options=options), careless.reset(seed=3, options=given)
        for number in range(num_glimpses + 1):
            np.testing.assert_equal(theirs, ours)
            if render_mode:
                np.testing.assert_array_equal(careless.render(), careful.render())
            handed += [*given.values(), *theirs[0].values(), careless.canvas, careless.digit_location]
            for array in handed:
                array[...] = 9
            if number < num_glimpses:
                action = act(0.3 * number, -0.2 * number, label=number)
                given = {"location": action["location"].copy()}
                ours, theirs = careful.step(action), careless.step({**given, "label": number})
        assert ours[2]


def test_pickles_keep_the_episode_and_leave_named_datasets_out(small_images: tuple) -> None:
    for env in (make(small_images), GlimpseEnv(dataset="digits", num_scales=2)):
        env.reset(seed=2)
        env.step(act())
        data = pickle.dumps(env)
        if env.config.dataset == "digits":
            assert len(data) < 20_000
        copy = pickle.loads(data)
        for _ in range(2):
            np.testing.assert_array_equal(copy.step(act(0.5))[0]["glimpse"], env.step(act(0.5))[0]["glimpse"])
        np.testing.assert_array_equal(copy.reset()[0]["glimpse"], env.reset()[0]["glimpse"])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"canvas_size": 5}, ValueError, "canvas_size must hold images of 6x5"),
        ({"num_clutter": 1, "clutter_size": 6}, ValueError, "clutter_size must fit"),
        ({"render_mode": "human"}, ValueError, "render_mode"),
        ({"glimpses": 3}, TypeError, "unexpected keyword argument 'glimpses'; the fields"),
        ({"config": "digits"}, TypeError, "config must be a GlimpseConfig, such as .* got 'digits'"),
        ({"num_glimpses": 0}, ValueError, "at least 1"),
        ({"scene_seed": "x"}, TypeError, "scene_seed must be an int"),
    ],
)
def test_bad_arguments_are_named(small_images: tuple, fields: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(small_images, **fields)


def test_clutter_needs_a_second_image() -> None:
    with pytest.raises(ValueError, match="second image"):
        GlimpseEnv(dataset=(np.zeros((1, 9, 9), np.uint8), np.array([0])), num_clutter=1)


def test_a_custom_dataset_cannot_be_made_from_its_name() -> None:
    with pytest.raises(ValueError, match="custom"):
        GlimpseEnv(GlimpseConfig(dataset="custom"))


def test_rgb_images_and_torch_actions(small_images: tuple) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
    env = GlimpseEnv(dataset=(images, [0, 1, 2, 3]), num_scales=2, patch_size=4)
    observation, _ = env.reset(seed=0)
    assert env.observation_space["glimpse"].shape == (6, 4, 4)
    observation, *_ = env.step({"location": torch.tensor([0.5, 0.0]), "label": torch.tensor(3)})
    assert env.observation_space.contains(observation)


def test_hidden_things_need_an_episode(small_images: tuple) -> None:
    env = make(small_images)
    for name in ("canvas", "label", "digit_location"):
        with pytest.raises(gym.error.ResetNeeded):
            getattr(env, name)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(act())
