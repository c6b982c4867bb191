"""Training of networks that see whole canvases, on the scenes that the attention agents train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..training import trainer
from ..training.loop import Progress, TrainResult, run_training
from ..training.ranks import ALONE
from ..training.run_folder import RunFolder
from .config import FullImageConfig
from .network import make_model
from .policy import FullImagePolicy, pixels


class Trainer(trainer.Trainer):
    """A training run in memory; see `agents.training.trainer.Trainer`. One process.

    Raises:
        ValueError: the batch is larger than the split, or the device does not fit.
    """

    losses: ClassVar = ("train_accuracy_percent", "classification_loss")
    config: FullImageConfig

    def __init__(self, config: FullImageConfig, folder: RunFolder | None = None) -> None:
        super().__init__(config, folder, ALONE, config.training_env_config)
        self.model = make_model(config, self.env)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    @property
    def agent(self) -> str:
        """Name of the agent: that of its network."""
        return self.config.network

    def learn(self, index: Tensor) -> None:
        """Draws the scenes and learns to name them."""
        self.env.reset(options={"index": index, "scene_seed": self.scene_seed})
        labels = self.env.labels
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(pixels(self.env))
        loss = cross_entropy(logits, labels)
        self.descend(loss)
        is_right = (logits.argmax(-1) == labels).to(torch.float64)
        self.sums += torch.stack((is_right.mean(), loss.detach().to(torch.float64)))

    def make_policy(self) -> FullImagePolicy:
        """The policy that validation measures: episodes of the task itself."""
        return FullImagePolicy(self.model.eval(), self.validation_env)


def train(
    config: FullImageConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Trains a network on whole canvases; see `agents.training.loop.run_training`.

    Raises:
        RunError: the folder holds a run already, or, resuming, none that fits.
    """
    return run_training(
        lambda: Trainer(config, folder), config, folder, resume=resume, init=init, on_progress=on_progress
    )
