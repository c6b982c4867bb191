"""What the vector environment refuses, at once or, on a GPU, later."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from ram_gym.arguments import is_within
from tests.test_vector_env import make, random_actions

BAD = [
    ({"location": np.zeros((5, 3)), "label": np.zeros(5, int)}, r"\(5, 2\)"),
    ({"location": np.zeros((4, 2)), "label": np.zeros(5, int)}, r"\(5, 2\)"),
    ({"location": np.full((5, 2), np.nan), "label": np.zeros(5, int)}, "finite"),
    ({"location": np.zeros((5, 2)), "label": np.zeros(4, int)}, r"\(5,\)|integers \(5\)"),
    ({"location": np.zeros((5, 2)), "label": np.zeros(5)}, "integer"),
    ({"location": np.zeros((5, 2)), "label": np.full(5, 5)}, r"\[0, 5\)"),
    ({"location": np.zeros((5, 2)), "label": 0}, r"\(5,\)"),
    ({"location": np.zeros((5, 2))}, "no label"),
    ({"location": np.zeros((5, 2)), "label": np.zeros(5, int), "x": 1}, "unknown x"),
    ({"location": "x", "label": np.zeros(5, int)}, "numbers"),
    (np.zeros((5, 3)), "dict"),
]


@pytest.mark.parametrize(("actions", "message"), BAD)
def test_bad_actions_are_errors_and_change_nothing(small_images: tuple, actions: Any, message: str) -> None:
    envs, untouched = make(small_images), make(small_images)
    envs.reset(seed=0)
    untouched.reset(seed=0)
    rng, same = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(5):
        with pytest.raises(ValueError, match=message):
            envs.step(actions)
        ours, theirs = envs.step(random_actions(rng)), untouched.step(random_actions(same))
        np.testing.assert_array_equal(ours[0]["glimpse"], theirs[0]["glimpse"])
        np.testing.assert_array_equal(ours[2], theirs[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"reset_mask": np.ones(4, bool)}}, "reset_mask"),
        ({"options": {"reset_mask": np.ones(5)}}, "reset_mask"),
        ({"options": {"index": 20}}, "index"),
        ({"options": {"index": np.zeros(3, int)}}, "index"),
        ({"options": {"location": np.zeros((3, 2))}}, "location"),
        ({"options": {"colour": 1}}, "unknown colour"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_resets_are_errors_and_change_nothing(small_images: tuple, arguments: dict, message: str) -> None:
    envs, untouched = make(small_images), make(small_images)
    envs.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.reset(**arguments)
    actions = random_actions(np.random.default_rng(0))
    np.testing.assert_array_equal(envs.step(actions)[0]["glimpse"], untouched.step(actions)[0]["glimpse"])
    np.testing.assert_array_equal(envs.reset()[0]["glimpse"], untouched.reset()[0]["glimpse"])


def test_lanes_that_ended_need_a_reset_when_autoreset_is_disabled(small_images: tuple) -> None:
    envs = make(small_images, autoreset_mode="DISABLED", num_glimpses=1)
    with pytest.raises(gym.error.ResetNeeded, match="all"):
        envs.step(random_actions(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False, True, True, True])})
    envs.reset(seed=0)
    envs.step(random_actions(np.random.default_rng(0)))
    envs.reset(options={"reset_mask": np.array([True, False, True, False, True])})
    with pytest.raises(gym.error.ResetNeeded, match=r"\[1, 3\]"):
        envs.step(random_actions(np.random.default_rng(0)))


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU"))]


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("device", DEVICES)
def test_bad_values_on_an_accelerator_are_reported_at_a_later_reset(small_images: tuple, device: str) -> None:
    envs, untouched = (
        make(small_images, output="torch", autoreset_mode="Disabled", device=device, num_glimpses=2) for _ in range(2)
    )
    location, label = torch.full((5, 2), 0.25, device=device), torch.arange(5, device=device)
    nan, above, below = location.clone(), label.clone(), label.clone()
    nan[2, 1], above[2], below[2] = torch.nan, 5, -1
    zero = location.clone()
    zero[2, 1] = 0
    for number, (given, label_given, seen) in enumerate(
        [(nan, label, zero), (location, above, location), (location, below, location), (location, label, location)]
    ):
        envs.reset(seed=0)
        untouched.reset(seed=0)
        observation, *_ = envs.step({"location": given, "label": label_given})
        expected, *_ = untouched.step({"location": seen, "label": label})
        assert torch.equal(observation["glimpse"], expected["glimpse"])
        envs.reset()  # sends the flag to the host
        if device == "cuda":
            torch.cuda.synchronize()
        if number < 3:
            with pytest.raises(ValueError, match="earlier reset or step got a NaN or infinite location, or a number"):
                envs.reset()
        envs.reset()


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("device", DEVICES)
def test_bad_options_on_an_accelerator_are_0_until_they_are_reported(small_images: tuple, device: str) -> None:
    envs = make(small_images, output="torch", autoreset_mode="Disabled", device=device)
    index, place = torch.tensor([3, 20, -1, 4, 2**40], device=device), torch.tensor([torch.inf, 0.5], device=device)
    for options in ({"index": index}, {"scene_seed": index - 3}, {"location": place}):
        observation, _ = envs.reset(options=options)
        if "index" in options:
            assert envs.labels.tolist() == [3, 0, 0, 4, 0]
        elif "location" in options:
            assert observation["location"].tolist() == [[0, 0.5]] * 5
        if device == "cuda":
            torch.cuda.synchronize()
        with pytest.raises(ValueError, match="earlier reset or step"):
            envs.reset()


@pytest.mark.usefixtures("fake_tensors")
def test_no_numbers_are_refused_on_an_accelerator_too(small_images: tuple) -> None:
    envs = make(small_images, output="torch", device="cuda")
    envs._deferred.report = lambda: None  # type: ignore[method-assign]  # reads a flag in pinned memory
    envs.reset()
    good = {"location": torch.zeros(5, 2, device="cuda"), "label": torch.zeros(5, dtype=torch.int64, device="cuda")}
    for kind in (torch.complex64, torch.bool):
        for key in good:
            with pytest.raises(ValueError, match=rf"^actions\['{key}'\] must be .*, got {kind} of shape"):
                envs.step({**good, key: good[key].to(kind)})
    with pytest.raises(ValueError, match=r"^actions\['label'\] must be .*, got torch.bfloat16 of shape"):
        envs.step({**good, "label": good["label"].bfloat16()})
    envs.step({"location": good["location"].bfloat16(), "label": good["label"].to(torch.uint8)})


def test_seeds_too_large_for_an_integer_of_numpys_are_named(small_images: tuple) -> None:
    with pytest.raises(ValueError, match=rf"seed must be .* in \[0, \d+\), got {2**70} to {2**70}"):
        make(small_images).reset(seed=2**70)


@pytest.mark.usefixtures("fake_tensors")
def test_a_refused_reset_leaves_nothing_to_report(small_images: tuple) -> None:
    envs = make(small_images, output="torch", device="cuda")
    with pytest.raises(ValueError, match=r"options\['location'\] must be .* \(2,\) or \(5, 2\), .* got shape \(3,\)"):
        envs.reset(options={"index": torch.arange(5, device="cuda"), "location": (0.0, 0.0, 0.0)})
    assert envs._deferred._are_good == []


def test_every_int64_that_is_not_negative_is_a_scene_seed() -> None:
    values = torch.tensor([-1, 0, 5, 2**62, 2**63 - 1])
    assert is_within(values, 2**63).tolist() == [False, True, True, True, True]
    assert is_within(values, 5).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_late_report_leaves_the_step_to_be_made_again(
    small_images: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a step that ends episodes may raise for an earlier value."""
    reported, plain = (make(small_images, output="torch", autoreset_mode=mode) for _ in range(2))
    action = {"location": torch.zeros(5, 2), "label": torch.arange(5)}
    for envs in (reported, plain):
        envs.reset(seed=3)
        for _ in range(envs.config.num_glimpses - 1):
            envs.step(action)

    def report() -> None:
        raise ValueError("an earlier reset or step")

    with monkeypatch.context() as patch:
        patch.setattr(reported._deferred, "report", report)
        with pytest.raises(ValueError, match="an earlier reset or step"):
            reported.step(action)
    ours, theirs = reported.step(action), plain.step(action)
    assert ours[2].all()
    for found, expected in zip(ours[1:4], theirs[1:4], strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(ours[0]["glimpse"], theirs[0]["glimpse"])
