"""The loss of the Recurrent Attention Model: pure functions of a rollout.

Source: Mnih et al. 2014, section 3.2 (hybrid supervised loss, equation 2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Rollout(NamedTuple):
    """N episodes of T glimpses, as learning needs them. The M rollouts of a scene stand side by side."""

    logits: Tensor
    """float32 (N, L), of the answer."""
    labels: Tensor
    """int64 (N,), the right answers."""
    rewards: Tensor
    """float32 (N,), 1 for a right answer, else 0."""
    location_means: Tensor
    """float32 (N, T - 1, 2), of the location policy; none for the answer's location, which no glimpse used."""
    locations: Tensor
    """float32 (N, T - 1, 2), as sampled, before the environment clipped them."""
    baselines: Tensor
    """float32 (N, T - 1), the expected reward when each location was chosen."""


class Losses(NamedTuple):
    """The terms of the loss, scalars, each before its weight."""

    classification: Tensor
    reinforce: Tensor
    baseline: Tensor


def location_log_probability(means: Tensor, locations: Tensor, std: Tensor | float) -> Tensor:
    """Log density of locations under independent normals. (..., 2), (..., 2) -> (...). No gradient to locations."""
    distance = ((locations.detach() - means) / std).square().sum(-1)
    variance = torch.as_tensor(std, dtype=means.dtype).square()
    return -0.5 * distance - (2 * math.pi * variance).log()


def leave_one_out(rewards: Tensor, rollouts: int) -> Tensor:
    """The mean reward of each scene's other rollouts. (N,) -> (N,), N a multiple of `rollouts` >= 2."""
    grouped = rewards.view(-1, rollouts)
    return ((grouped.sum(1, keepdim=True) - grouped) / (rollouts - 1)).reshape(-1)


def rollout_losses(rollout: Rollout, std: Tensor | float, rollouts: int, *, use_leave_one_out: bool) -> Losses:
    """The three terms: cross-entropy of the answer, REINFORCE, and the baseline's squared error.

    Gradients: cross-entropy reaches logits; REINFORCE reaches location_means alone (rewards, baselines and sampled
    locations are constants to it); the squared error reaches baselines alone.

    Args:
        rollout: N episodes.
        std: standard deviation of the location policy; a number or a scalar on the rollout's device.
        rollouts: how many episodes in a row share a scene.
        use_leave_one_out: subtract the other rollouts' mean reward instead of the learned baseline.

    Returns:
        Scalars: a mean over episodes and, for the last two, over the T - 1 locations that were looked at. Zero where
        there are none.
    """
    classification = functional.cross_entropy(rollout.logits, rollout.labels)
    if not rollout.location_means.shape[1]:
        zero = classification.new_zeros(())
        return Losses(classification, zero, zero)
    rewards = rollout.rewards[:, None].expand_as(rollout.baselines)
    expected = leave_one_out(rollout.rewards, rollouts)[:, None] if use_leave_one_out else rollout.baselines.detach()
    log_probability = location_log_probability(rollout.location_means, rollout.locations, std)
    reinforce = -(log_probability * (rewards - expected)).mean()
    return Losses(classification, reinforce, functional.mse_loss(rollout.baselines, rewards))


def total_loss(losses: Losses, reinforce_weight: float, baseline_weight: float) -> Tensor:
    """The weighted sum that is minimised; a scalar."""
    return losses.classification + reinforce_weight * losses.reinforce + baseline_weight * losses.baseline
