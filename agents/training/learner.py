"""Learner, what a native agent contributes to training, and what every training reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ram_gym import GlimpseVectorEnv, Policy

from .ranks import Ranks


class Progress(NamedTuple):
    """How far a training run has come; passed to `on_progress` a few times a second."""

    epoch: int
    epochs: int
    done: float
    """Share of all updates that is done, in [0, 1]."""
    speed: str
    """Images or environment steps per second of training, such as "1,200 images/s"; validation is not counted."""
    seconds_left: float
    last_metrics: dict[str, Any] | None
    """The last row of metrics.jsonl."""


OnProgress = Callable[[Progress], None]


class TrainResult(NamedTuple):
    """The result of a training run."""

    is_complete: bool
    """False if the run was interrupted; it resumes from its last checkpoint."""
    best_epoch: int
    validation_error_percent: float
    """Validation error of the best epoch, one rollout per scene."""


class Learner(nn.Module, ABC):
    """What an agent contributes to training: a network, the loss of a batch, and a policy.

    `forward` computes all of an update's loss. With several ranks, DistributedDataParallel wraps the learner and
    averages the gradients.
    """

    losses: ClassVar[tuple[str, ...]]
    """Names in metrics.jsonl of what `forward` measures. The first is the share of right answers, written in %."""
    model: nn.Module
    """The network that learns. Validation evaluates it, or the average of its weights."""
    weight_average: float = 0.0
    """Decay per update of the exponential moving average of the weights, which validation evaluates; 0: no average."""
    cuda_graph: bool = False
    """Whether an update is recorded as one CUDA graph."""

    @abstractmethod
    def forward(self, index: Tensor, scene_seed: Tensor, *schedules: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch. Does not synchronise with the device.

        Args:
            index: int64 (num_scenes,), the images to learn from.
            scene_seed: int64 (), seed of the scenes.
            schedules: the current values of `schedules`, float32 () each.

        Returns:
            The loss, a scalar; and the values that `losses` names, (len(losses),), batch means without gradient.
        """

    @abstractmethod
    def policy(self, model: nn.Module, env: GlimpseVectorEnv) -> Policy:
        """The policy that validation evaluates: it plays `env` with `model`, a network of the form of `self.model`."""

    def schedules(self, done: float) -> dict[str, float]:
        """Quantities besides the learning rate that change during training, by name: their values after a share `done`
        of all updates.
        """
        del done
        return {}


MakeLearner = Callable[[Any, GlimpseVectorEnv, torch.Generator, Ranks], Learner]
"""(configuration, environment with this rank's lanes, generator in the same state on all ranks, ranks) -> learner."""
