"""What other libraries ask of a vector environment: step limits, final observations as objects, call, labels (N, 1)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from ram_gym import GlimpseEnv, GlimpseVectorEnv

T, L, N = 4, 4, 3
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
FIELDS: dict[str, Any] = {"dataset": (IMAGES, np.arange(12) % L), "canvas_size": 9, "num_glimpses": T, "patch_size": 3}


def random_actions(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"location": rng.uniform(-1, 1, (N, 2)).astype(np.float32), "label": rng.integers(0, L, N)}


def assert_same(ours: Any, theirs: Any) -> None:
    """Observations, and infos with masks: equal where the masks are True."""
    for key, value in theirs.items():
        if key.startswith("_"):
            np.testing.assert_array_equal(ours[key], value)
        elif key == "final_obs":
            for own, other in zip(ours[key], value, strict=True):
                assert (own is None) == (other is None)
                if other is not None:
                    assert all(np.array_equal(own[name], other[name]) for name in other)
        elif isinstance(value, dict):
            assert_same(ours.get(key, {}), value)
        else:
            mask = theirs.get(f"_{key}", np.ones(len(value), bool))
            np.testing.assert_array_equal(np.asarray(ours[key])[mask], np.asarray(value)[mask])


@pytest.mark.parametrize("limit", [None, 1, 3, T, T + 2])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_step_limits_and_final_observations_are_those_of_gymnasiums_vector_environment(mode: Any, limit: Any) -> None:
    def make() -> gym.Env[Any, Any]:
        return GlimpseEnv(**FIELDS) if limit is None else TimeLimit(GlimpseEnv(**FIELDS), limit)

    ours = GlimpseVectorEnv(N, **FIELDS, autoreset_mode=mode, final_obs="objects", max_episode_steps=limit)
    theirs = SyncVectorEnv([make] * N, autoreset_mode=mode)
    assert_same(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    rng, ended = np.random.default_rng(1), 0
    for _ in range(17):
        actions = random_actions(rng)
        (own, *own_rest, own_info), (other, *other_rest, other_info) = ours.step(actions), theirs.step(actions)
        assert_same(own, other)
        for a, b in zip(own_rest, other_rest, strict=True):
            np.testing.assert_array_equal(a, b)
        assert_same(own_info, other_info)
        ended += int(np.sum(own_rest[1] | own_rest[2]))
    assert ended > N


def test_step_limits_under_disabled_wait_for_a_reset() -> None:
    envs = GlimpseVectorEnv(N, **FIELDS, autoreset_mode="Disabled", max_episode_steps=2)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    envs.step(random_actions(rng))
    _, _, terminated, truncated, info = envs.step(random_actions(rng))
    assert truncated.all()
    assert not terminated.any()
    assert info == {}
    assert envs.is_over.all()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(random_actions(rng))
    envs.reset(options={"reset_mask": np.ones(N, bool)})
    assert not envs.is_over.any()


def test_both_forms_of_final_observations_hold_the_same_numbers() -> None:
    batched = GlimpseVectorEnv(N, **FIELDS, autoreset_mode="SameStep", output="torch")
    objects = GlimpseVectorEnv(N, **FIELDS, autoreset_mode="SameStep", output="torch", final_obs="objects")
    for envs in (batched, objects):
        envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(T):
        actions = random_actions(rng)
        info, other = batched.step(actions)[-1], objects.step(actions)[-1]
    for lane in range(N):
        for key, value in other["final_obs"][lane].items():
            assert torch.equal(info["final_obs"][key][lane], value)


def test_make_vec_takes_a_step_limit_as_the_sync_path_does() -> None:
    for mode in (None, "sync"):
        envs = gym.make_vec("RamGym/Digits-v0", 2, vectorization_mode=mode, max_episode_steps=3)
        envs.reset(seed=0)
        truncated = [envs.step({"location": np.zeros((2, 2)), "label": np.zeros(2, np.int64)})[3] for _ in range(4)]
        assert [flags.tolist() for flags in truncated] == [[False] * 2] * 2 + [[True] * 2, [False] * 2]


@pytest.mark.parametrize(
    ("given", "match"),
    [({"final_obs": "list"}, "final_obs must be 'dict' or 'objects'"), ({"max_episode_steps": 0}, "max_episode_steps")],
)
def test_other_forms_and_limits_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GlimpseVectorEnv(N, **FIELDS, **given)


def test_labels_may_be_a_column() -> None:
    one, other = (GlimpseVectorEnv(N, **FIELDS) for _ in range(2))
    one.reset(seed=0)
    other.reset(seed=0)
    rng = np.random.default_rng(0)
    for step in range(T):
        actions = random_actions(rng)
        info = one.step(actions)[-1]
        column = actions["label"][:, None]
        label = torch.as_tensor(column) if step % 2 else column
        assert_same(other.step({**actions, "label": label})[-1], info)
    assert info["prediction"].tolist() == actions["label"].tolist()
    with pytest.raises(ValueError, match="label"):
        other.step({**actions, "label": np.zeros((N, 2), np.int64)})


def test_call_gives_what_each_lane_has() -> None:
    envs = GlimpseVectorEnv(N, **FIELDS, render_mode="rgb_array")
    envs.reset(seed=5)
    frames, rendered = envs.call("render"), envs.render()
    assert frames is not None
    assert rendered is not None
    assert all(np.array_equal(a, b) for a, b in zip(frames, rendered, strict=True))
    for lane in range(N):
        env = GlimpseEnv(**FIELDS)
        env.reset(seed=5 + lane)
        for name in ("canvas", "label", "digit_location", "action_space", "num_classes"):
            values = envs.call(name)
            assert values is not None
            assert np.array_equal(values[lane], getattr(env, name))
    with pytest.raises(ValueError, match="method 'step'"):
        envs.call("step")
    with pytest.raises(AttributeError):
        envs.get_attr("nothing")
