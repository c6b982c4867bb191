"""The loss of the Recurrent Attention Model: pure functions of a rollout.

Source: Mnih et al. 2014, section 3.2 (hybrid supervised loss, equation 2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .config import LocationReward


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
    early_logits: Tensor
    """float32 (N, T - 1, L), after each glimpse but the last; (N, 0, L) where early answers are not trained."""


class Losses(NamedTuple):
    """The terms of the loss, scalars, each before its weight."""

    classification: Tensor
    reinforce: Tensor
    baseline: Tensor
    early_classification: Tensor


def location_log_probability(means: Tensor, locations: Tensor, std: Tensor | float) -> Tensor:
    """Log density of locations under independent normals. (..., 2), (..., 2) -> (...). No gradient to locations."""
    distance = ((locations.detach() - means) / std).square().sum(-1)
    variance = torch.as_tensor(std, dtype=means.dtype).square()
    return -0.5 * distance - (2 * math.pi * variance).log()


def leave_one_out(rewards: Tensor, rollouts: int) -> Tensor:
    """The mean reward of each scene's other rollouts. (N, ...) -> (N, ...), N a multiple of `rollouts` >= 2."""
    grouped = rewards.unflatten(0, (-1, rollouts))
    return ((grouped.sum(1, keepdim=True) - grouped) / (rollouts - 1)).flatten(0, 1)


def log_likelihoods(rollout: Rollout) -> Tensor:
    """Log-probabilities of the right labels in the early answers, if there are any, and in the last. -> (N, 1 to T)"""
    # Classes first: over a short last dimension, PyTorch's softmax takes ten times as long on a CPU.
    logits = torch.cat((rollout.early_logits, rollout.logits[:, None]), 1).movedim(-1, 0)  # (L, N, ...)
    return logits.log_softmax(0).gather(0, rollout.labels[None, :, None].expand(1, *logits.shape[1:])).squeeze(0)


def returns(
    rollout: Rollout,
    location_reward: LocationReward = "answer",
    discount: float = 1.0,
    likelihoods: Tensor | None = None,
) -> Tensor:
    """The return of each look, without gradient. -> (N, T - 1)

    - "answer", the paper's: the reward of the last answer, for all looks alike.
    - "every-answer": the share of right answers among those given after the look.
    - "every-likelihood": the mean log-likelihood of the right label in them.
    - "likelihood-gain": that mean, minus the log-likelihood before the look. The answer before a look does not depend
      on where the look goes. So the gradient keeps its mean, and varies less between easy and hard scenes.

    Args:
        rollout: N episodes; all but "answer" need its `early_logits`.
        location_reward: one of the above.
        discount: weight of each answer after a look, relative to the one before it. Later answers depend on later looks
            too, so a small weight makes the gradient vary less.
        likelihoods: what `log_likelihoods` gives of the rollout; None computes it.

    Differs: the paper has "answer" alone.
    """
    if location_reward == "answer":
        return rollout.rewards[:, None].expand_as(rollout.baselines)
    if location_reward == "every-answer":
        logits = torch.cat((rollout.early_logits, rollout.logits[:, None]), 1)
        values = (logits.argmax(-1) == rollout.labels[:, None]).to(logits.dtype)
    else:
        values = (log_likelihoods(rollout) if likelihoods is None else likelihoods).detach()
    before, after = values[:, :-1], values[:, 1:]
    means, total, weight = [], torch.zeros_like(after[:, 0]), 0.0
    for value in reversed(after.unbind(1)):
        total, weight = value + discount * total, 1 + discount * weight
        means.append(total / weight)
    worth = torch.stack(means[::-1], 1)
    return worth - before if location_reward == "likelihood-gain" else worth


def rollout_losses(
    rollout: Rollout,
    std: Tensor | float,
    rollouts: int,
    *,
    use_leave_one_out: bool,
    location_reward: LocationReward = "answer",
    location_discount: float = 1.0,
) -> Losses:
    """The terms: cross-entropy of the answer, REINFORCE, the baseline's squared error, cross-entropy of early answers.

    Gradients: the cross-entropies train logits and early_logits; REINFORCE trains location_means alone (rewards,
    baselines and sampled locations are constants in it); the squared error trains baselines alone.

    Args:
        rollout: N episodes.
        std: standard deviation of the location policy; a number or a scalar on the rollout's device.
        rollouts: how many episodes in a row share a scene.
        location_reward: the return of a look, see `returns`.
        location_discount: see `returns`.
        use_leave_one_out: subtract the other rollouts' mean reward instead of the learned baseline.

    Returns:
        Scalars: a mean over episodes and, for all but the first, over the T - 1 locations that were looked at. Zero
        if T is 1.

    Differs: the paper trains the last answer alone; early answers count if the rollout has early_logits.
    """
    likelihoods = log_likelihoods(rollout)
    classification = -likelihoods[:, -1].mean()
    zero = classification.new_zeros(())
    if not rollout.location_means.shape[1]:
        return Losses(classification, zero, zero, zero)
    early = -likelihoods[:, :-1].mean() if rollout.early_logits.shape[1] else zero
    rewards = returns(rollout, location_reward, location_discount, likelihoods)
    expected = leave_one_out(rewards, rollouts) if use_leave_one_out else rollout.baselines.detach()
    log_probability = location_log_probability(rollout.location_means, rollout.locations, std)
    reinforce = -(log_probability * (rewards - expected)).mean()
    return Losses(classification, reinforce, functional.mse_loss(rollout.baselines, rewards), early)


def total_loss(losses: Losses, reinforce_weight: float, baseline_weight: float, early_weight: float = 0.0) -> Tensor:
    """The weighted sum that is minimised; a scalar."""
    loss = losses.classification + reinforce_weight * losses.reinforce + baseline_weight * losses.baseline
    return loss + early_weight * losses.early_classification
