"""Training of the Recurrent Attention Model: the fast form of `train` in examples/reinforce.py.

    observation, _ = env.reset(options=...)              one environment lane per rollout
    T times:  state = look(observation, state); sample a location; observation = env.step(...)
    loss = cross-entropy + REINFORCE + baseline          one graph from the first glimpse to the answer

The environment's part of that graph has no gradient: observations are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..scripted import make_locator
from ..training import trainer
from ..training.loop import Progress, TrainResult, run_training
from ..training.ranks import ALONE, Ranks
from ..training.run_folder import RunFolder
from .config import RamConfig, location_std
from .graph import GraphedStep
from .learner import Learner, share_gradients
from .network import RecurrentAttentionModel
from .policy import RamPolicy
from .rollout import AGENT, make_model, make_policy


class Trainer(trainer.Trainer):
    """A training run in memory: the environment, the network, the optimizer and how far it has come.

    See `agents.training.trainer.Trainer`.

    Raises:
        ValueError: the batch is larger than the split or cannot be shared out, or the device does not fit.
    """

    agent = AGENT
    losses: ClassVar = (
        "train_accuracy_percent",
        "classification_loss",
        "reinforce_loss",
        "baseline_loss",
        "early_classification_loss",
    )
    config: RamConfig
    model: RecurrentAttentionModel

    def __init__(self, config: RamConfig, folder: RunFolder | None = None, ranks: Ranks = ALONE) -> None:
        if config.cuda_graph and not config.device.startswith("cuda"):
            raise ValueError(f"cuda_graph needs device 'cuda', got {config.device!r}: --no-cuda-graph turns it off")
        env_config = config.env_config
        super().__init__(config, folder, ranks, env_config, config.rollouts)
        self.is_graphed = config.cuda_graph and ranks.size == 1
        self.model = make_model(config, self.env)
        if env_config.num_glimpses == 1:  # nothing is located and nothing expected, so nothing trains these two
            self.model.locator.requires_grad_(False)
            self.model.baseline.requires_grad_(False)
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.weight_average))
            if config.weight_average
            else None
        )
        rate = config.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=torch.tensor(rate, device=self.env.device) if self.is_graphed else rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=self.is_graphed,
        )

    def learn(self, index: Tensor) -> None:
        """Plays the scenes, learns from what was played and averages weights."""
        index = index.repeat_interleave(self.config.rollouts)
        scene_seed = torch.full((), self.scene_seed, device=self.env.device)
        std = torch.full((), location_std(self.config, self.done), device=self.env.device)
        self._run_step(index, scene_seed, std)
        self._average_weights()

    def make_policy(self) -> RamPolicy:
        """The policy that validation measures."""
        model = cast(RecurrentAttentionModel, self.evaluated_model)
        return make_policy(model, self.validation_env, self.config.locator, self.config.seed)

    def schedules(self) -> dict[str, float]:
        """What changes as training goes on, for the metrics."""
        return {**super().schedules(), "location_std": location_std(self.config, self.done)}

    def load(self) -> None:
        """As the parent's."""
        self.__dict__.pop("_run_step", None)  # a graph knows where the tensors were that are replaced here
        super().load()

    @cached_property
    def learner(self) -> nn.Module:
        """What plays and learns; made at the first update, by all ranks at once."""
        name, locator = self.config.locator, None
        if name != "learned":
            locator = make_locator(name, self.env, self.generator, self.ranks)
        return share_gradients(Learner(self.model, self.env, self.config, self.generator, locator, self.ranks))

    @cached_property
    def _run_step(self) -> Callable[[Tensor, Tensor, Tensor], None]:
        return GraphedStep(self._step, self.generator) if self.is_graphed else self._step

    def _step(self, index: Tensor, scene_seed: Tensor, std: Tensor) -> None:
        """The device's part of an update; see `Learner.forward`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, sums = self.learner(index, scene_seed, std)
        self.descend(loss)
        self.sums += sums

    @torch.no_grad()
    def _average_weights(self) -> None:
        """AveragedModel.update_parameters, but for its counter, which that sends to the device and waits."""
        if self.average is None:
            return
        averages: list[Tensor] = list(self.average.module.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        if self.average.n_averaged == 0:  # a tensor on the host
            torch._foreach_copy_(averages, weights)
        else:
            get_ema_multi_avg_fn(self.config.weight_average)(averages, weights, self.average.n_averaged)
        self.average.n_averaged += 1


def train(
    config: RamConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains a Recurrent Attention Model; arguments and errors are those of `agents.training.loop.run_training`."""
    return run_training(
        lambda: Trainer(config, folder, ranks),
        config,
        folder,
        resume=resume,
        init=init,
        on_progress=on_progress,
        ranks=ranks,
    )
