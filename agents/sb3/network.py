"""Policies for Stable-Baselines3's PPO and RecurrentPPO: networks that encode glimpses and their locations.

The algorithms are Stable-Baselines3's own; everything specific to glimpses is in the policy.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional

Observation = dict[str, Tensor]

LABEL = "label"
"""Key that the rollout buffer adds to observations: 1 + the right label at the last step of an episode, else 0."""


class WhatAndWhere(BaseFeaturesExtractor):
    """Encodes a glimpse and its location and progress: one ReLU layer for each of the two, then one for both together.

    Source: the glimpse network of Mnih et al. 2014, section 4.

    Args:
        observation_space: Dict of `glimpse`, `location` and possibly `progress`.
        hidden_size: units that encode the glimpse, and as many that encode location and progress.
        features_dim: number of output features.
    """

    def __init__(self, observation_space: spaces.Dict, hidden_size: int = 128, features_dim: int = 256) -> None:
        super().__init__(observation_space, features_dim)
        sizes = {key: int(torch.tensor(space.shape or ()).prod()) for key, space in observation_space.spaces.items()}
        self.where_keys = [key for key in ("location", "progress") if key in sizes]
        self.what = nn.Linear(sizes["glimpse"], hidden_size)
        self.where = nn.Linear(sum(sizes[key] for key in self.where_keys), hidden_size)
        self.combine = nn.Linear(2 * hidden_size, features_dim)

    def forward(self, observations: Observation) -> Tensor:
        """Glimpse (N, K * C, P, P), location (N, 2), progress (N, 1) -> (N, features_dim)."""
        where = torch.cat([observations[key] for key in self.where_keys], dim=1)
        hidden = torch.cat((self.what(observations["glimpse"].flatten(1)), self.where(where)), dim=1).relu()
        return self.combine(hidden).relu()


class _Parts(NamedTuple):
    """A value for the location part of the action distribution and one for the label part, (N,) each."""

    location: Tensor
    label: Tensor


class _GlimpsePolicy:
    """Base of both policies: masks the unused part of each action, and adds the auxiliary loss.

    Every action has a location and a label. The environment ignores the location of the last action and the labels of
    all others. The log-probability and the entropy that PPO learns from leave the ignored part out, which would only
    add noise to the gradient. `progress` shows which action is the last.
    """

    defaults: ClassVar[dict[str, Any]] = {"features_extractor_class": WhatAndWhere, "activation_fn": nn.ReLU}
    action_net: nn.Linear
    action_dist: Distribution

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        *,
        auxiliary_weight: float = 0.0,
        reads_every_label: bool = False,
        location_gradient: bool = True,
        **more: Any,
    ) -> None:
        more = {**self.defaults, **more}
        super().__init__(observation_space, action_space, lr_schedule, **more)  # type: ignore[call-arg]
        self.auxiliary_weight, self.reads_every_label = auxiliary_weight, reads_every_label
        self.location_gradient = location_gradient

    def forward(self, obs: Observation, *arguments: Any, **more: Any) -> tuple[Any, ...]:
        """Action, value, log-probability of the part of the action that counts and, with an LSTM, its state."""
        actions, values, _, *states = super().forward(obs, *arguments, **more)  # type: ignore[misc]
        return (actions, values, self._read(obs, _log_probabilities(self.action_dist, actions)), *states)

    def evaluate_actions(
        self, obs: Observation, actions: Tensor, *arguments: Any, **more: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Value, log-probability and entropy; backpropagation through the log-probability adds the auxiliary loss's
        gradient.
        """
        obs = dict(obs)
        labels = obs.pop(LABEL, None)
        values, _, _ = super().evaluate_actions(obs, actions, *arguments, **more)  # type: ignore[misc]
        log_probability = self._read(obs, _log_probabilities(self.action_dist, actions))
        entropy = self._read(obs, _entropies(self.action_dist))
        if self.auxiliary_weight:
            if labels is None:
                raise ValueError(
                    "auxiliary_weight needs the right labels: train with LabelledPPO or LabelledRecurrentPPO"
                )
            targets = labels.flatten().long() - 1
            loss = functional.cross_entropy(label_logits(self.action_dist), targets, ignore_index=-1)
            log_probability = _AddLoss.apply(log_probability, self.auxiliary_weight * loss)
        return values, log_probability, entropy

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        """The action distribution. Without `location_gradient` its location part trains the output layer alone."""
        if self.location_gradient:
            return super()._get_action_dist_from_latent(latent_pi)  # type: ignore[misc]
        outputs = self.action_net(latent_pi)
        if isinstance(self.action_dist, MultiCategoricalDistribution):
            num_location = sum(self.action_dist.action_dims[:2])
            location = self.action_net(latent_pi.detach())[:, :num_location]
            return self.action_dist.proba_distribution(torch.cat((location, outputs[:, num_location:]), dim=1))
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        location = self.action_net(latent_pi.detach())[:, :2]
        means = torch.cat((location, outputs[:, 2:]), dim=1)
        return self.action_dist.proba_distribution(means, self.log_std)  # type: ignore[attr-defined]

    def _read(self, obs: Observation, parts: _Parts) -> Tensor:
        """The sum over the parts of the action that count, (N,); see the class."""
        if "progress" not in obs:
            return parts.location + parts.label
        is_answer = obs["progress"].flatten() >= 1
        label = parts.label if self.reads_every_label else torch.where(is_answer, parts.label, 0.0)
        return label + torch.where(is_answer, 0.0, parts.location)


class GlimpsePolicy(_GlimpsePolicy, ActorCriticPolicy):  # type: ignore[misc]
    """Policy for PPO: chooses label and location from the current glimpse alone.

    Args:
        observation_space, action_space, lr_schedule, more: as ActorCriticPolicy. Observations are a Dict of `glimpse`,
            `location` and possibly `progress`; actions are of MultiDiscreteAction or BoxAction.
        auxiliary_weight: weight of the answer's cross-entropy, added to PPO's loss; needs `LabelledPPO`.
        reads_every_label: whether the label counts at each step, as with reward shaping "every-answer".
        location_gradient: let the gradient of the locations train the whole network; False: only its output layer.
    """


class GlimpseLstmPolicy(_GlimpsePolicy, RecurrentActorCriticPolicy):  # type: ignore[misc]
    """Policy for RecurrentPPO: chooses label and location from all glimpses so far, by an LSTM that the critic shares
    and does not train.

    Args: as GlimpsePolicy, and those of RecurrentActorCriticPolicy.
    """

    defaults: ClassVar[dict[str, Any]] = {**_GlimpsePolicy.defaults, "shared_lstm": True, "enable_critic_lstm": False}

    @staticmethod
    def _process_sequence(  # type: ignore[override]
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As in the parent class, but in one call of the LSTM if no episode starts inside a sequence."""
        starts = episode_starts.reshape(lstm_states[0].shape[1], -1)
        if not starts[:, 1:].any():
            keep = (1.0 - starts[:, 0])[None, :, None]
            lstm_states = (lstm_states[0] * keep, lstm_states[1] * keep)
            episode_starts = torch.zeros_like(episode_starts)
        output, states = RecurrentActorCriticPolicy._process_sequence(features, lstm_states, episode_starts, lstm)
        return output, (states[0], states[1])


class _AddLoss(torch.autograd.Function):
    """Returns the first tensor unchanged; in the backward pass the scalar loss gets the gradient 1.

    So PPO's unchanged `train`, which uses only the log-probabilities, minimises its own loss plus this one.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, loss: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(loss)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, and 1."""
        return gradient, torch.ones_like(ctx.saved_tensors[0])


def label_logits(distribution: Distribution) -> Tensor:
    """Logits of the answer, (N, L).

    For box actions the answer is the highest of L scores with normal noise. Their logits are the means of the scores
    divided by the noise's standard deviation; the softmax approximates the probability of being the highest.
    """
    if isinstance(distribution, MultiCategoricalDistribution):
        return distribution.distribution[2].logits
    assert isinstance(distribution, DiagGaussianDistribution)
    normal = distribution.distribution
    return normal.mean[:, 2:] / normal.stddev[:, 2:]


def _log_probabilities(distribution: Distribution, actions: Tensor) -> _Parts:
    if isinstance(distribution, MultiCategoricalDistribution):
        pairs = zip(distribution.distribution, actions.unbind(1), strict=True)
        column, row, label = (part.log_prob(action) for part, action in pairs)
        return _Parts(column + row, label)
    assert isinstance(distribution, DiagGaussianDistribution), "actions must be of MultiDiscreteAction or BoxAction"
    log_probabilities = distribution.distribution.log_prob(actions)
    return _Parts(log_probabilities[:, :2].sum(1), log_probabilities[:, 2:].sum(1))


def _entropies(distribution: Distribution) -> _Parts:
    if isinstance(distribution, MultiCategoricalDistribution):
        column, row, label = (part.entropy() for part in distribution.distribution)
        return _Parts(column + row, label)
    assert isinstance(distribution, DiagGaussianDistribution)
    entropies = distribution.distribution.entropy()
    return _Parts(entropies[:, :2].sum(1), entropies[:, 2:].sum(1))
