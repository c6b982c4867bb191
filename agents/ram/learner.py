"""Learner: an update's way from scenes to a loss, as one module."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ram_gym import GlimpseVectorEnv

from ..scripted import ScriptedLocator
from ..training.ranks import ALONE, Ranks
from .config import RamConfig
from .losses import rollout_losses, total_loss
from .network import RecurrentAttentionModel
from .rollout import play

HEADS, BODY = ("classify", "estimate"), ("look", "locate")
"""Parts of the network that `RamConfig.compile` compiles beside the losses; the body if autograd goes through it."""


class Learner(nn.Module):
    """Plays a batch and gives its loss. Its parameters are the network's own.

    All of it is one forward pass, so that DistributedDataParallel, which wraps it where there are several ranks, sees
    each parameter's whole gradient at once.

    Args:
        model: the network that learns.
        env: this rank's lanes.
        config: weights of the loss, number of rollouts, and whether to compile.
        generator: where locations are drawn from, on the environment's device, in the same state on all ranks.
        locator: chooses the locations instead of the location network.
        ranks: the processes that share the batch.
    """

    def __init__(
        self,
        model: RecurrentAttentionModel,
        env: GlimpseVectorEnv,
        config: RamConfig,
        generator: torch.Generator,
        locator: ScriptedLocator | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.env, self.config, self.generator, self.locator, self.ranks = env, config, generator, locator, ranks
        self.rollout_losses = rollout_losses
        if config.compile:
            model = copy.copy(model)  # the same parameters; validation, whose batches differ, keeps the plain methods
            for name in HEADS + (BODY if config.backpropagation == "autograd" else ()):
                setattr(model, name, torch.compile(getattr(model, name), fullgraph=True))
            self.rollout_losses = torch.compile(rollout_losses, fullgraph=True)
        self.model = model

    def forward(self, index: Tensor, scene_seed: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """One rollout in every lane, and what it was worth.

        Args:
            index: int64 (N,), the lanes' images; rollouts of the same scene side by side.
            scene_seed: int64 (), of all lanes' scenes.
            std: float32 (), standard deviation of the location policy.

        Returns:
            The loss, a scalar, and without gradient float32 (5,): mean reward and the loss's four terms.
        """
        config = self.config
        first = self.ranks.draw(torch.rand, len(index), self.generator, self.env.device) * 2 - 1
        options = {"index": index, "scene_seed": scene_seed, "location": first}
        rollout = play(self.model, self.env, options, std, self.generator, self.locator, self.ranks)
        use_leave_one_out = config.baseline == "leave-one-out"
        losses = self.rollout_losses(
            rollout,
            std,
            config.rollouts,
            use_leave_one_out=use_leave_one_out,
            location_reward=config.location_reward,
            location_discount=config.location_discount,
        )
        reinforce_weight = config.reinforce_weight if self.locator is None else 0.0
        baseline_weight = 0.0 if use_leave_one_out else config.baseline_weight
        loss = total_loss(losses, reinforce_weight, baseline_weight, config.early_weight)
        return loss, torch.stack((rollout.rewards.mean(), *losses)).detach()


def share_gradients(learner: Learner) -> nn.Module:
    """The learner, with its gradients averaged over the ranks in one exchange an update.

    The mean over ranks of the gradients of means over equal parts is the gradient of the mean over the whole batch.
    """
    if learner.ranks.size == 1:
        return learner
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in learner.parameters())
    # A bucket that holds all gradients. With a size of ours, the first bucket is not the usual small one.
    return DistributedDataParallel(learner, gradient_as_bucket_view=True, bucket_cap_mb=num_bytes // 2**20 + 1)
