"""Functions, torch modules and Stable-Baselines3 models as policies."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces.utils import flatten
from torch.optim.swa_utils import AveragedModel

from ram_gym import GlimpseEnv, GlimpseVectorEnv, as_policy, evaluate
from ram_gym.adapters.policies import Sb3Policy
from ram_gym.wrappers import BoxAction, DiscreteAction, MultiDiscreteAction

SHAPE: dict[str, Any] = {"dataset": "digits", "split": "test", "num_glimpses": 3}


@pytest.fixture(scope="module")
def env() -> GlimpseVectorEnv:
    return GlimpseVectorEnv(10, output="torch", autoreset_mode="Disabled", **SHAPE)


def stay(observation: dict[str, Any]) -> dict[str, Any]:
    return {"location": observation["location"], "label": np.full(len(observation["location"]), 3)}


def count(observation: dict[str, Any], state: Any = None) -> tuple[dict[str, Any], int]:
    taken = (state or 0) + 1
    return {**stay(observation), "label": torch.full((len(observation["location"]),), taken)}, taken


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = torch.nn.ReLU()  # modules often have such a thing, which makes them no policies

    def forward(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {
            "location": -self.act(observation["location"]),
            "label": torch.ones(len(observation["location"])).long(),
        }


def test_functions_and_modules_play(env: GlimpseVectorEnv) -> None:
    played = evaluate(as_policy(stay), env, episodes=20)
    assert played.policy == "stay"
    assert played.answers.tolist() == [[3] * 3] * 20
    assert torch.equal(played.locations[:, 0], played.locations[:, 2])
    assert played.accuracy_by_glimpse_percent is None
    counted = evaluate(as_policy(count, name="counts", answers_early=True), env, episodes=20)
    assert counted.policy == "counts"
    assert counted.answers.tolist() == [[1, 2, 3]] * 20
    assert counted.accuracy_by_glimpse_percent is not None
    module = evaluate(as_policy(Module()), env, episodes=20)
    assert module.policy == "Module"
    assert torch.equal(module.locations[:, 1], -module.locations[:, 0].clip(0))


def test_a_policy_is_given_another_name(env: GlimpseVectorEnv) -> None:
    renamed = as_policy(as_policy(count, answers_early=True), name="other")
    assert (renamed.name, renamed.answers_early) == ("other", True)  # type: ignore[attr-defined]
    assert evaluate(renamed, env, episodes=5).answers.tolist() == [[1, 2, 3]] * 5
    assert as_policy(renamed).name == "other"


def test_what_cannot_play_is_refused_by_name(env: GlimpseVectorEnv) -> None:
    with pytest.raises(ValueError, match="policy 'mine' must be a function"):
        as_policy(3, name="mine")
    for wrong in (lambda: 1, lambda a, b, c: 1, lambda *, a: 1):
        with pytest.raises(ValueError, match="policy 'mine' must take"):
            as_policy(wrong, name="mine")
    with pytest.raises(ValueError, match="policy 'stay': act must return"):
        evaluate(as_policy(lambda observation, state: stay(observation), name="stay"), env)


class Remembers(torch.nn.Module):
    def forward(self, observation: dict[str, torch.Tensor], state: torch.Tensor | None = None) -> Any:
        taken = 1 if state is None else state + 1
        label = observation["location"][:, 0].long() * 0 + taken
        return {"location": -observation["location"], "label": label}, label


class Scriptable(torch.nn.Module):
    def forward(self, observation: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"location": -observation["location"], "label": observation["location"][:, 0].long() * 0 + 1}


@pytest.mark.parametrize(
    "wrap",
    [
        partial(torch.compile, backend="eager"),
        torch.nn.DataParallel,
        AveragedModel,
        lambda module: torch.compile(torch.nn.DataParallel(module), backend="eager"),
    ],
    ids=["compile", "DataParallel", "AveragedModel", "both"],
)
def test_wrapped_modules_play_as_what_they_wrap(env: GlimpseVectorEnv, wrap: Any) -> None:
    for module, answers in ((Remembers(), [1, 2, 3]), (Scriptable(), [1, 1, 1])):
        policy = as_policy(wrap(module), answers_early=True)
        assert policy.name == type(module).__name__
        played = evaluate(policy, env, episodes=12)
        assert played.answers.tolist() == [answers] * 12
        assert torch.equal(played.locations[:, 1], -played.locations[:, 0])


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")
def test_traced_and_scripted_modules_play(env: GlimpseVectorEnv) -> None:
    observation, _ = env.reset()
    state = torch.zeros(10, dtype=torch.int64)
    traced = torch.jit.trace(Scriptable(), (observation,), strict=False)
    for module in (traced, torch.jit.script(Scriptable()), torch.compile(traced, backend="eager")):
        policy = as_policy(module)
        assert policy.name == "Scriptable"
        played = evaluate(policy, env, episodes=12)
        assert played.answers.tolist() == [[1, 1, 1]] * 12
        assert torch.equal(played.locations[:, 1], -played.locations[:, 0])
    remembers = torch.jit.trace(Remembers(), (observation, state), strict=False)
    observation, _ = env.reset()
    action, state = as_policy(remembers).act(observation, state + 4)
    assert action["label"].tolist() == state.tolist() == [5] * 10


def test_wrapped_modules_that_cannot_play_are_refused_by_name() -> None:
    class Wants(torch.nn.Module):
        def forward(self, a: Any, b: Any, c: Any) -> Any:
            return a

    for module in (torch.nn.DataParallel(Wants()), torch.compile(Wants(), backend="eager")):
        with pytest.raises(ValueError, match=r"policy 'Wants' must take .*got \(a"):
            as_policy(module)


sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")
WRAPPERS = {"multi": MultiDiscreteAction, "discrete": DiscreteAction, "box": BoxAction}


@pytest.mark.parametrize("form", WRAPPERS)
@pytest.mark.parametrize("is_recurrent", [False, True])
@pytest.mark.parametrize("is_flat", [False, True])
def test_sb3_models_answer_as_in_the_environment_they_train_in(
    env: GlimpseVectorEnv, form: str, is_recurrent: bool, is_flat: bool
) -> None:
    single: Any = WRAPPERS[form](GlimpseEnv(**SHAPE))
    space = single.observation_space
    if is_flat:
        single = gym.wrappers.FlattenObservation(single)
    maker = contrib.RecurrentPPO if is_recurrent else sb3.PPO
    policy = ("Mlp" if is_flat else "MultiInput") + ("LstmPolicy" if is_recurrent else "Policy")
    model = maker(policy, single, seed=3, n_steps=8, batch_size=8)
    evaluation = evaluate(as_policy(model, name="m", env=env), env, episodes=12)
    for index in range(12):
        observation, _ = single.reset(options={"index": index})
        state, start, done = None, np.array([True]), False
        while not done:
            action, state = model.predict(observation, state=state, episode_start=start, deterministic=True)
            observation, _, done, _, info = single.step(action)
            start = np.array([False])
        assert info["prediction"] == evaluation.predictions[index]
        np.testing.assert_allclose(evaluation.locations[index], np.stack(single.unwrapped._path), atol=1e-6)
    if is_flat:
        seen, _ = single.unwrapped.reset(options={"index": 0})
        assert np.array_equal(flatten(space, seen), np.concatenate([seen["glimpse"].ravel(), seen["location"]]))


@pytest.mark.parametrize("is_flat", [False, True])
def test_models_behind_vec_normalize_see_what_they_were_trained_on(is_flat: bool) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    shape: dict[str, Any] = {"dataset": "digits", "num_glimpses": 1, "patch_size": 7, "scale_factor": 4}
    num = 100

    def make(split: str, num_envs: int) -> Any:
        def wrapped(**options: Any) -> Any:
            single: Any = BoxAction(GlimpseEnv(**shape, split=split))
            return gym.wrappers.FlattenObservation(single) if is_flat else single

        return make_vec_env(wrapped, num_envs, seed=0)

    normalized = VecNormalize(make("train", 64), norm_reward=False)
    model = sb3.PPO("MlpPolicy" if is_flat else "MultiInputPolicy", normalized, seed=0, n_steps=8, batch_size=128)
    model.learn(1_024)
    normalized.training = False
    env = GlimpseVectorEnv(num, split="test", output="torch", autoreset_mode="Disabled", **shape)
    evaluation = evaluate(as_policy(model, env=env), env, episodes=num)
    theirs = VecNormalize(make("test", num), training=False, norm_reward=False)
    theirs.obs_rms = normalized.obs_rms
    theirs.venv.set_options([{"index": index} for index in range(num)])
    rewards, _ = evaluate_policy(model, theirs, num, return_episode_rewards=True)
    assert evaluation.is_right.tolist() == [reward == 1 for reward in rewards]  # type: ignore[union-attr]
    raw = Sb3Policy(model, env)
    raw.normalize = lambda given: given  # type: ignore[method-assign]
    assert evaluate(raw, env, episodes=num).predictions.tolist() != evaluation.predictions.tolist()


class Model:
    """What the adapter needs of a model; remembers the progress it was told."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.told: list[float] = []

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        assert deterministic
        assert episode_start.all() == (state is None)
        self.told.append(observation["progress"][0, 0])
        return np.zeros((len(episode_start), 3), int), len(self.told)


def test_progress_is_told_to_models_that_want_it(env: GlimpseVectorEnv) -> None:
    clock = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    spaces = {**env.single_observation_space.spaces, "progress": clock}  # type: ignore[attr-defined]
    model = Model(gym.spaces.Dict(spaces), gym.spaces.MultiDiscrete([4, 4, 10]))
    evaluation = evaluate(Sb3Policy(model, env, "clocked"), env, episodes=10)
    np.testing.assert_allclose(model.told, [1 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(evaluation.locations[:, 1:], np.full((10, 2, 2), -0.75))


def test_models_of_another_task_are_refused_by_name(env: GlimpseVectorEnv) -> None:
    own = env.single_observation_space
    for actions in (
        gym.spaces.MultiDiscrete([7, 7, 12]),
        gym.spaces.MultiDiscrete([7, 6, 10]),
        gym.spaces.Discrete(7 * 7 * 12),
        gym.spaces.Discrete(2),
        gym.spaces.Box(-1, 1, (14,)),
    ):
        with pytest.raises(ValueError, match="policy 'm' was trained on another task: it gives actions"):
            as_policy(Model(own, actions), name="m", env=env)
    with pytest.raises(ValueError, match="policy 'm' was trained on another task: it takes observations"):
        as_policy(Model(gym.spaces.Box(0, 1, (5,)), gym.spaces.MultiDiscrete([7, 7, 10])), name="m", env=env)
    with pytest.raises(ValueError, match=r"policy 'm': .* needs env="):
        as_policy(Model(own, gym.spaces.MultiDiscrete([7, 7, 10])), name="m")
