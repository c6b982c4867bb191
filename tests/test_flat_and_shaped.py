"""VectorFlattenObservation, EveryAnswerReward and what vector wrappers pass on."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation

from ram_gym import GlimpseEnv, GlimpseVectorEnv
from ram_gym.adapters.sb3 import GlimpseVecEnv
from ram_gym.wrappers import (
    EveryAnswerReward,
    MultiDiscreteAction,
    ProgressObservation,
    VectorBoxAction,
    VectorEveryAnswerReward,
    VectorFlattenObservation,
    VectorMultiDiscreteAction,
    VectorProgressObservation,
)

T, L, N = 3, 4, 3
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
FIELDS: dict[str, Any] = {"dataset": (IMAGES, np.arange(12) % L), "canvas_size": 9, "num_glimpses": T, "patch_size": 3}


def make_single() -> gym.Env[Any, Any]:
    env: Any = MultiDiscreteAction(EveryAnswerReward(GlimpseEnv(**FIELDS), weight=0.25))
    return FlattenObservation(ProgressObservation(env))


def make_vector(**arguments: Any) -> Any:
    envs = VectorMultiDiscreteAction(VectorEveryAnswerReward(GlimpseVectorEnv(N, **FIELDS, **arguments), 0.25))
    return VectorFlattenObservation(VectorProgressObservation(envs))


def random_actions(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, [7, 7, L], (N, 3))


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("final_obs", ["dict", "objects"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_flat_observations_and_shaped_rewards_are_those_of_single_environments(
    mode: Any, final_obs: Any, output: Any
) -> None:
    ours = make_vector(autoreset_mode=mode, final_obs=final_obs, output=output)
    theirs = SyncVectorEnv([make_single] * N, autoreset_mode=mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    np.testing.assert_array_equal(np.asarray(ours.reset(seed=3)[0]), theirs.reset(seed=3)[0])
    rng, shaped = np.random.default_rng(1), 0
    for _ in range(25):
        actions = random_actions(rng)
        given = torch.as_tensor(actions) if output == "torch" else actions
        (own, reward, *own_rest, info), (other, expected, *other_rest, other_info) = (
            ours.step(given),
            theirs.step(actions),
        )
        np.testing.assert_array_equal(np.asarray(own), other)
        np.testing.assert_allclose(np.asarray(reward), expected)
        shaped += int((expected == 0.25).sum())
        assert all(np.array_equal(np.asarray(a), b) for a, b in zip(own_rest, other_rest, strict=True))
        assert ("final_obs" in info) == ("final_obs" in other_info)
        for lane in np.flatnonzero(other_info.get("_final_obs", [])):
            np.testing.assert_array_equal(np.asarray(info["final_obs"][lane]), other_info["final_obs"][lane])
    assert shaped > 3


def test_flat_observations_under_disabled() -> None:
    envs, own = make_vector(autoreset_mode="Disabled"), GlimpseVectorEnv(N, **FIELDS, autoreset_mode="Disabled")
    flat, given = envs.reset(seed=0)[0], own.reset(seed=0)[0]
    np.testing.assert_array_equal(flat[:, :-3], given["glimpse"].reshape(N, -1))
    np.testing.assert_array_equal(flat[:, -3:-1], given["location"])
    np.testing.assert_array_equal(flat[:, -1], np.full(N, np.float32(1 / T)))


def test_progress_of_truncated_episodes_is_how_far_they_got() -> None:
    envs = GlimpseVectorEnv(N, **FIELDS, autoreset_mode="SameStep", max_episode_steps=1)
    wrapped = VectorProgressObservation(envs)
    wrapped.reset(seed=0)
    info = wrapped.step({"location": np.zeros((N, 2)), "label": np.zeros(N, np.int64)})[-1]
    np.testing.assert_allclose(info["final_obs"]["progress"], np.full((N, 1), 2 / T))


def test_flat_observations_need_a_dict() -> None:
    with pytest.raises(ValueError, match="Dict observation"):
        VectorFlattenObservation(make_vector())


@pytest.mark.parametrize("weight", [True, "1", float("nan")])
def test_weights_are_checked(weight: Any) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number"):
        EveryAnswerReward(GlimpseEnv(**FIELDS), weight)
    with pytest.raises(ValueError, match="weight must be a finite number"):
        VectorEveryAnswerReward(GlimpseVectorEnv(N, **FIELDS), weight)


def test_vector_wrappers_pass_attributes_on() -> None:
    envs = make_vector(autoreset_mode="SameStep", render_mode="rgb_array")
    assert envs.autoreset_mode is AutoresetMode.SAME_STEP
    assert envs.config.num_glimpses == T
    envs.reset(seed=0)
    assert len(envs.call("render")) == N
    assert pickle.loads(pickle.dumps(VectorBoxAction(GlimpseVectorEnv(2, dataset="digits")))).num_classes == 10
    with pytest.raises(AttributeError, match="nothing"):
        _ = envs.nothing


def test_stable_baselines3_takes_flat_observations() -> None:
    envs = VectorMultiDiscreteAction(GlimpseVectorEnv(N, **FIELDS, autoreset_mode="SameStep"))
    one, other = (
        GlimpseVecEnv(VectorFlattenObservation(envs)),
        GlimpseVecEnv(VectorMultiDiscreteAction(GlimpseVectorEnv(N, **FIELDS, autoreset_mode="SameStep"))),
    )
    for env in (one, other):
        env.seed(0)
        env.reset()
    rng = np.random.default_rng(0)
    for _ in range(T):
        actions = random_actions(rng)
        (flat, *_, infos), (_, *_, expected) = one.step(actions), other.step(actions)
    assert flat.shape == (N, 11)
    for info, wanted in zip(infos, expected, strict=True):
        last = wanted["terminal_observation"]
        np.testing.assert_array_equal(
            info["terminal_observation"], np.concatenate([last["glimpse"].ravel(), last["location"]])
        )
