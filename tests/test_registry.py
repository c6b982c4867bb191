"""The contract that every registered environment keeps; a new row of the task table is tested by being there."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from ram_gym import TASKS, GlimpseVectorEnv, get_task
from ram_gym.tasks import FREE_ENV_ID
from ram_gym.wrappers import BoxAction, DiscreteAction, MultiDiscreteAction

IDS = [*(task.env_id for task in TASKS.values()), FREE_ENV_ID]
WRAPPERS = [BoxAction, MultiDiscreteAction, DiscreteAction]


def random_dataset(height: int = 28, width: int = 28) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, height, width), dtype=np.uint8), np.arange(30) % 10


def test_the_ids_are_registered_with_plain_data() -> None:
    assert {env_id for env_id in gym.registry if env_id.startswith("RamGym/")} == set(IDS)
    for env_id in IDS:
        spec = gym.spec(env_id)
        assert isinstance(spec.entry_point, str)
        assert isinstance(spec.vector_entry_point, str)
        assert spec.max_episode_steps is None
        json.dumps(spec.kwargs)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_check_env_has_nothing_to_say(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, dataset=random_dataset(), render_mode="rgb_array").unwrapped)
        check_env(gym.make(env_id, dataset="digits").unwrapped, skip_render_check=True)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("env_id", IDS)
def test_sb3_check_env_has_nothing_to_say_of_wrapped_forms(env_id: str, wrapper: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(FlattenObservation(wrapper(gym.make(env_id, dataset=random_dataset()).unwrapped)), warn=True)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_check_env_has_nothing_to_say_of_wrapped_forms(env_id: str, wrapper: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What is checked is wrapped on purpose; every other warning is an error.
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(wrapper(gym.make(env_id, dataset="digits", render_mode="rgb_array")))


@pytest.mark.parametrize("env_id", IDS)
def test_specs_survive_json(env_id: str) -> None:
    env = gym.make(env_id, dataset="digits", scene_seed=3, num_clutter=2, render_mode="rgb_array")
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.config == env.unwrapped.config  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again.reset(seed=1)[0]["glimpse"], env.reset(seed=1)[0]["glimpse"])


@pytest.mark.parametrize("env_id", IDS)
def test_pickled_environments_go_on_alike(env_id: str) -> None:
    env = gym.make(env_id, dataset="digits")
    env.reset(seed=0)
    copy = pickle.loads(pickle.dumps(env))
    action = {"location": np.array([0.2, -0.3], np.float32), "label": 1}
    np.testing.assert_array_equal(copy.step(action)[0]["glimpse"], env.step(action)[0]["glimpse"])


@pytest.mark.parametrize("env_id", IDS)
def test_vector_and_single_environment_agree_through_make(env_id: str) -> None:
    single = gym.make(env_id, dataset="digits")
    envs = gym.make_vec(env_id, num_envs=3, dataset="digits", device="cpu", output="numpy", autoreset_mode="SameStep")
    assert isinstance(envs.unwrapped, GlimpseVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    first, _ = envs.reset(seed=5)
    for lane in range(3):
        np.testing.assert_array_equal(first["glimpse"][lane], single.reset(seed=5 + lane)[0]["glimpse"])
    looped = gym.make_vec(env_id, num_envs=3, vectorization_mode="sync", dataset="digits")
    np.testing.assert_array_equal(looped.reset(seed=5)[0]["glimpse"], first["glimpse"])


def test_every_field_is_overridable_and_the_table_is_what_make_gives() -> None:
    fields: dict[str, Any] = {
        "dataset": "digits",
        "image_size": 12,
        "data_root": "somewhere",
        "split": "test",
        "canvas_size": 40,
        "num_clutter": 3,
        "clutter_size": 5,
        "composition": "overwrite",
        "num_glimpses": 4,
        "patch_size": 6,
        "num_scales": 2,
        "scale_factor": 3,
        "scene_seed": 11,
    }
    for env_id in IDS:
        config = gym.make(env_id, render_mode="rgb_array", **fields).unwrapped.config  # type: ignore[attr-defined]
        assert config.to_dict() == fields
        vector = gym.make_vec(env_id, num_envs=2, **fields).unwrapped.config  # type: ignore[attr-defined]
        assert vector.to_dict() == fields
    for name, task in TASKS.items():
        assert get_task(name) is get_task(task.env_id) is task
    with pytest.raises(ValueError, match="mnist-28"):
        get_task("mnist")


@pytest.mark.mnist
@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_bounds_hold_and_are_reached_on_real_images(env_id: str, split: str, mnist_root: str) -> None:
    envs = gym.make_vec(env_id, num_envs=256, data_root=mnist_root, split=split)
    env = gym.make(env_id, data_root=mnist_root, split=split)
    largest = 0.0
    for seed in range(2):
        observation, _ = envs.reset(seed=seed)
        for _ in range(10):
            assert envs.observation_space.contains(observation)
            largest = max(largest, observation["glimpse"].max())
            observation, *_ = envs.step(envs.action_space.sample())
        assert env.observation_space.contains(env.reset(seed=seed)[0])
    assert largest > 0.95


@pytest.mark.mnist
@pytest.mark.parametrize("env_id", [task.env_id for task in TASKS.values() if task.config.dataset == "mnist"])
def test_gymnasium_check_env_on_mnist(env_id: str, mnist_root: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, data_root=mnist_root, render_mode="rgb_array").unwrapped)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_imports_the_package_itself() -> None:
    code = "import gymnasium as gym; print(gym.make('ram_gym:RamGym/Digits-v0').reset(seed=0)[0]['glimpse'].shape)"
    assert run_python(code).strip() == "(1, 8, 8)"
    code = "import gymnasium as gym; print(gym.make_vec('ram_gym:RamGym/Digits-v0', num_envs=3).num_envs)"
    assert run_python(code).strip() == "3"


def test_importing_loads_nothing_heavy_and_a_digits_episode_needs_no_torch() -> None:
    heavy = ("torch", "torchvision", "stable_baselines3", "matplotlib", "sklearn", "scipy", "PIL")
    code = f"import sys, ram_gym; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"
    code = (
        "import sys, gymnasium, ram_gym; env = gymnasium.make('RamGym/Digits-v0'); env.reset();"
        "env.step({'location': (0, 0), 'label': 1}); print('torch' in sys.modules)"
    )
    assert run_python(code).strip() == "False"


def test_importing_takes_under_0_3_seconds_beyond_gymnasium() -> None:
    code = "import gymnasium, time; t = time.perf_counter(); import ram_gym; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.3
