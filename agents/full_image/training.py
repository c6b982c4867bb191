"""Training of networks that see whole canvases, on the scenes that the attention agents train on."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ram_gym import GlimpseVectorEnv

from ..training.learner import Learner, OnProgress, TrainResult
from ..training.loop import run_training
from ..training.ranks import ALONE, Ranks
from ..training.run_folder import RunFolder
from .config import FullImageConfig
from .network import make_model
from .policy import FullImagePolicy, pixels


class FullImageLearner(Learner):
    """The network on whole canvases, and the cross-entropy of its answers as the loss.

    Args:
        config: training config of the run.
        env: the environment, one lane for each scene.
        generator: not used, since only the scenes are random.
        ranks: must be one process, since batch normalization needs the whole batch.

    Raises:
        ValueError: there are several processes.
    """

    losses: ClassVar = ("train_accuracy_percent", "classification_loss")

    def __init__(
        self, config: FullImageConfig, env: GlimpseVectorEnv, generator: torch.Generator, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        del generator
        if ranks.size > 1:
            raise ValueError(f"{config.agent} trains in one process, got {ranks.size}")
        self.env = env
        self.model = make_model(config, env)

    def forward(self, index: Tensor, scene_seed: Tensor, *schedules: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch; see `Learner.forward`."""
        del schedules
        self.env.reset(options={"index": index, "scene_seed": scene_seed})
        labels = self.env.labels
        logits = self.model(pixels(self.env))
        loss = cross_entropy(logits, labels)
        is_right = (logits.argmax(-1) == labels).to(torch.float64)
        return loss, torch.stack((is_right.mean(), loss.detach().to(torch.float64)))

    def policy(self, model: nn.Module, env: GlimpseVectorEnv) -> FullImagePolicy:
        """The network as a policy."""
        return FullImagePolicy(model, env)


def train(
    config: FullImageConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains a network on whole canvases; arguments and errors are those of `agents.training.loop.run_training`."""
    return run_training(
        FullImageLearner, config, folder, resume=resume, init=init, on_progress=on_progress, ranks=ranks
    )
