"""Sb3Config, the training config of PPO and RecurrentPPO, and the presets of each task."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, cast

import tyro
from annotated_types import Interval

from ..training.config import TrainConfig, preset_fields
from ..training.schema import Count, NotNegative, Positive, Share, Units

Algorithm = Literal["sb3-ppo-lstm", "sb3-ppo"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sb3Config(TrainConfig):
    """Training config of PPO and RecurrentPPO. Fields that Stable-Baselines3 also has mean the same there.

    Raises:
        ValueError: a field has a wrong type or value; the message names the field, what it must be and what came.
    """

    algorithm: Annotated[Algorithm, tyro.conf.Suppress] = "sb3-ppo-lstm"
    """RecurrentPPO, or PPO, its control without memory."""
    task: str = "digits"
    """Task to learn; see the README's table."""

    action: Literal["multi-discrete", "box"] = "multi-discrete"
    """Action form. multi-discrete: a grid cell and a label. box: x, y and a score per label, with normal noise."""
    grid_size: Annotated[int, Interval(ge=1, le=1024)] = 7
    """Cells along each axis of the canvas, for multi-discrete actions."""
    log_std_init: float = -1.5
    """Initial logarithm of the noise's standard deviation, for box actions."""
    shaping: Literal["none", "every-answer"] = "none"
    """Reward in training. none: the environment's. every-answer: shaping_weight more for each earlier step with the
    right label, which rewards early right answers. Validation always has the environment's reward."""
    shaping_weight: NotNegative = 0.2
    """Reward for an earlier right label, with shaping "every-answer"."""
    auxiliary_weight: NotNegative = 0.0
    """Weight of the answer's cross-entropy, added to PPO's loss; 0 learns from the reward alone."""

    total_timesteps: Annotated[int, Interval(ge=1, le=10**12)] = 1_000_000
    """Environment steps of the whole run, rounded up to whole rollouts."""
    n_envs: Annotated[int, Interval(ge=1, le=2**16)] = 256
    """Number of parallel environments."""
    episodes_per_rollout: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Episodes that each environment plays in one rollout; n_steps is this number times num_glimpses."""
    minibatches: Count = 2
    """Number of batches of a rollout; batch_size is n_envs * n_steps divided by it."""
    n_epochs: Annotated[int, Interval(ge=1, le=1024)] = 4
    """Passes over each rollout."""
    learning_rate: Positive = 3e-3
    """Adam's initial learning rate; it falls linearly to 0."""
    gamma: Share = 1.0
    """Discount factor. The only reward comes at the end, so the default is 1."""
    gae_lambda: Share = 1.0
    """Bias-variance trade-off of generalised advantage estimation; 1 is without bias."""
    clip_range: Positive = 0.2
    """Clipping range of the probability ratio."""
    ent_coef: NotNegative = 0.01
    """Weight of the entropy of the part of the action that the environment reads."""
    vf_coef: NotNegative = 0.5
    """Weight of the critic's squared error."""
    max_grad_norm: Positive = 0.5
    """Gradients are scaled down to this norm."""

    location_gradient: bool = True
    """Let the gradient of the locations train the whole network; False: only its own output layer."""
    hidden_size: Units = 256
    """Units of the LSTM and of the glimpse encoding; of PPO's hidden layers."""
    glimpse_hidden_size: Units = 128
    """Units that encode the glimpse, and as many that encode its location."""

    evaluate_every: Annotated[int, Interval(ge=1, le=10**12)] = 50_000
    """Environment steps between validations, rounded to whole rollouts; this is one epoch."""

    @property
    def agent(self) -> str:
        """Name of the agent: that of its algorithm."""
        return self.algorithm

    def planned_fields(self) -> list[str]:
        """Names of the fields that make what an epoch does depend on the total number of epochs."""
        return ["learning_rate"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatches >= self.rollout_steps:
            raise ValueError(
                f"minibatches must be below {self.rollout_steps}, the steps of a rollout, got {self.minibatches}"
            )

    @property
    def rollout_steps(self) -> int:
        """Environment steps of one rollout, over all environments."""
        return self.n_envs * self.episodes_per_rollout * self.env_config.num_glimpses

    @property
    def rollouts_per_epoch(self) -> int:
        """Rollouts between two validations."""
        return max(1, round(self.evaluate_every / self.rollout_steps))

    @property
    def total_steps(self) -> int:
        """Environment steps of the whole run: total_timesteps rounded up to whole rollouts."""
        return math.ceil(self.total_timesteps / self.rollout_steps) * self.rollout_steps

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole run; the last one may be shorter."""
        return math.ceil(self.total_steps / (self.rollout_steps * self.rollouts_per_epoch))

    def hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters in RL Zoo's format. `make_model` builds the model from them too.

        They leave out the auxiliary loss and reward shaping, which RL Zoo does not have.
        """
        size = self.hidden_size
        network: dict[str, Any] = {"net_arch": {"pi": [size, size], "vf": [size]}}
        if self.algorithm == "sb3-ppo-lstm":
            network = {"net_arch": {"pi": [], "vf": [64]}, "lstm_hidden_size": size}
        network["location_gradient"] = self.location_gradient
        network["features_extractor_kwargs"] = {"hidden_size": self.glimpse_hidden_size, "features_dim": size}
        wrapper: Any = {"ram_gym.wrappers.MultiDiscreteAction": {"grid_size": self.grid_size}}
        if self.action == "box":
            wrapper = "ram_gym.wrappers.BoxAction"
            network["log_std_init"] = self.log_std_init
        return {
            "env_wrapper": [wrapper, "ram_gym.wrappers.ProgressObservation"],
            "n_timesteps": self.total_timesteps,
            "n_envs": self.n_envs,
            "policy": f"{__package__}.network.{_POLICIES[self.algorithm]}",
            "policy_kwargs": network,
            "n_steps": self.rollout_steps // self.n_envs,
            "batch_size": math.ceil(self.rollout_steps / self.minibatches),
            "n_epochs": self.n_epochs,
            "learning_rate": f"lin_{self.learning_rate}",
            "gamma": self.gamma,
            "gae_lambda": self.gae_lambda,
            "clip_range": self.clip_range,
            "ent_coef": self.ent_coef,
            "vf_coef": self.vf_coef,
            "max_grad_norm": self.max_grad_norm,
        }


_POLICIES = {"sb3-ppo-lstm": "GlimpseLstmPolicy", "sb3-ppo": "GlimpsePolicy"}

_TASKS: dict[str, dict[str, Any]] = {
    "digits": {"total_timesteps": 500_000},
    "mnist-28": {},
    "translated-60": {},
    "cluttered-60": {},
    "cluttered-100": {},
    "cluttered-100x8": {},
}

PRESETS = {"sb3-ppo": _TASKS, "sb3-ppo-lstm": _TASKS}
"""Preset of each task: fields of Sb3Config and their values. Both algorithms have the same, so that PPO is a control
for memory alone.
"""

CONFIG = Sb3Config


def preset(task: str, agent: str) -> Sb3Config:
    """The training config with the defaults of `train AGENT --task TASK`; see `agents.registry.Agent`."""
    return Sb3Config(algorithm=cast(Algorithm, agent), task=task, **preset_fields(PRESETS[agent], task))
