"""Sb3Config: all that defines a training run of PPO, with or without recurrence, and the presets per task."""

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
    """One training run. Names that Stable-Baselines3 has too mean what they mean there.

    Raises:
        ValueError: a field has a wrong type or value; the message names the field, what it must be and what came.
    """

    algorithm: Annotated[Algorithm, tyro.conf.Suppress] = "sb3-ppo-lstm"
    """RecurrentPPO, or PPO, its memoryless control."""
    task: str = "digits"
    """Task to learn; see the README's table."""

    action: Literal["multi-discrete", "box"] = "multi-discrete"
    """Form of actions: the cell of a grid and the label, or x, y and a score per label, with normal noise."""
    grid_size: Annotated[int, Interval(ge=1, le=1024)] = 7
    """Cells along each axis of the canvas, for multi-discrete actions."""
    log_std_init: float = -1.5
    """Logarithm of the noise's standard deviation at the beginning, for box actions."""
    shaping: Literal["none", "every-answer"] = "none"
    """Reward in training: the environment's alone, or shaping_weight more for each earlier step whose label is right,
    which asks for the right label as soon as possible. Validation is never shaped."""
    shaping_weight: NotNegative = 0.2
    """What an earlier right label earns under shaping "every-answer"."""
    auxiliary_weight: NotNegative = 0.0
    """Weight of the answer's cross-entropy beside PPO's loss; 0 is reinforcement learning alone."""

    total_timesteps: Annotated[int, Interval(ge=1, le=10**12)] = 1_000_000
    """Environment steps to learn from, rounded up to whole rollouts."""
    n_envs: Annotated[int, Interval(ge=1, le=2**16)] = 256
    """Environments played at once."""
    episodes_per_rollout: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Episodes that each environment plays between two updates; n_steps is this many times the glimpses."""
    minibatches: Count = 2
    """Batches that a rollout is split into; batch_size is n_envs * n_steps divided by it."""
    n_epochs: Annotated[int, Interval(ge=1, le=1024)] = 4
    """Passes over each rollout."""
    learning_rate: Positive = 3e-3
    """Adam's learning rate at the beginning; it falls linearly to 0."""
    gamma: Share = 1.0
    """Discount; the one reward comes at the end, so 1 is the natural choice."""
    gae_lambda: Share = 1.0
    """Trade-off of bias and variance in the advantages; 1 trusts rewards alone."""
    clip_range: Positive = 0.2
    """How far an update may change the probability of an action."""
    ent_coef: NotNegative = 0.01
    """Weight of the entropy of what is read of an action."""
    vf_coef: NotNegative = 0.5
    """Weight of the critic's squared error."""
    max_grad_norm: Positive = 0.5
    """Gradients are scaled down to this norm."""

    location_gradient: bool = True
    """Let the choice of locations train all of the network, and not its own layer alone."""
    hidden_size: Units = 256
    """Units of the LSTM and of the glimpse encoding, and of each layer of the memoryless control."""
    glimpse_hidden_size: Units = 128
    """Units that encode what is seen, and as many that encode where."""

    evaluate_every: Annotated[int, Interval(ge=1, le=10**12)] = 50_000
    """Environment steps between evaluations on the validation split, rounded to whole rollouts: one epoch."""

    @property
    def agent(self) -> str:
        """Name of the agent: that of its algorithm."""
        return self.algorithm

    def planned_fields(self) -> list[str]:
        """Names of the fields by which an epoch depends on the number of epochs."""
        return ["learning_rate"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatches >= self.rollout_steps:
            raise ValueError(
                f"minibatches must be below {self.rollout_steps}, the steps of a rollout, got {self.minibatches}"
            )

    @property
    def rollout_steps(self) -> int:
        """Environment steps in one rollout, over all environments."""
        return self.n_envs * self.episodes_per_rollout * self.env_config.num_glimpses

    @property
    def rollouts_per_epoch(self) -> int:
        """Rollouts between two evaluations."""
        return max(1, round(self.evaluate_every / self.rollout_steps))

    @property
    def total_steps(self) -> int:
        """Environment steps in the whole run: total_timesteps rounded up to whole rollouts."""
        return math.ceil(self.total_timesteps / self.rollout_steps) * self.rollout_steps

    @property
    def epochs(self) -> int:
        """Evaluations in the whole run; the last epoch may be shorter."""
        return math.ceil(self.total_steps / (self.rollout_steps * self.rollouts_per_epoch))

    def hyperparameters(self) -> dict[str, Any]:
        """The run as RL Zoo writes it down; models are built from it too, so that both are the same.

        RL Zoo runs Stable-Baselines3's own algorithms on the environment's own reward, so the auxiliary loss and reward
        shaping are not part of it.
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
"""What each task changes in Sb3Config, for both algorithms alike: a control differs in nothing but its memory."""

CONFIG = Sb3Config


def preset(task: str, agent: str) -> Sb3Config:
    """The configuration that `python -m agents train AGENT --task TASK` starts from; see `agents.registry.Agent`."""
    return Sb3Config(algorithm=cast(Algorithm, agent), task=task, **preset_fields(PRESETS[agent], task))
