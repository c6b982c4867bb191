"""GlimpseVecEnv against DummyVecEnv over the single environment, and under Stable-Baselines3's own tools."""

from __future__ import annotations

import builtins
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

import ram_gym
from ram_gym import wrappers
from ram_gym.adapters.sb3 import GlimpseVecEnv

NUM_ENVS = 5
FORMS = {
    "MultiDiscrete": (wrappers.MultiDiscreteAction, wrappers.VectorMultiDiscreteAction),
    "Discrete": (wrappers.DiscreteAction, wrappers.VectorDiscreteAction),
    "Box": (wrappers.BoxAction, wrappers.VectorBoxAction),
}
SETTINGS = {
    "digits": {"dataset": "digits"},
    "clutter": {"dataset": "digits", "canvas_size": 40, "num_clutter": 2, "num_scales": 2, "num_glimpses": 3},
    "one glimpse": {"dataset": "digits", "split": "validation", "num_glimpses": 1},
}


def make(form: str = "MultiDiscrete", num_envs: int = NUM_ENVS, *, progress: bool = False, **arguments: Any) -> Any:
    monitor = arguments.pop("monitor", True)
    arguments = {"dataset": "digits", "autoreset_mode": "SameStep", **arguments}
    envs = FORMS[form][1](ram_gym.GlimpseVectorEnv(num_envs, **arguments))
    return GlimpseVecEnv(envs, add_progress=progress, monitor=monitor)


def make_dummy(form: str, *, progress: bool = False, num_envs: int = NUM_ENVS, **arguments: Any) -> VecEnv:
    def one() -> gym.Env[Any, Any]:
        env: Any = FORMS[form][0](ram_gym.GlimpseEnv(**arguments))
        return Monitor(wrappers.ProgressObservation(env) if progress else env)

    return DummyVecEnv([one] * num_envs)


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal keys, values, kinds and, of arrays, dtypes and shapes."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, np.ndarray):
        assert isinstance(ours, np.ndarray)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_it_equals_dummy_vec_env_bit_for_bit(form: str, setting: dict[str, Any], progress: bool) -> None:
    ours, theirs = make(form, progress=progress, **setting), make_dummy(form, progress=progress, **setting)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.seed(7) == theirs.seed(7)
    ours.action_space.seed(3)
    assert_same(ours.reset(), theirs.reset())
    ended = 0
    for _ in range(20):
        actions = np.stack([ours.action_space.sample() for _ in range(NUM_ENVS)])
        (obs, reward, done, infos), (obs2, reward2, done2, infos2) = ours.step(actions), theirs.step(actions)
        assert_same(obs, obs2)
        assert_same(reward, reward2)
        assert_same(done, done2)
        for lane in range(NUM_ENVS):
            if done[lane]:
                ended += 1
                ours_t, theirs_t = infos[lane]["episode"].pop("t"), infos2[lane]["episode"].pop("t")
                assert isinstance(ours_t, type(theirs_t))
                assert_same(infos[lane], infos2[lane])
            else:
                assert infos[lane] == {}
                assert infos2[lane] == {"TimeLimit.truncated": False}
    assert ended >= 3 * NUM_ENVS


def test_seeds_and_options_last_for_one_reset() -> None:
    ours, theirs = make(), make_dummy("MultiDiscrete", dataset="digits")
    for env in (ours, theirs):
        env.seed(1)
        env.set_options([{"index": lane, "location": (0.1 * lane, 0.0)} for lane in range(NUM_ENVS)])
    assert_same(ours.reset(), theirs.reset())
    assert ours.get_attr("label") == theirs.get_attr("label")
    first = ours.get_attr("canvas")
    assert_same(ours.reset(), theirs.reset())
    assert any((a != b).any() for a, b in zip(first, ours.get_attr("canvas"), strict=True))
    ours.set_options([{"index": 1}, *[{}] * (NUM_ENVS - 1)])
    with pytest.raises(ValueError, match="same keys for all"):
        ours.reset()
    unseeded = [make().reset()["glimpse"] for _ in range(2)]
    assert (unseeded[0] != unseeded[1]).any()


def test_infos_are_not_shared() -> None:
    env = make()
    env.reset()
    actions = np.zeros((NUM_ENVS, 3), np.int64)
    _, _, _, infos = env.step(actions)
    infos[0]["mark"] = 1
    assert infos[1] == {}
    assert env.step(actions)[3] == [{}] * NUM_ENVS
    observation, _, done, infos = [env.step(actions) for _ in range(4)][-1]
    assert done.all()
    for entry in infos:
        entry["terminal_observation"]["glimpse"][:] = 7.0
    assert observation["glimpse"].max() <= 1
    assert env.step(actions)[0]["glimpse"].max() <= 1


def test_attributes_and_methods_of_lanes() -> None:
    ours = make(render_mode="rgb_array")
    theirs = make_dummy("MultiDiscrete", dataset="digits", render_mode="rgb_array")
    for env in (ours, theirs):
        env.seed(4)
        env.reset()
        env.step(np.full((NUM_ENVS, 3), 3))
    for name in ("label", "canvas", "digit_location", "config", "num_classes", "render_mode", "action_space"):
        for a, b in zip(ours.get_attr(name, [0, 3]), theirs.get_attr(name, [0, 3]), strict=True):
            assert_same(a, b)
    assert [len(ours.get_attr("label", which)) for which in (None, 2, [1, 2])] == [NUM_ENVS, 1, 2]
    assert ours.has_attr("num_images")
    assert not ours.has_attr("nothing")
    for a, b in zip(ours.get_images(), theirs.get_images(), strict=True):
        assert_same(a, b)
    assert_same(ours.render(), theirs.render())
    assert_same(ours.env_method("render", indices=2)[0], theirs.env_method("render", indices=2)[0])
    assert ours.env_method("get_wrapper_attr", "label") == theirs.get_attr("label")
    again = [env.env_method("reset", seed=11, options={"index": 5}, indices=[1, 4]) for env in (ours, theirs)]
    for a, b in zip(*again, strict=True):
        assert_same(a[0], b[0])
        assert a[1] == b[1] == {}
    steps = [env.step(np.zeros((NUM_ENVS, 3), np.int64)) for env in (ours, theirs)]
    assert_same(steps[0][0], steps[1][0])
    with pytest.raises(ValueError, match="must be reset, render"):
        ours.env_method("step", 0)
    with pytest.raises(ValueError, match="all lanes share"):
        ours.set_attr("render_mode", None, indices=0)
    ours.set_attr("render_mode", None)
    assert ours.get_attr("render_mode") == [None] * NUM_ENVS
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert ours.get_images() == [None] * NUM_ENVS
    assert ours.env_is_wrapped(Monitor) == [True] * NUM_ENVS
    assert ours.env_is_wrapped(wrappers.VectorMultiDiscreteAction, [0]) == [True]
    assert ours.env_is_wrapped(wrappers.VectorBoxAction, 0) == [False]
    assert make(monitor=False).env_is_wrapped(Monitor, 0) == [False]
    ours.close()


def test_vec_monitor_counts_what_it_counts(tmp_path: Path) -> None:
    own = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitored = VecMonitor(make(monitor=False), str(tmp_path / "log"), info_keywords=("is_success",))
    for env in (own, monitored):
        env.seed(2)
        env.reset()
    for _ in range(12):
        actions = np.stack([own.action_space.sample() for _ in range(NUM_ENVS)])
        for ours, theirs in zip(own.step(actions)[3], monitored.step(actions)[3], strict=True):
            assert set(ours) == set(theirs)
            if ours:
                assert (ours["episode"]["r"], ours["episode"]["l"]) == (theirs["episode"]["r"], theirs["episode"]["l"])
    assert len((tmp_path / "log.monitor.csv").read_text().splitlines()) == 2 + 2 * NUM_ENVS


class Answerer:
    """Looks at the centre and answers with the parity of the lane: right by chance, the same each time."""

    def predict(self, observation: Any, state: Any = None, **arguments: Any) -> tuple[np.ndarray, None]:
        num_envs = len(observation["location"])
        return np.stack([np.full(num_envs, 3), np.full(num_envs, 3), np.arange(num_envs) % 2], axis=1), None


def test_evaluation_and_eval_callback_see_rewards_and_success(tmp_path: Path) -> None:
    results = []
    for env in (make(), make_dummy("MultiDiscrete", dataset="digits")):
        env.seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.append(evaluate_policy(Answerer(), env, 50, return_episode_rewards=True))  # type: ignore[arg-type]
    assert results[0] == results[1]
    assert 0 < sum(results[0][0]) < 50
    assert results[0][1] == [6] * 50

    training, validation = make(), make(split="validation")
    model = PPO("MultiInputPolicy", training, n_steps=6, batch_size=30, n_epochs=1, seed=0)
    callback = EvalCallback(
        validation,
        n_eval_episodes=20,
        eval_freq=12,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(4 * 6 * NUM_ENVS, callback)
    found = np.load(tmp_path / "evaluations.npz")
    np.testing.assert_array_equal(found["results"], found["successes"])
    assert found["successes"].shape == (2, 20)
    assert PPO.load(tmp_path / "best_model").action_space == training.action_space
    assert len(model.ep_success_buffer or []) == 4 * NUM_ENVS
    rewards = [episode["r"] for episode in model.ep_info_buffer or []]
    assert rewards == [float(is_success) for is_success in model.ep_success_buffer or []]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("progress", [False, True])
def test_the_single_environment_passes_their_check(form: str, progress: bool) -> None:
    env: Any = FORMS[form][0](gym.make("RamGym/Digits-v0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A glimpse is no picture of bytes, and is not meant to be one.
        warnings.filterwarnings("ignore", message="It seems that your observation.* is an image")
        warnings.filterwarnings("ignore", message="The minimal resolution for an image")
        check_env(wrappers.ProgressObservation(env) if progress else env)


def test_their_make_vec_env_plays_the_same_episodes() -> None:
    theirs = make_vec_env("RamGym/Digits-v0", 3, seed=9, wrapper_class=lambda env: wrappers.MultiDiscreteAction(env))
    ours = make(num_envs=3)
    ours.seed(9)
    assert_same(ours.reset(), theirs.reset())
    for _ in range(7):
        actions = np.stack([ours.action_space.sample() for _ in range(3)])
        a, b = ours.step(actions), theirs.step(actions)
        for ours_value, theirs_value in zip(a[:3], b[:3], strict=True):
            assert_same(ours_value, theirs_value)


def test_wrong_environments_are_refused() -> None:
    vector = ram_gym.GlimpseVectorEnv(2, dataset="digits", autoreset_mode="SameStep")
    with pytest.raises(ValueError, match="VectorMultiDiscreteAction"):
        GlimpseVecEnv(vector)
    for arguments in ({"autoreset_mode": "NextStep"}, {"autoreset_mode": "SameStep", "output": "torch"}):
        other = ram_gym.GlimpseVectorEnv(2, dataset="digits", **arguments)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
            GlimpseVecEnv(wrappers.VectorBoxAction(other))
    with pytest.raises(ValueError, match="must be a GlimpseVectorEnv"):
        GlimpseVecEnv(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"))
    env = make(form="Box")
    env.reset()
    with pytest.raises(ValueError, match="finite"):
        env.step(np.full((NUM_ENVS, 12), np.nan, np.float32))


def test_without_stable_baselines3_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("stable_baselines3"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.delitem(sys.modules, "ram_gym.adapters.sb3")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'ram_gym\[sb3\]'"):
        importlib.import_module("ram_gym.adapters.sb3")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS CUDA: no CUDA device here")
def test_on_cuda_it_hands_over_the_same_arrays() -> None:
    ours, theirs = make(device="cuda"), make(device="cpu")
    for env in (ours, theirs):
        env.seed(0)
    assert_same(ours.reset(), theirs.reset())
    for _ in range(7):
        actions = np.stack([ours.action_space.sample() for _ in range(NUM_ENVS)])
        assert_same(ours.step(actions)[0], theirs.step(actions)[0])
