"""Environments, models and policies of a Stable-Baselines3 run, and loading a run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from torch import Tensor

from ram_gym import GlimpseConfig, GlimpseVectorEnv
from ram_gym.adapters.sb3 import GlimpseVecEnv
from ram_gym.wrappers import VectorBoxAction, VectorEveryAnswerReward, VectorMultiDiscreteAction

from ..registry import TrainedRun
from ..scripted import ScriptedLocator, make_locator
from ..training.environment import check_device, make_blank_env
from ..training.run_folder import RunFolder
from . import network as policies
from .algorithms import LabelledPPO, LabelledRecurrentPPO
from .checkpoint import BEST, load_checkpoint
from .config import Sb3Config
from .network import GlimpseLstmPolicy, GlimpsePolicy, label_logits


def wrap_actions(envs: VectorEnv[Any, Any, Any], config: Sb3Config) -> VectorMultiDiscreteAction | VectorBoxAction:
    """The environment with the run's action form."""
    if config.action == "box":
        return VectorBoxAction(envs)
    return VectorMultiDiscreteAction(envs, grid_size=config.grid_size)


def make_env(config: Sb3Config, env_config: GlimpseConfig, num_envs: int, *, shaped: bool = False) -> GlimpseVecEnv:
    """The environment of a run in the form that Stable-Baselines3 takes."""
    check_device(config.device)
    envs: Any = GlimpseVectorEnv(num_envs, env_config, device=config.device, autoreset_mode="SameStep")
    if shaped and config.shaping == "every-answer":
        envs = VectorEveryAnswerReward(envs, config.shaping_weight)
    return GlimpseVecEnv(wrap_actions(envs, config), add_progress=True)


def make_model(config: Sb3Config, env: GlimpseVecEnv) -> LabelledPPO | LabelledRecurrentPPO:
    """A new model, with weights drawn from the run's seed."""
    options = config.hyperparameters()
    for key in ("env_wrapper", "n_timesteps", "n_envs"):
        del options[key]
    options["policy"], options["policy_kwargs"] = _policy(config)
    options["learning_rate"] = LinearSchedule(config.learning_rate, 0.0, 1.0)
    make = LabelledRecurrentPPO if config.algorithm == "sb3-ppo-lstm" else LabelledPPO
    set_random_seed(config.seed)
    return make(env=env, seed=config.seed, device=config.device, **options)


def _policy(config: Sb3Config) -> tuple[type[GlimpsePolicy | GlimpseLstmPolicy], dict[str, Any]]:
    """The class of a run's policy and its keyword arguments."""
    options = config.hyperparameters()
    return getattr(policies, options["policy"].rpartition(".")[2]), {
        **options["policy_kwargs"],
        "auxiliary_weight": config.auxiliary_weight,
        "reads_every_label": config.shaping == "every-answer",
    }


class PolicyState(NamedTuple):
    """State of a policy: that of its LSTM, if it has one, and the number of glimpses taken."""

    lstm: tuple[Tensor, Tensor] | None
    num_taken: int


class Sb3Policy:
    """A trained Stable-Baselines3 policy as a `ram_gym.Policy`. It takes the most probable location and label.

    Args:
        policy: the network, on the environment's device.
        env: the environment to play.
        config: training config of the run.
        name: name in reports.
        locator: scripted locator that chooses the locations instead of the policy.
    """

    def __init__(
        self,
        policy: GlimpsePolicy | GlimpseLstmPolicy,
        env: GlimpseVectorEnv,
        config: Sb3Config,
        name: str = "sb3-ppo",
        locator: ScriptedLocator | None = None,
    ) -> None:
        self.policy, self.name, self.locator = policy, name, locator
        # Without this shaping, labels before the last step are not trained.
        self.answers_early = config.shaping == "every-answer"
        self.num_glimpses = env.config.num_glimpses
        self.decode, self.is_box = wrap_actions(env, config).actions, config.action == "box"

    def act(self, observation: dict[str, Any], state: PolicyState | None) -> tuple[dict[str, Any], PolicyState]:
        """The next action, with the label's log-probabilities; see `ram_gym.Policy`."""
        lstm, num_taken = state or PolicyState(None, 0)
        num_taken += 1
        location = observation["location"]
        progress = torch.full_like(location[:, :1], num_taken / self.num_glimpses)
        obs = {"glimpse": observation["glimpse"], "location": location, "progress": progress}
        distribution: Distribution
        if isinstance(self.policy, GlimpseLstmPolicy):
            if lstm is None:
                layers, _, size = self.policy.lstm_hidden_state_shape
                lstm = (location.new_zeros(layers, len(location), size),) * 2
            starts = location.new_zeros(len(location))
            distribution, lstm = self.policy.get_distribution(obs, lstm, starts)  # type: ignore[arg-type,assignment]
        else:
            distribution = self.policy.get_distribution(obs)
        mode = distribution.mode()
        if self.is_box:
            # As Stable-Baselines3 does in training and validation. If several scores exceed 1, the first one is the
            # answer.
            mode = mode.clamp(-1.0, 1.0)
        action = self.decode(mode)
        if self.locator is not None:
            action["location"] = self.locator(observation, num_taken)
        action["log_probabilities"] = label_logits(distribution).log_softmax(-1)
        return action, PolicyState(lstm, num_taken)


def load(folder: RunFolder, config: Sb3Config) -> TrainedRun:
    """The best network of a run; see `agents.registry.Agent.load`."""
    data = folder.read_about()["data"]
    env = GlimpseVecEnv(wrap_actions(make_blank_env(config, data, "numpy"), config), add_progress=True)
    make_network, options = _policy(config)
    network = make_network(env.observation_space, env.action_space, lambda _: 0.0, **options).to(config.device)
    state = load_checkpoint(folder, BEST, network)
    network.set_training_mode(False)

    def make(env: GlimpseVectorEnv, locator: str | None = None, name: str = config.agent) -> Sb3Policy:
        if locator is None:
            return Sb3Policy(network, env, config, name)
        generator = torch.Generator(env.device).manual_seed(config.seed)
        return Sb3Policy(network, env, config, name, make_locator(locator, env, generator))

    return TrainedRun(folder.path, config, data, state.epoch, network, make)
