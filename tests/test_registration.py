"""register_task: gym.make, make_vec, specs, JSON and other processes find tasks by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import ram_gym
from ram_gym import TASKS, get_task, register_task
from ram_gym.registration import TASKS_VARIABLE

WRAPPERS: list[Any] = [
    ("EveryAnswerReward", {"weight": 0.5}),
    ("MultiDiscreteAction", {"grid_size": 5}),
    "ProgressObservation",
    "FlattenObservation",
]


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves the registry, the table and the environment as they were."""
    monkeypatch.setenv(TASKS_VARIABLE, "")
    registry, tasks = dict(gym.registry), dict(TASKS)
    yield
    gym.registry.clear()
    gym.registry.update(registry)
    TASKS.clear()
    TASKS.update(tasks)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    parts = {"images": rng.integers(0, 256, (40, 6, 5), dtype=np.uint8), "labels": np.arange(40) % 4}
    np.savez(tmp_path / "own.npz", **parts)
    return tmp_path / "own.npz"


def episode(env: gym.Env[Any, Any]) -> list[Any]:
    observation, _ = env.reset(seed=3)
    played: list[Any] = [observation]
    for action in ([1, 2, 0], [4, 0, 1], [2, 2, 3]):
        observation, reward, terminated, truncated, _ = env.step(np.array(action))
        played += [observation, reward, terminated, truncated]
    return played


def test_a_task_is_made_by_name_by_spec_and_from_json(images: Path) -> None:
    fields: dict[str, Any] = {"canvas_size": 9, "num_glimpses": 3, "patch_size": 3}
    task = register_task("MyLab/Own-v0", dataset=images, wrappers=WRAPPERS, **fields)
    assert get_task("MyLab/Own-v0") is task
    assert task.config.to_dict() == ram_gym.GlimpseConfig(dataset=str(images), **fields).to_dict()
    env = gym.make("MyLab/Own-v0")
    assert isinstance(env.action_space, gym.spaces.MultiDiscrete)
    assert env.action_space.nvec.tolist() == [5, 5, 4]
    played = episode(env)
    assert env.spec is not None
    specs = [gym.spec("MyLab/Own-v0"), EnvSpec.from_json(gym.spec("MyLab/Own-v0").to_json()), env.spec]
    specs.append(EnvSpec.from_json(env.spec.to_json()))
    for spec in specs:
        again = gym.make(spec)
        assert str(again) == str(env)  # not wrapped twice
        assert all(np.array_equal(a, b) for a, b in zip(episode(again), played, strict=True))
    assert gym.make("MyLab/Own-v0", split="test").unwrapped.config.split == "test"  # type: ignore[attr-defined]


def test_make_vec_plays_the_same_episodes_in_all_modes(images: Path) -> None:
    register_task("own", dataset=images, wrappers=WRAPPERS, canvas_size=9, num_glimpses=3, patch_size=3)
    ours = gym.make_vec("RamGym/own-v0", 2)
    theirs = gym.make_vec("RamGym/own-v0", 2, vectorization_mode="sync")
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    for action in ([1, 2, 0], [4, 0, 1], [2, 2, 3], [0, 0, 0]):
        for a, b in zip(ours.step(np.array([action] * 2))[:4], theirs.step(np.array([action] * 2))[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_processes_find_tasks_wherever_they_run(images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(images.parent)
    register_task("own", dataset=images.name, wrappers=WRAPPERS, canvas_size=9, patch_size=3)
    code = "import gymnasium as gym; e = gym.make('ram_gym:RamGym/own-v0'); print(e.reset(seed=3)[0].sum())"
    environment = {**os.environ, "PYTHONPATH": str(Path(ram_gym.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith(str(gym.make("RamGym/own-v0").reset(seed=3)[0].sum()))


@pytest.mark.parametrize(
    ("name", "given", "error", "match"),
    [
        ("digits", {}, ValueError, "name must be one that ram_gym does not use"),
        ("RamGym/Digits-v0", {}, ValueError, "name must be one"),
        ("a b", {}, ValueError, "name must be a word or an id"),
        ("own", {"dataset": (np.zeros((2, 4, 4), np.uint8), np.arange(2))}, ValueError, "name or a path.*numpy.savez"),
        ("own", {"wrappers": ["ClipAction"]}, ValueError, "wrappers must be of BoxAction"),
        ("own", {"canvas": 60}, TypeError, "unexpected keyword argument 'canvas'"),
        ("own", {"num_glimpses": 0}, ValueError, "num_glimpses"),
    ],
)
def test_bad_tasks_are_refused_and_nothing_is_registered(name: str, given: Any, error: Any, match: str) -> None:
    before = set(gym.registry), set(TASKS), os.environ[TASKS_VARIABLE]
    with pytest.raises(error, match=match):
        register_task(name, **given)
    assert (set(gym.registry), set(TASKS), os.environ[TASKS_VARIABLE]) == before


def test_a_damaged_variable_is_named() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import ram_gym"],
        env={**os.environ, TASKS_VARIABLE: "[1]", "PYTHONPATH": str(Path(ram_gym.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "$RAM_GYM_TASKS must hold what register_task wrote" in run.stderr
