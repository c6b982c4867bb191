"""Training of the Recurrent Attention Model, through the public vector environment.

    observation, _ = env.reset(options=...)              one environment lane per rollout
    T times:  state = look(observation, state); sample a location; observation = env.step(...)
    loss = cross-entropy + REINFORCE + baseline          one graph from the first glimpse to the answer

The environment's part of that graph has no gradient: observations are constants.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents.interrupts import noted_interrupts
from agents.ram.config import RamConfig, learning_rate, location_std
from agents.ram.graph import GraphedStep
from agents.ram.learner import Learner, share_gradients
from agents.ram.network import RecurrentAttentionModel
from agents.ram.rollout import AGENT, make_env, make_model, make_policy
from agents.ranks import ALONE, Ranks
from agents.runs import RunError, RunFolder, TensorBoard
from agents.scripted import make_locator
from ram_gym import evaluate, load_dataset

UPDATES_BETWEEN_TALKS = 8
"""Several ranks agree this often on whether to stop or to save."""


class Progress(NamedTuple):
    """Where a training run stands; handed to `on_progress` a few times a second."""

    epoch: int
    epochs: int
    done: float
    """Share of all updates that are done, in [0, 1]."""
    images_per_second: float
    """Scenes learned from per second of training, one rollout each; validation not counted."""
    seconds_left: float
    last_metrics: dict[str, Any] | None
    """The row of metrics.jsonl that was written last."""


class TrainResult(NamedTuple):
    """What a training run ended with."""

    is_complete: bool
    """False where it was interrupted; its last checkpoint resumes it."""
    best_epoch: int
    validation_error_percent: float
    """Of the best epoch, single rollout."""


class Trainer:
    """A training run in memory: the environment, the network, the optimizer and how far it has come.

    With several ranks each has a trainer, with its own part of every batch and otherwise the same numbers; all of them
    call the same methods. Rank 0 writes the folder, the others read it.

    Args:
        config: the run.
        folder: where it is written; None keeps it in memory.
        ranks: the processes that share the work.

    Raises:
        ValueError: the batch is larger than the split or cannot be shared out, or the device does not fit.
    """

    def __init__(self, config: RamConfig, folder: RunFolder | None = None, ranks: Ranks = ALONE) -> None:
        self.config, self.folder, self.ranks = config, folder, ranks
        if config.cuda_graph and not config.device.startswith("cuda"):
            raise ValueError(f"cuda_graph needs device 'cuda', got {config.device!r}")
        self.is_graphed = config.cuda_graph and ranks.size == 1
        setting, device = config.environment(), ranks.device(config.device)
        self.num_scenes = ranks.share(config.batch_size, "batch_size")
        self.env = make_env(setting, device, self.num_scenes * config.rollouts)
        self.validation_env = make_env(setting.replace(split="validation"), device)
        self.updates_per_epoch = self.env.num_images // config.batch_size
        if not self.updates_per_epoch:
            raise ValueError(f"batch_size must be at most {self.env.num_images}, the images, got {config.batch_size}")
        self.model = make_model(config, self.env)
        if setting.num_glimpses == 1:  # nothing is located and nothing expected, so nothing trains these two
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
        self.generator = torch.Generator(self.env.device).manual_seed(config.seed)
        self.epoch = 0  # complete ones
        self.update_in_epoch = 0
        self.seconds = 0.0  # of training, validation and checkpoints not counted
        self.best: tuple[float, int] = (math.inf, 0)  # validation error in percent, epoch
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.env.device)  # of the epoch: rewards and losses
        self.permutation = torch.empty(0)
        self.last_metrics: dict[str, Any] | None = None

    @property
    def evaluated_model(self) -> RecurrentAttentionModel:
        """The network that validation sees and the best checkpoint holds."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    @property
    def done(self) -> float:
        """Share of all updates that are done."""
        return (self.epoch + self.update_in_epoch / self.updates_per_epoch) / self.config.epochs

    def update(self) -> None:
        """One batch: roll out, learn, count. Waits for no device."""
        config = self.config
        if self.update_in_epoch == 0 or not len(self.permutation):
            # A function of seed and epoch alone, so that a resumed run has the same one.
            order = torch.Generator().manual_seed(self._epoch_seed())
            self.permutation = torch.randperm(self.env.num_images, generator=order).to(self.env.device)
        start = self.update_in_epoch * config.batch_size + self.ranks.rank * self.num_scenes
        index = self.permutation[start : start + self.num_scenes].repeat_interleave(config.rollouts)
        scene_seed = torch.full((), self._epoch_seed(), device=self.env.device)
        std = torch.full((), location_std(config, self.done), device=self.env.device)
        rate = learning_rate(config, self.done)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._run_step(index, scene_seed, std)
        self._average_weights()
        self.update_in_epoch += 1

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
        loss, found = self.learner(index, scene_seed, std)
        loss.backward()
        if self.config.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        self.sums += found

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

    def end_epoch(self) -> dict[str, Any]:
        """Closes an epoch: validates, keeps the best weights, writes metrics and a checkpoint; returns the metrics."""
        found = self.ranks.mean(self.sums) / self.updates_per_epoch
        reward, classification, reinforce, baseline = found.tolist()
        with self.ranks.together():
            if not math.isfinite(reward + classification + reinforce + baseline):
                raise RunError(f"training diverged in epoch {self.epoch + 1}: a loss is no number; lower learning_rate")
        self.epoch, self.update_in_epoch = self.epoch + 1, 0
        self.sums.zero_()
        metrics: dict[str, Any] = {
            "epoch": self.epoch,
            "train_accuracy_percent": 100 * reward,
            "classification_loss": classification,
            "reinforce_loss": reinforce,
            "baseline_loss": baseline,
            "learning_rate": learning_rate(self.config, self.done),
            "location_std": location_std(self.config, self.done),
            "scenes": self.epoch * self.updates_per_epoch * self.config.batch_size,
            "train_seconds": round(self.seconds, 1),
        }
        if self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs:
            error = self.ranks.by_first(self.validate)
            metrics["validation_error_percent"] = error
            if error < self.best[0]:
                self.best = (error, self.epoch)
                if self.folder is not None and self.ranks.rank == 0:
                    weights = self.evaluated_model.state_dict()
                    self.folder.write_tensors("best.safetensors", weights, {"epoch": self.epoch})
        self.last_metrics = metrics
        if self.folder is not None:
            if self.ranks.rank == 0:
                self.folder.append_metrics(metrics)
            self.save()
        return metrics

    def validate(self) -> float:
        """Error in percent on the validation split, single rollout."""
        policy = make_policy(self.evaluated_model, self.validation_env, self.config.locator, self.config.seed)
        return evaluate(policy, self.validation_env).error_percent

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
        self.folder.write_tensors("last.safetensors", tensors, about)

    def load(self) -> None:
        """Goes back to where last.safetensors was written.

        Raises:
            RunError: it is missing, damaged, or not of this configuration.
        """
        assert self.folder is not None
        self.__dict__.pop("_run_step", None)  # a graph knows where the tensors were that are replaced here
        tensors, about = self.folder.read_tensors("last.safetensors")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            if part in parts:
                parts[part][rest] = value
        optimizer = self.optimizer.state_dict()
        for key, value in parts["optimizer"].items():
            number, _, name = key.partition(".")
            optimizer["state"].setdefault(int(number), {})[name] = value
        try:
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                self.average.load_state_dict(parts["average"])
            self.optimizer.load_state_dict(optimizer)
            self.generator.set_state(tensors["generator"])
            self.sums.copy_(tensors["sums"])
            self.epoch, self.update_in_epoch = about["epoch"], about["update_in_epoch"]
            self.seconds = about["seconds"]
            self.best = (math.inf, 0) if about["best_error"] is None else (about["best_error"], about["best_epoch"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise RunError(f"{self.folder.path}/last.safetensors does not fit its config.json: {error}") from error

    def _epoch_seed(self) -> int:
        """Seed of the scenes of this pass and of their order."""
        return self.config.seed * 2**20 + self.epoch


def train(
    config: RamConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains a Recurrent Attention Model.

    Never reads the test split. Ctrl-C (SIGINT) or SIGTERM, in the main thread, ends it after the running update, with
    a checkpoint; with several ranks, after an update that they agree on.

    Args:
        config: the run.
        folder: where to write it; None writes nothing.
        resume: go on from the folder's last checkpoint (or from the beginning, if it was killed before the first).
        on_progress: called a few times a second.
        ranks: the processes that share the work; each calls this with the same arguments, and rank 0 writes.

    Raises:
        RunError: the folder holds a run already, or, resuming, none that fits.
        SystemExit: another rank raised an error before training began.
    """
    trainer = _begin(config, folder, resume, ranks)
    board = TensorBoard(folder) if folder is not None and ranks.rank == 0 else None
    saved = reported = time.perf_counter()
    began = trainer.seconds, trainer.done
    with noted_interrupts() as is_interrupted:
        for number in itertools.count():
            if trainer.epoch == config.epochs:
                break
            if ranks.size == 1 or number % UPDATES_BETWEEN_TALKS == 0:
                is_due = folder is not None and time.perf_counter() - saved > 60 * config.checkpoint_minutes
                is_over, is_due = ranks.any(is_interrupted(), is_due)
                if is_over:
                    break
                if is_due:
                    trainer.save()
                    saved = time.perf_counter()
            start = time.perf_counter()
            trainer.update()
            is_last = trainer.update_in_epoch == trainer.updates_per_epoch
            if is_last and trainer.env.device.type == "cuda":
                torch.cuda.synchronize(trainer.env.device)  # once a pass, so that its time is all counted
            trainer.seconds += time.perf_counter() - start
            if is_last:
                metrics = trainer.end_epoch()
                saved = time.perf_counter()
                if board is not None:
                    board.add(metrics)
            now = time.perf_counter()
            if on_progress is not None and (now - reported > 0.25 or trainer.epoch == config.epochs):
                reported = now
                on_progress(_progress(trainer, *began))
        if folder is not None and trainer.epoch < config.epochs:
            trainer.save()
    if board is not None:
        board.close()
    is_complete = trainer.epoch == config.epochs
    error, best_epoch = trainer.best
    if folder is not None and is_complete and ranks.rank == 0:
        found: dict[str, Any] = {"error_percent": error, "epoch": best_epoch, "epochs": config.epochs}
        found |= {"train_seconds": round(trainer.seconds, 1), "scenes": (trainer.last_metrics or {}).get("scenes")}
        folder.add_result("validation", found)
    return TrainResult(is_complete, best_epoch, error)


def _begin(config: RamConfig, folder: RunFolder | None, resume: bool, ranks: Ranks) -> Trainer:
    """The trainer, as far as the folder's run has come; the folder as it was then."""
    with ranks.together():
        if ranks.local_rank == 0:  # one process of a machine, since this may download
            load_dataset(config.environment().dataset, "train", config.data_root)
    with ranks.together():
        trainer = Trainer(config, folder, ranks)
        if folder is not None and resume and (folder.path / "last.safetensors").exists():
            trainer.load()
    with ranks.together():
        if folder is not None and ranks.rank == 0:
            if not resume:
                folder.create(AGENT, config.to_dict(), ranks=ranks.size)
            folder.truncate_metrics(trainer.epoch)
            if trainer.epoch < config.epochs:
                folder.remove_results()
            trainer.last_metrics = next(reversed(folder.read_metrics()), None)
    return trainer


def _progress(trainer: Trainer, seconds_before: float, done_before: float) -> Progress:
    seconds = max(trainer.seconds - seconds_before, 1e-9)
    share = max(trainer.done - done_before, 1e-9)
    scenes = share * trainer.config.epochs * trainer.updates_per_epoch * trainer.config.batch_size
    epochs = trainer.config.epochs
    return Progress(
        min(trainer.epoch + 1, epochs),
        epochs,
        trainer.done,
        scenes / seconds,
        seconds / share * (1 - trainer.done),
        trainer.last_metrics,
    )
