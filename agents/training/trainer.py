"""Trainer: a training run in memory and on disk, whatever network learns."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ram_gym import GlimpseConfig, Policy, evaluate, load_dataset

from .allocator import keep_freed_memory
from .config import NativeConfig, learning_rate
from .distortion import with_distorted_copies
from .environment import check_device, make_env
from .fingerprint import Data, describe_data, fingerprint
from .ranks import Ranks
from .run_folder import RunError, RunFolder
from .tensors import check_adam_state, check_tensors

PARTS = ("model", "average", "optimizer")
"""What last.safetensors holds tensors of, in names such as "model.core.weight_ih"."""


class Trainer(ABC):
    """The environment, the network, the optimizer and how far the run has come.

    With several ranks each has a trainer, with its own part of every batch and otherwise the same numbers; all of them
    call the same methods. Rank 0 writes the folder, the others read it.

    Args:
        config: the run.
        folder: where it is written; None keeps it in memory.
        ranks: the processes that share the work.
        setting: the environment that it learns in, training split.
        rollouts: lanes for each scene.

    Raises:
        ValueError: the batch is larger than the split or cannot be shared out, or the device does not fit.
    """

    losses: ClassVar[tuple[str, ...]]
    """What `learn` adds up, as metrics.jsonl calls it; the first is the share of right answers."""

    model: nn.Module
    """Set by the subclass, as is `optimizer`."""
    optimizer: torch.optim.Optimizer

    def __init__(
        self, config: NativeConfig, folder: RunFolder | None, ranks: Ranks, setting: GlimpseConfig, rollouts: int = 1
    ) -> None:
        keep_freed_memory()
        self.config, self.folder, self.ranks = config, folder, ranks
        device = ranks.device(config.device)
        check_device(device)
        self.num_scenes = ranks.share(config.batch_size, "batch_size")
        images = load_dataset(setting.dataset, setting.split, setting.data_root).images
        self.num_images = len(images)
        copies = (
            with_distorted_copies(images, config.distorted_copies, config.seed, device)
            if config.distorted_copies
            else None
        )
        self.env = make_env(setting, device, self.num_scenes * rollouts, copies)
        self.validation_env = make_env(config.env_config.replace(split="validation"), device)
        self.updates_per_epoch = self.num_images // config.batch_size
        if not self.updates_per_epoch:
            raise ValueError(f"batch_size must be at most {self.num_images}, the images, got {config.batch_size}")
        self.average: AveragedModel | None = None
        self.generator = torch.Generator(self.env.device).manual_seed(config.seed)
        self.epoch = 0  # complete ones
        self.update_in_epoch = 0
        self.seconds = 0.0  # of training, validation and checkpoints not counted
        self.best: tuple[float, int] = (math.inf, 0)  # validation error in percent, epoch
        self.sums = torch.zeros(len(self.losses), dtype=torch.float64, device=self.env.device)  # of the epoch
        self.permutation, self.permuted_epoch = torch.empty(0), -1
        self.last_metrics: dict[str, Any] | None = None

    @cached_property
    def data(self) -> Data:
        """What the run learns from."""
        return describe_data(self.config.env_config)

    @property
    @abstractmethod
    def agent(self) -> str:
        """Name of the agent, for config.json."""

    @abstractmethod
    def learn(self, index: Tensor) -> None:
        """Learns from fresh scenes of images, int64 (num_scenes,), and adds to `sums`. Waits for no device."""

    @abstractmethod
    def make_policy(self) -> Policy:
        """The policy that `validation_env` measures."""

    def schedules(self) -> dict[str, float]:
        """What changes as training goes on, for the metrics."""
        return {"learning_rate": learning_rate(self.config, self.done)}

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that validation sees and the best checkpoint holds."""
        return self.model if self.average is None else self.average.module

    @property
    def done(self) -> float:
        """Share of all updates that are done."""
        return (self.epoch + self.update_in_epoch / self.updates_per_epoch) / self.config.epochs

    def update(self) -> None:
        """One batch: learn, count. Waits for no device."""
        if self.permuted_epoch != self.epoch:
            # A function of seed and epoch alone, so that a resumed run has the same one.
            order = torch.Generator().manual_seed(self.epoch_seed)
            permutation = torch.randperm(self.num_images, generator=order)
            if self.config.distorted_copies:
                copy = torch.randint(1 + self.config.distorted_copies, permutation.shape, generator=order)
                permutation += copy * self.num_images
            self.permutation, self.permuted_epoch = permutation.to(self.env.device), self.epoch
        start = self.update_in_epoch * self.config.batch_size + self.ranks.rank * self.num_scenes
        rate = learning_rate(self.config, self.done)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self.learn(self.permutation[start : start + self.num_scenes])
        self.update_in_epoch += 1

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer down a loss; the gradients were None before."""
        loss.backward()
        if self.config.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()

    def end_epoch(self) -> dict[str, Any]:
        """Closes an epoch and returns its metrics, which it writes.

        Where validation is due it measures, keeps the best weights and writes a checkpoint.
        """
        right, *losses = (self.ranks.mean(self.sums) / self.updates_per_epoch).tolist()
        is_due = (self.epoch + 1) % self.config.validate_every == 0 or self.epoch + 1 == self.config.epochs
        with self.ranks.together():
            bad = None if math.isfinite(right + sum(losses)) else "a loss"
            if is_due and not all(bool(weight.isfinite().all()) for weight in self.evaluated_model.parameters()):
                bad = bad or "a weight"
            if bad:
                raise RunError(f"training diverged in epoch {self.epoch + 1}: {bad} is no number; lower learning_rate")
        self.epoch, self.update_in_epoch = self.epoch + 1, 0
        self.sums.zero_()
        metrics: dict[str, Any] = {
            "epoch": self.epoch,
            self.losses[0]: 100 * right,
            **dict(zip(self.losses[1:], losses, strict=True)),
            **self.schedules(),
            "scenes": self.epoch * self.updates_per_epoch * self.config.batch_size,
            "train_seconds": round(self.seconds, 1),
        }
        if is_due:
            error = self.ranks.by_first(self.validate)
            metrics["validation_error_percent"] = error
            if error < self.best[0]:
                self.best = (error, self.epoch)
                if self.folder is not None and self.ranks.rank == 0:
                    weights = self.evaluated_model.state_dict()
                    header = {"epoch": self.epoch, "fingerprint": fingerprint(self.data)}
                    self.folder.write_tensors("best.safetensors", weights, header)
        self.last_metrics = metrics
        if self.folder is not None:
            if self.ranks.rank == 0:
                self.folder.append_metrics(metrics)
            if is_due:
                self.save()
        return metrics

    def validate(self) -> float:
        """Error in percent on the validation split, single rollout."""
        return evaluate(self.make_policy(), self.validation_env).error_percent

    def save(self) -> None:
        """Writes last.safetensors, from which `load` goes on to the same numbers, with any number of ranks."""
        assert self.folder is not None
        sums = self.ranks.mean(self.sums)
        if self.ranks.rank > 0:
            return
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        tensors |= {"generator": self.generator.get_state(), "sums": sums}
        about: dict[str, Any] = {"epoch": self.epoch, "update_in_epoch": self.update_in_epoch, "seconds": self.seconds}
        about |= {"best_error": self.best[0] if self.best[1] else None, "best_epoch": self.best[1]}
        about["fingerprint"] = fingerprint(self.data)
        self.folder.write_tensors("last.safetensors", tensors, about)

    def load(self) -> None:
        """Goes back to where last.safetensors was written.

        Raises:
            RunError: it is missing, damaged, or not of this configuration; or best.safetensors is missing, damaged or
                of an earlier epoch than the best.
        """
        assert self.folder is not None
        if not os.path.lexists(self.folder.path / "last.safetensors"):
            anew = f"--like {self.folder.path} --init {self.folder.path} begins another run with its best weights"
            raise RunError(f"{self.folder.path} cannot go on: last.safetensors is missing; {anew}")
        tensors, about = self.folder.read_tensors("last.safetensors")
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            if part in parts:
                parts[part][rest] = value
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in parts.pop("optimizer").items():
            number, _, name = key.partition(".")
            state.setdefault(int(number) if number.isdecimal() else -1, {})[name] = value
        others = {key: value for key, value in tensors.items() if key.partition(".")[0] not in PARTS}
        try:
            check_tensors("weights", parts["model"], self.model.state_dict())
            check_tensors("average", parts["average"], {} if self.average is None else self.average.state_dict())
            check_tensors("others", others, {"generator": self.generator.get_state(), "sums": self.sums})
            if about["epoch"] or about["update_in_epoch"] or state:  # the optimizer has none before the first update
                check_adam_state(state, self.optimizer)
        except ValueError as error:
            raise RunError(f"{self.folder.path}/last.safetensors does not fit its config.json: {error}") from error
        if not (about["epoch"] <= self.config.epochs and about["update_in_epoch"] < self.updates_per_epoch):
            place = f"update {about['update_in_epoch']} after epoch {about['epoch']}"
            whole = f"{self.config.epochs} epochs of {self.updates_per_epoch} updates"
            raise RunError(f"{self.folder.path}/last.safetensors is of {place}, and the run has {whole}")
        if about["best_epoch"]:
            epoch = self.folder.read_tensors("best.safetensors")[1]["epoch"]
            if epoch < about["best_epoch"]:  # it is newer where a kill came before last.safetensors was written
                place = f"of epoch {epoch}, and the best so far was epoch {about['best_epoch']}"
                raise RunError(f"{self.folder.path}/best.safetensors is {place}: put that one back")
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.generator.set_state(others["generator"])
        self.sums.copy_(others["sums"])
        self.epoch, self.update_in_epoch, self.seconds = about["epoch"], about["update_in_epoch"], about["seconds"]
        self.best = (math.inf, 0) if about["best_error"] is None else (about["best_error"], about["best_epoch"])

    def begin_with(self, other: RunFolder) -> None:
        """Takes the best weights of another run of this agent.

        Raises:
            RunError: they are missing, damaged, or of a network of another form.
        """
        other.read_config(self.agent)
        other.load_best(self.model, torch.bfloat16)

    @property
    def epoch_seed(self) -> int:
        """Seed of this pass: of the order of its scenes, and of the scenes."""
        return self.config.seed * 2**20 + self.epoch

    @property
    def scene_seed(self) -> int:
        """Seed of the scenes of this pass: its own, unless the environment config has one."""
        fixed = self.config.env_config.scene_seed
        return self.epoch_seed if fixed is None else fixed
