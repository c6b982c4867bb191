"""One rule for what is a number, in the single and in the vector environment."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_gym import GlimpseConfig, GlimpseEnv, GlimpseVectorEnv, evaluate, wrappers

NUM_ENVS = 3
SHAPE: dict[str, Any] = {"canvas_size": 12, "num_glimpses": 3, "patch_size": 4}
Env = GlimpseEnv | GlimpseVectorEnv


def make(kind: str, small_images: tuple, **fields: Any) -> Env:
    if kind == "single":
        return GlimpseEnv(dataset=small_images, **{**SHAPE, **fields})
    return GlimpseVectorEnv(NUM_ENVS, dataset=small_images, **{**SHAPE, **fields})


def plain(env: Env) -> dict[str, Any]:
    lanes = (env.num_envs,) if isinstance(env, GlimpseVectorEnv) else ()
    return {"location": np.full((*lanes, 2), 0.25, np.float32), "label": np.full(lanes, 1)}


class Raising:
    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise RuntimeError("not today")


class Unprintable(Raising):
    def __repr__(self) -> str:
        raise RuntimeError("nor in words")


def quantised(shape: tuple[int, ...]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=layout)


NO_NUMBERS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "meta": lambda shape: torch.zeros(shape, dtype=torch.int64, device="meta"),
    "nested": lambda shape: nested(torch.strided),
    "jagged": lambda shape: nested(torch.jagged),
    "quantised": quantised,
    "sparse": lambda shape: torch.zeros(shape, dtype=torch.int64).to_sparse(),
    "complex": lambda shape: np.zeros(shape, complex),
    "complex tensor": lambda shape: torch.zeros(shape, dtype=torch.complex64),
    "bools": lambda shape: np.zeros(shape, bool),
    "bool tensor": lambda shape: torch.zeros(shape, dtype=torch.bool),
    "objects that are bools": lambda shape: np.zeros(shape, bool).astype(object),
    "masked": lambda shape: np.ma.masked_array(np.zeros(shape, int), mask=np.ones(shape, bool)),
    "masked lanes": lambda shape: [np.ma.masked_array([0, 0], mask=[False, True])] * NUM_ENVS,
    "ragged": lambda shape: [[0, 1], [0]],
    "raising": lambda shape: Raising(),
    "unprintable": lambda shape: Unprintable(),
    "raising entries": lambda shape: [Raising(), Raising()],
    "text": lambda shape: np.full(shape, "0"),
    "dates": lambda shape: np.zeros(shape, "datetime64[s]"),
    "nothing": lambda shape: [None, None],
    "a dict": lambda shape: {"x": 0},
}


@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name_and_changes_nothing(small_images: tuple, kind: str, name: str) -> None:
    env, untouched = make(kind, small_images), make(kind, small_images)
    for each in (env, untouched):
        each.reset(seed=1)
    wrong = NO_NUMBERS[name]
    for key, value in plain(env).items():
        with pytest.raises(ValueError, match=rf"^actions?\['{key}'\] must be .*, got .*"):
            env.step({**plain(env), key: wrong(np.shape(value))})  # type: ignore[arg-type]
    lanes = np.shape(plain(env)["label"])
    for key, shape in {"index": lanes, "scene_seed": lanes, "location": (*lanes, 2)}.items():
        with pytest.raises(ValueError, match=rf"^options\['{key}'\] must be .*, got .*"):
            env.reset(options={key: wrong(shape)})
    if name != "nothing":  # seeds that are None are drawn
        with pytest.raises(ValueError, match=r"^seed must be .*, got .*"):
            env.reset(seed=wrong(lanes))
    for _ in range(SHAPE["num_glimpses"]):
        ours, theirs = env.step(plain(env)), untouched.step(plain(untouched))
        np.testing.assert_equal(ours, theirs)
    np.testing.assert_equal(env.reset(), untouched.reset())


@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_floats_are_no_integers(small_images: tuple, kind: str, name: str) -> None:
    env = make(kind, small_images)
    env.reset(seed=0)
    lanes = np.shape(plain(env)["label"])
    for wrong in (torch.zeros(lanes).to(getattr(torch, name)), np.zeros(lanes), np.zeros(lanes).astype(object)):
        with pytest.raises(ValueError, match=r"^actions?\['label'\] must be (an integer|integers \(3,\)) in \[0, 5\)"):
            env.step({**plain(env), "label": wrong})


def negative_bits(numbers: list[float]) -> torch.Tensor:
    tensor = torch.complex(torch.zeros(len(numbers)), -torch.tensor(numbers)).conj().imag
    assert tensor.is_neg()
    return tensor


FLOATS: dict[str, Callable[[list[float]], Any]] = {
    "list": list,
    "tuple": tuple,
    "list of tensors": lambda numbers: [torch.tensor(number) for number in numbers],
    "swapped bytes": lambda numbers: np.array(numbers, ">f4"),
    "negative bits": negative_bits,
    "gradient": lambda numbers: torch.tensor(numbers, requires_grad=True),
    "parameter": lambda numbers: torch.nn.Parameter(torch.tensor(numbers)),
    "nothing masked": np.ma.masked_array,
    **{
        name: lambda numbers, name=name: np.array(numbers, name)  # type: ignore[misc]
        for name in ("float16", "float32", "float64", "longdouble")
    },
    **{
        f"torch.{name}": lambda numbers, name=name: torch.tensor(numbers).to(getattr(torch, name))  # type: ignore[misc]
        for name in ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
    },
}


@pytest.fixture(scope="module")
def both() -> tuple[GlimpseEnv, GlimpseVectorEnv]:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8), np.arange(20) % 5
    single, vector = make("single", images), make("vector", images)
    assert isinstance(single, GlimpseEnv)
    assert isinstance(vector, GlimpseVectorEnv)
    return single, vector


# Quarters of small integers, which float8 holds too.
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(FLOATS)), st.tuples(*[st.integers(-5, 5).map(lambda n: n / 4)] * 2))
def test_numbers_of_every_kind_are_locations(both: Any, kind: str, numbers: tuple[float, float]) -> None:
    single, vector = both
    expected = [min(max(number, -1.0), 1.0) for number in numbers]
    one = FLOATS[kind](list(numbers))
    lanes = torch.stack([one] * 3) if isinstance(one, torch.Tensor) else [one] * 3
    whole = FLOATS[kind](list(numbers) * 3)
    all_at_once = whole.reshape(3, 2) if hasattr(whole, "reshape") else lanes
    seen = [single.reset(options={"location": one}), vector.reset(options={"location": one})]
    seen += [single.step({"location": one, "label": 0})]
    seen += [vector.step({"location": given_location, "label": [0] * 3}) for given_location in (lanes, all_at_once)]
    for observation, *_ in seen:
        location = observation["location"]
        assert location.dtype == np.float32
        assert location.tolist() == (expected if location.ndim == 1 else [expected] * 3)


INTEGERS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "object": lambda number: np.array(number, dtype=object),
    "array": np.array,
    "masked array without a mask": np.ma.array,
    **{f"numpy.{np.dtype(kind)}": kind for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64)},
    **{
        f"torch.{name}": lambda number, name=name: torch.tensor(number, dtype=getattr(torch, name))  # type: ignore[misc]
        for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    },
}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(INTEGERS)), st.integers(0, 8))
def test_integers_of_every_kind_are_labels_indices_and_seeds(both: Any, kind: str, number: int) -> None:
    single, vector = both
    value = INTEGERS[kind](number)
    lanes = torch.stack([value] * 3) if isinstance(value, torch.Tensor) else [value] * 3
    if kind == "object":
        lanes = np.array([number] * 3, dtype=object)
    options = {"index": value, "scene_seed": value}
    ours, _ = single.reset(seed=value, options=options)
    theirs, _ = vector.reset(seed=value, options=options)
    np.testing.assert_array_equal(theirs["glimpse"][0], ours["glimpse"])
    np.testing.assert_array_equal(
        vector.reset(options={"index": lanes, "scene_seed": lanes})[0]["glimpse"][2], ours["glimpse"]
    )
    assert [single.label, *vector.labels.tolist()] == [number % 5] * 4
    for env, label in ((single, value), (vector, lanes)):
        for _ in range(SHAPE["num_glimpses"] - 1):
            env.step(plain(env))
        if number < 5:
            _, reward, _, _, info = env.step({**plain(env), "label": label})
            assert np.all(info["prediction"] == number)
            assert np.all(reward == 1)
        else:
            with pytest.raises(ValueError, match=rf"\['label'\] must be .* in \[0, 5\), got .*{number}"):
                env.step({**plain(env), "label": label})


@pytest.mark.parametrize("kind", ["single", "vector"])
def test_integers_of_any_size_are_locations_and_refused_by_their_range_elsewhere(
    small_images: tuple, kind: str
) -> None:
    env = make(kind, small_images)
    observation, _ = env.reset(options={"location": (10**400, -(10**400))})
    assert observation["location"].reshape(-1, 2)[0].tolist() == [1, -1]
    for options in ({"seed": 2**70}, {"options": {"index": 2**70}}, {"options": {"scene_seed": -(2**70)}}):
        with pytest.raises(ValueError, match=r"must be an integer.* in \[0, \d+\), got .*\d{4}"):
            env.reset(**options)


def test_masks_are_bools_of_any_library(small_images: tuple) -> None:
    envs = make("vector", small_images)
    envs.reset(seed=0)
    for mask in ([True, False, True], torch.tensor([True, False, True]), np.ma.array([True, False, True])):
        before = envs.num_steps  # type: ignore[union-attr]
        envs.step(plain(envs))
        envs.reset(options={"reset_mask": mask})
        assert envs.num_steps.tolist() == [0, before[1] + 1, 0]  # type: ignore[union-attr]
        envs.reset()
    for wrong in (
        np.ma.array([True, False, True], mask=[True, False, False]),
        torch.ones(3, dtype=torch.bool, device="meta"),
        torch.ones(3, dtype=torch.bool).to_sparse(),
        torch.ones(3),
        Raising(),
        [[True], [True, False]],
        [False] * 3,
    ):
        with pytest.raises(ValueError, match=r"^options\['reset_mask'\] must be bool \(3,\), True somewhere, got "):
            envs.reset(options={"reset_mask": wrong})


@pytest.mark.parametrize("device", ["a", "meta", None, 1.5, "cuda:99", "cpu:x"])
def test_a_device_that_cannot_be_used_is_named(small_images: tuple, device: Any) -> None:
    with pytest.raises(ValueError, match="^device must be one that" + ".*" + re.escape(f"got {device!r}")):
        GlimpseVectorEnv(2, dataset=small_images, device=device, **SHAPE)


@pytest.mark.parametrize("num_envs", [0, -1, 1.0, True, None, "2", 2**31, 2**63, 2**70, torch.tensor(2.0)])
def test_a_number_of_lanes_that_is_none_is_named(small_images: tuple, num_envs: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_envs must be an integer in \[1, 2147483648\), got "):
        GlimpseVectorEnv(num_envs, dataset=small_images, **SHAPE)


@pytest.mark.parametrize("wrong", [torch.tensor(5.0), torch.tensor([5]), torch.tensor(True), np.array([5]), 5.0, True])
def test_a_field_that_is_no_integer_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^patch_size must be an int, got "):
        GlimpseConfig(patch_size=wrong)
    for right in (torch.tensor(5), np.array(5), np.uint8(5)):
        config = GlimpseConfig(patch_size=right)  # type: ignore[arg-type]
        assert (config.patch_size, type(config.patch_size)) == (5, int)


def test_wrappers_go_by_the_same_rule(small_images: tuple) -> None:
    single = wrappers.BoxAction(make("single", small_images))  # type: ignore[arg-type]
    vector = wrappers.VectorBoxAction(make("vector", small_images))  # type: ignore[arg-type]
    scores = [0.5, -0.25, 0.0, 0.0, 1.0, 0.0, 0.0]
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        for env, action in ((single, torch.tensor(scores)), (vector, torch.tensor([scores] * 3))):
            env.reset(seed=0)
            observation = env.step(action.to(kind))[0]
            assert observation["location"].reshape(-1, 2)[0].tolist() == [0.5, -0.25]
    for env, shape in ((single, (7,)), (vector, (3, 7))):
        for wrong in ("meta", "sparse", "masked", "ragged", "raising", "text"):
            with pytest.raises(ValueError, match=r"^action must be numbers, got "):
                env.step(NO_NUMBERS[wrong](shape))


def test_evaluation_goes_by_the_same_rule(small_images: tuple) -> None:
    class Guess:
        name = "guess"

        def __init__(self, label: Any) -> None:
            self.label = label

        def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
            location = observation["location"].bfloat16()
            return {"location": location, "label": self.label, "log_probabilities": location.new_zeros(3, 5)}, state

    env = GlimpseVectorEnv(3, dataset=small_images, output="torch", split="test", **SHAPE)
    labels = np.array([2, 2, 2], dtype=object)
    assert evaluate(Guess(labels), env, episodes=np.int64(20)).predictions.tolist() == [2] * 20
    assert evaluate(Guess(labels), env, protocol="average-10").predictions.tolist() == [0] * 20
    with pytest.raises(ValueError, match=r"policy 'guess': actions\['label'\] must be integers \(3,\) .* masked"):
        evaluate(Guess(np.ma.array([1, 2, 3], mask=[1, 0, 0])), env)
