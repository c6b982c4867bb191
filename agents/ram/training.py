"""Training of the Recurrent Attention Model: the fast form of `train` in examples/reinforce.py.

    observation, _ = env.reset(options=...)              one environment lane per rollout
    T times:  state = look(observation, state); sample a location; observation = env.step(...)
    loss = cross-entropy + REINFORCE + baseline          one graph from the first glimpse to the answer

The environment's part of that graph has no gradient: observations are constants. The loop around it is
agents/training/loop.py.
"""

from __future__ import annotations

import copy
import functools
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ram_gym import GlimpseVectorEnv

from ..scripted import make_locator
from ..training.learner import Learner, OnProgress, TrainResult
from ..training.loop import run_training
from ..training.ranks import ALONE, Ranks
from ..training.run_folder import RunFolder
from .config import RamConfig, location_std
from .losses import rollout_losses, total_loss
from .network import OwnCore, OwnGlimpseNetwork, RecurrentAttentionModel, make_model, with_custom_parts
from .policy import RamPolicy, make_policy
from .rollout import play

HEADS, BODY = ("classify", "estimate"), ("look", "locate")
"""Parts of the network that `RamConfig.compile` compiles beside the losses; the body if autograd goes through it."""


class RamLearner(Learner):
    """Plays a batch and gives its loss.

    Args:
        config: the run.
        env: this rank's lanes, `config.rollouts` for each scene.
        generator: where locations are drawn from, on the environment's device, in the same state on all ranks.
        ranks: the processes that share the batch.

        glimpse_network: see `RecurrentAttentionModel`.
        core: see `RecurrentAttentionModel`.

    Raises:
        ValueError: a CUDA graph is asked for on another device, or a part of your own does not fit.
    """

    losses: ClassVar = (
        "train_accuracy_percent",
        "classification_loss",
        "reinforce_loss",
        "baseline_loss",
        "early_classification_loss",
    )
    model: RecurrentAttentionModel

    def __init__(
        self,
        config: RamConfig,
        env: GlimpseVectorEnv,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
        glimpse_network: OwnGlimpseNetwork = None,
        core: OwnCore = None,
    ) -> None:
        super().__init__()
        if config.cuda_graph and not config.device.startswith("cuda"):
            raise ValueError(f"cuda_graph needs device 'cuda', got {config.device!r}: --no-cuda-graph turns it off")
        self.config, self.env, self.generator, self.ranks = config, env, generator, ranks
        self.weight_average, self.cuda_graph = config.weight_average, config.cuda_graph
        self.model = make_model(config, env, glimpse_network, core)
        if env.config.num_glimpses == 1:  # nothing is located and nothing expected, so nothing trains these two
            self.model.locator.requires_grad_(False)
            self.model.baseline.requires_grad_(False)
        self.locator = None
        if config.locator != "learned":
            self.locator = make_locator(config.locator, env, generator, ranks)
        # Validation, whose batches have another size, keeps the plain methods of `model`.
        self._played, self._rollout_losses = (self.model,), rollout_losses
        if config.compile:
            compiled = copy.copy(self.model)  # the same parameters
            for name in HEADS + (BODY if config.resolve().backpropagation == "autograd" else ()):
                setattr(compiled, name, torch.compile(getattr(compiled, name), fullgraph=True))
            # In a tuple, so that its parameters are not this module's once more.
            self._played, self._rollout_losses = (compiled,), torch.compile(rollout_losses, fullgraph=True)

    def forward(self, index: Tensor, scene_seed: Tensor, *schedules: Tensor) -> tuple[Tensor, Tensor]:
        """One rollout in every lane, and its loss; see `Learner.forward`.

        Args:
            index: int64 (num_scenes,), the images; rollouts of the same scene play side by side.
            scene_seed: int64 (), of all lanes' scenes.
            schedules: float32 (), standard deviation of the location policy.

        Returns:
            The loss, a scalar, and without gradient float32 (5,): mean reward and the loss's four terms.
        """
        (std,) = schedules
        config = self.config
        index = index.repeat_interleave(config.rollouts)
        first = self.ranks.draw(torch.rand, len(index), self.generator, self.env.device) * 2 - 1
        options = {"index": index, "scene_seed": scene_seed, "location": first}
        rollout = play(self._played[0], self.env, options, std, self.generator, self.locator, self.ranks)
        use_leave_one_out = config.baseline == "leave-one-out"
        losses = self._rollout_losses(
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

    def schedules(self, done: float) -> dict[str, float]:
        """The standard deviation of the location policy."""
        return {"location_std": location_std(self.config, done)}

    def policy(self, model: nn.Module, env: GlimpseVectorEnv) -> RamPolicy:
        """Plays with the network, and looks where it or the run's scripted locator says."""
        return make_policy(cast(RecurrentAttentionModel, model), env, self.config.locator, self.config.seed)


def train(
    config: RamConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
    glimpse_network: OwnGlimpseNetwork = None,
    core: OwnCore = None,
) -> TrainResult:
    """Trains a Recurrent Attention Model.

    A glimpse network or a core of your own takes the place of the one that config names; the run's config.json then
    says "custom", and `load_run` takes the same part under the same name. Give a function that makes it, so that its
    weights come of the run's seed. See `agents.networks` for what such modules must have.

    All other arguments, and the errors, are those of `agents.training.loop.run_training`.
    """
    config = with_custom_parts(config, glimpse_network, core).resolve()
    make = functools.partial(RamLearner, glimpse_network=glimpse_network, core=core)
    return run_training(make, config, folder, resume=resume, init=init, on_progress=on_progress, ranks=ranks)
