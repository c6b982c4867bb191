"""Wrappers, each above single and vector environments.

Longer than other files here: all go through the same small environment and its played episodes.
"""

from __future__ import annotations

import pickle
import warnings
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import FlattenObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from ram_gym import GlimpseEnv, GlimpseVectorEnv, wrappers
from ram_gym.wrappers import (
    BoxAction,
    DiscreteAction,
    MultiDiscreteAction,
    VectorBoxAction,
    VectorDiscreteAction,
    VectorMultiDiscreteAction,
)

T, L = 3, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
FIELDS: dict[str, Any] = {
    "dataset": (IMAGES, np.arange(12) % L),
    "canvas_size": 9,
    "num_glimpses": T,
    "patch_size": 3,
}
PAIRS: list[tuple[Any, Any]] = [
    (BoxAction, VectorBoxAction),
    (MultiDiscreteAction, VectorMultiDiscreteAction),
    (DiscreteAction, VectorDiscreteAction),
]
SINGLE, VECTOR = [single for single, _ in PAIRS], [vector for _, vector in PAIRS]


def played(wrapper: Any, action: Any, **kwargs: Any) -> tuple[list[float], int]:
    """The location that an action looks at and the label that it answers, as the environment reports them."""
    env = wrapper(GlimpseEnv(**{**FIELDS, "num_glimpses": 2}), **kwargs)
    env.reset(seed=0, options={"location": (0.1, 0.1)})
    observation, *_ = env.step(action)
    *_, info = env.step(action)
    return observation["location"].tolist(), info["prediction"]


def played_vector(wrapper: Any, actions: Any, **kwargs: Any) -> tuple[list[list[float]], list[int]]:
    env = wrapper(GlimpseVectorEnv(len(actions), **{**FIELDS, "num_glimpses": 2}), **kwargs)
    env.reset(seed=0, options={"location": (0.1, 0.1)})
    observation, *_ = env.step(actions)
    *_, info = env.step(actions)
    return observation["location"].tolist(), info["prediction"].tolist()


def random_actions(wrapper: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    if wrapper in (BoxAction, VectorBoxAction):
        return rng.uniform(-1.5, 1.5, (count, 2 + L)).astype(np.float32)
    if wrapper in (MultiDiscreteAction, VectorMultiDiscreteAction):
        return rng.integers(0, (7, 7, L), (count, 3))
    return rng.integers(0, 49 * L, count)


# ------------------------------------------------------------------------------------------------ tables worked by hand

BOX_TABLE = [
    ([0.25, -0.5, 0.1, 0.9, 0.3, -1.0], (0.25, -0.5), 1),
    ([0.0, 0.0, -1.0, -1.0, -1.0, -0.5], (0.0, 0.0), 3),
    ([1.0, -1.0, 0.5, 0.2, 0.5, 0.5], (1.0, -1.0), 0),  # of equal scores the first
    ([5.0, -7.0, 0.0, 0.0, 30.0, 4.0], (1.0, -1.0), 2),  # locations are clipped, scores need no bounds
    ([-1.0, 1.0, 0, 0, 0, 0], (-1.0, 1.0), 0),
]
# On a 2 x 2 grid the cells' centres lie a half from the middle; on 3 x 3 two thirds, or in it.
GRID_TABLE = [
    (2, (0, 0, 0), (-1 / 2, -1 / 2), 0),
    (2, (1, 0, 2), (1 / 2, -1 / 2), 2),
    (2, (0, 1, 1), (-1 / 2, 1 / 2), 1),
    (2, (1, 1, 3), (1 / 2, 1 / 2), 3),
    (3, (0, 1, 3), (-2 / 3, 0.0), 3),
    (3, (2, 0, 0), (2 / 3, -2 / 3), 0),
    (3, (1, 1, 1), (0.0, 0.0), 1),
    (1, (0, 0, 2), (0.0, 0.0), 2),
    (7, (3, 3, 0), (0.0, 0.0), 0),
    (7, (0, 6, 3), (-6 / 7, 6 / 7), 3),
]
DISCRETE_TABLE = [  # (row * G + column) * 4 + label
    (2, 0, (-1 / 2, -1 / 2), 0),
    (2, 6, (1 / 2, -1 / 2), 2),
    (2, 9, (-1 / 2, 1 / 2), 1),
    (2, 15, (1 / 2, 1 / 2), 3),
    (3, 15, (-2 / 3, 0.0), 3),
    (3, 8, (2 / 3, -2 / 3), 0),
    (7, 171, (-6 / 7, 6 / 7), 3),
    (7, 195, (6 / 7, 6 / 7), 3),
]


@pytest.mark.parametrize(("action", "location", "label"), BOX_TABLE)
def test_box_by_hand(action: list[float], location: tuple[float, float], label: int) -> None:
    looked, answered = played(BoxAction, np.array(action, np.float32))
    assert looked == list(location)
    assert answered == label


@pytest.mark.parametrize(("grid", "action", "location", "label"), GRID_TABLE)
def test_multi_discrete_by_hand(grid: int, action: Any, location: Any, label: int) -> None:
    looked, answered = played(MultiDiscreteAction, np.array(action), grid_size=grid)
    assert looked == pytest.approx(location, abs=1e-7)
    assert answered == label


@pytest.mark.parametrize(("grid", "action", "location", "label"), DISCRETE_TABLE)
@pytest.mark.parametrize("kind", [int, np.int64, np.array, torch.tensor])
def test_discrete_by_hand(grid: int, action: int, location: Any, label: int, kind: Any) -> None:
    looked, answered = played(DiscreteAction, kind(action), grid_size=grid)
    assert looked == pytest.approx(location, abs=1e-7)
    assert answered == label


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_vector_tables_by_hand(kind: Any) -> None:
    looked, answered = played_vector(VectorBoxAction, kind([row[0] for row in BOX_TABLE]))
    assert looked == [list(row[1]) for row in BOX_TABLE]
    assert answered == [row[2] for row in BOX_TABLE]
    for table, wrapper in ((GRID_TABLE, VectorMultiDiscreteAction), (DISCRETE_TABLE, VectorDiscreteAction)):
        for grid in {row[0] for row in table}:
            rows = [row for row in table if row[0] == grid]
            looked, answered = played_vector(wrapper, kind([row[1] for row in rows]), grid_size=grid)
            np.testing.assert_allclose(looked, [row[2] for row in rows], rtol=0, atol=1e-7)
            assert answered == [row[3] for row in rows]


@given(st.integers(1, 40), st.data())
@settings(max_examples=25, deadline=None)
def test_grids_of_every_size_tile_the_canvas(grid: int, data: st.DataObject) -> None:
    column, row = data.draw(st.integers(0, grid - 1)), data.draw(st.integers(0, grid - 1))
    label = data.draw(st.integers(0, L - 1))
    # A cell is 2 / G wide, so the centre of the first lies 1 / G from the edge.
    exact = [-1 + Fraction(1, grid) + cell * Fraction(2, grid) for cell in (column, row)]
    looked, answered = played(MultiDiscreteAction, [column, row, label], grid_size=grid)
    assert looked == pytest.approx([float(part) for part in exact], abs=2e-7)
    assert answered == label
    assert played(DiscreteAction, (row * grid + column) * L + label, grid_size=grid) == (looked, answered)


def test_bad_actions_that_cannot_be_seen_at_once_have_no_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrappers, "_is_at_hand", lambda array: False)  # as on a GPU
    grid = torch.tensor([[6, 0, 1], [7, 0, 1], [0, -1, 1], [100, -50, 1]])
    location = wrappers._multi_discrete(10, 7).decode(grid)["location"]
    assert location.isnan().tolist() == [[False] * 2, [True] * 2, [True] * 2, [True] * 2]
    location = wrappers._discrete(10, 7).decode(torch.tensor([0, 489, 490, -1]))["location"]
    assert location.isnan().any(1).tolist() == [False, False, True, True]
    assert location[1].tolist() == pytest.approx([6 / 7, 6 / 7])
    vectors = torch.zeros(4, 12)
    vectors[1, 0], vectors[2, 5], vectors[3, 1] = torch.inf, torch.nan, 3.0
    location = wrappers._box(10).decode(vectors)["location"]
    assert location.isnan().any(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", ["BoxAction", "MultiDiscreteAction", "DiscreteAction"])
def test_wrapped_environments_survive_pickle(name: str) -> None:
    env = getattr(wrappers, name)(GlimpseEnv(dataset="digits"))
    envs = getattr(wrappers, "Vector" + name)(GlimpseVectorEnv(3, dataset="digits"))
    for original in (env, envs):
        copy = pickle.loads(pickle.dumps(original))
        original.action_space.seed(0)
        action = original.action_space.sample()
        seen = [each.reset(seed=4)[0]["location"].tolist() for each in (original, copy)]
        seen += [each.step(action)[0]["location"].tolist() for each in (original, copy)]
        assert (seen[0], seen[2]) == (seen[1], seen[3])


def test_progress_begins_anew_above_autoreset() -> None:
    below = wrappers.ProgressObservation(gym.wrappers.Autoreset(GlimpseEnv(dataset="digits", num_glimpses=3)))
    above = gym.wrappers.Autoreset(wrappers.ProgressObservation(GlimpseEnv(dataset="digits", num_glimpses=3)))
    for env in (below, above):
        found = [env.reset(seed=0)[0]["progress"].item()]
        found += [env.step(env.action_space.sample())[0]["progress"].item() for _ in range(8)]
        assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1 / 3, 2 / 3, 1, 1, 1 / 3])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_progress_of_lanes_is_that_of_single_environments(mode: str, output: str) -> None:
    fields: dict[str, Any] = {"dataset": "digits", "num_glimpses": 3}
    envs = wrappers.VectorProgressObservation(GlimpseVectorEnv(2, autoreset_mode=mode, output=output, **fields))
    makers = [lambda: wrappers.ProgressObservation(GlimpseEnv(**fields))] * 2
    others = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode(mode))
    assert envs.single_observation_space == others.single_observation_space
    ours, theirs = (each.reset(seed=5)[0] for each in (envs, others))
    actions = {"location": np.zeros((2, 2), np.float32), "label": np.zeros(2, np.int64)}
    for step in range(9):
        for key in ("glimpse", "progress"):
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{step}")
        assert type(ours["progress"]) is type(ours["location"])
        ours, *_, info = envs.step(actions)
        theirs, *_ = others.step(actions)
        if "final_obs" in info:
            assert info["final_obs"]["progress"].tolist() == [[1.0], [1.0]]
    assert pickle.loads(pickle.dumps(envs)).unwrapped.num_steps.tolist() == envs.unwrapped.num_steps.tolist()


def test_gymnasium_checker_accepts_progress() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        gymnasium_check_env(wrappers.ProgressObservation(GlimpseEnv(dataset="digits")), skip_render_check=True)


def test_spaces() -> None:
    env, vector = GlimpseEnv(**FIELDS), GlimpseVectorEnv(2, **FIELDS)
    assert BoxAction(env).action_space == spaces.Box(-1, 1, (2 + L,), np.float32)
    assert MultiDiscreteAction(env).action_space == spaces.MultiDiscrete([7, 7, L])
    assert DiscreteAction(env, grid_size=5).action_space == spaces.Discrete(25 * L)
    assert VectorBoxAction(vector).action_space == spaces.Box(-1, 1, (2, 2 + L), np.float32)
    batch = VectorMultiDiscreteAction(vector, 3).action_space  # of Gymnasium's making: a Box of integers
    assert batch == spaces.Box(np.zeros((2, 3), int), np.array([[2, 2, L - 1]] * 2), dtype=np.int64)
    assert VectorDiscreteAction(vector).single_action_space == spaces.Discrete(49 * L)
    assert VectorDiscreteAction(vector).action_space == spaces.MultiDiscrete([49 * L] * 2)


# --------------------------------------------------------------------------------------------------- one and many alike


def assert_same(first: Any, second: Any) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(second[key]), err_msg=key)


@pytest.mark.parametrize(("single", "vector"), PAIRS)
@given(seed=st.integers(0, 2**31), mode=st.sampled_from(["NextStep", "SameStep", "Disabled"]))
@settings(max_examples=10, deadline=None)
def test_single_vector_numpy_and_torch_agree(single: Any, vector: Any, seed: int, mode: str) -> None:
    rng, lanes = np.random.default_rng(seed), 3
    envs = [single(GlimpseEnv(**FIELDS)) for _ in range(lanes)]
    arrays = vector(GlimpseVectorEnv(lanes, autoreset_mode=mode, **FIELDS))
    tensors = vector(GlimpseVectorEnv(lanes, autoreset_mode=mode, output="torch", **FIELDS))
    observation, _ = arrays.reset(seed=seed)
    assert_same(tensors.reset(seed=seed)[0], observation)
    for lane, env in enumerate(envs):
        assert_same(env.reset(seed=seed + lane)[0], {key: value[lane] for key, value in observation.items()})
    for step in range(T):
        actions = random_actions(vector, lanes, rng)
        observation, rewards, terminated, truncated, info = arrays.step(actions)
        as_tensors = tensors.step(torch.tensor(actions))
        assert_same(as_tensors[0], observation)
        assert as_tensors[1].tolist() == rewards.tolist()
        assert not truncated.any()
        is_last = step == T - 1
        if is_last and mode == "SameStep":
            observation, info = info["final_obs"], info["final_info"]
        for lane, env in enumerate(envs):
            seen, reward, ended, _, told = env.step(actions[lane])
            assert_same(seen, {key: value[lane] for key, value in observation.items()})
            assert (reward, ended) == (rewards[lane], terminated[lane]) == (reward, is_last)
            assert told == {key: info[key][lane] for key in told}


# -------------------------------------------------------------------------------------------------------------- errors

BAD: dict[Any, list[Any]] = {
    BoxAction: [
        [np.nan, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, np.nan],
        [0, np.inf, 0, 0, 0, 0],
        [0] * 5,
        [0] * 7,
        [[0] * 6],
        0.0,
        None,
        {"location": (0, 0), "label": 0},
        ["a"] * 6,
    ],
    MultiDiscreteAction: [[7, 0, 0], [0, -1, 0], [0, 0, L], [0, 0], [[0, 0, 0]], [0.0, 1.0, 2.0], [True] * 3, None],
    DiscreteAction: [-1, 49 * L, 3.0, [3], True, None, "3", 2**70, np.uint64(2**64 - 1)],
}
BAD_ACTIONS = [(wrapper, action) for wrapper in SINGLE for action in BAD[wrapper]]


@pytest.mark.parametrize(("wrapper", "action"), BAD_ACTIONS)
@pytest.mark.parametrize("when", range(T))
def test_a_bad_action_changes_nothing(wrapper: Any, action: Any, when: int) -> None:
    envs = [wrapper(GlimpseEnv(**FIELDS)) for _ in range(2)]
    rng = np.random.default_rng(1)
    assert_same(*(env.reset(seed=3)[0] for env in envs))
    for step in range(T):
        if step == when:
            with pytest.raises(ValueError):
                envs[0].step(action)
        good = random_actions(wrapper, 1, rng)[0]
        first, second = (env.step(good) for env in envs)
        assert_same(first[0], second[0])
        assert first[1:] == second[1:]


@pytest.mark.parametrize(("wrapper", "action"), [(dict(PAIRS)[wrapper], action) for wrapper, action in BAD_ACTIONS])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_one_bad_lane_changes_nothing_in_any(wrapper: Any, action: Any, as_tensors: bool) -> None:
    envs = [wrapper(GlimpseVectorEnv(2, **FIELDS)) for _ in range(2)]
    rng = np.random.default_rng(1)
    assert_same(*(env.reset(seed=3)[0] for env in envs))
    for _ in range(T + 2):
        good = random_actions(wrapper, 2, rng)
        is_alike = np.shape(action) == good.shape[1:] and np.asarray(action).dtype.kind in "if"
        bad = np.array([good[0], action] if is_alike else [action, action])
        if as_tensors and bad.dtype.kind in "fib":
            bad = torch.tensor(bad)
        with pytest.raises(ValueError):
            envs[0].step(bad)
        first, second = (env.step(good) for env in envs)
        for one, other in zip(first[:4], second[:4], strict=True):
            assert_same(*({"": value} if not isinstance(value, dict) else value for value in (one, other)))
        assert_same(first[4], second[4])


@pytest.mark.parametrize("wrapper", [MultiDiscreteAction, DiscreteAction])
@pytest.mark.parametrize("grid", [0, -3, 2.0, None, "7"])
def test_grid_sizes_are_checked(wrapper: Any, grid: Any) -> None:
    with pytest.raises(ValueError, match=r"grid_size must be a positive int, got "):
        wrapper(GlimpseEnv(**FIELDS), grid_size=grid)


@pytest.mark.parametrize(("single", "vector"), PAIRS)
def test_foreign_environments_are_refused(single: Any, vector: Any) -> None:
    for foreign in (gym.make("CartPole-v1"), BoxAction(GlimpseEnv(**FIELDS))):
        with pytest.raises(ValueError, match=r"env must have the action space of GlimpseEnv, a Dict .*, got "):
            single(foreign)
    with pytest.raises(ValueError, match=r"env must have the action space of GlimpseEnv, a Dict .*, got Discrete"):
        vector(gym.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises((TypeError, AssertionError)):  # Gymnasium's own check, which depends on its version
        vector(GlimpseEnv(**FIELDS))


# ------------------------------------------------------------------------------------------------ other people's checks


@pytest.mark.parametrize("wrapper", SINGLE)
def test_gymnasium_checker_has_nothing_to_say(wrapper: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="(?s).*is different from the unwrapped version")
        gymnasium_check_env(wrapper(GlimpseEnv(render_mode="rgb_array", **FIELDS)), skip_render_check=True)


@pytest.mark.parametrize("wrapper", SINGLE)
def test_wrapped_environments_can_be_made_again_from_their_spec(wrapper: Any) -> None:
    env = wrapper(gym.make("RamGym/Digits-v0"))
    assert gym.make(env.spec).action_space == env.action_space


@pytest.mark.parametrize("wrapper", SINGLE)
@pytest.mark.parametrize("fields", [FIELDS, {"dataset": "digits"}])
def test_sb3_checker_has_nothing_to_say(wrapper: Any, fields: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(wrapper(GlimpseEnv(render_mode="rgb_array", **fields))))
