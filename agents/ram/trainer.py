"""Training of the Recurrent Attention Model, through the public vector environment.

    observation, _ = env.reset(options=...)              one environment lane per rollout
    T times:  state = look(observation, state); sample a location; observation = env.step(...)
    loss = cross-entropy + REINFORCE + baseline          one graph from the first glimpse to the answer

The environment's part of that graph has no gradient: observations are constants.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents.ram.config import RamConfig
from agents.ram.losses import rollout_losses, total_loss
from agents.ram.network import RecurrentAttentionModel
from agents.ram.rollout import AGENT, make_env, make_model, make_policy, play
from agents.runs import RunError, RunFolder
from agents.scripted import ScriptedLocator, make_locator
from ram_gym import evaluate


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


def learning_rate(config: RamConfig, done: float) -> float:
    """The learning rate when a share `done` in [0, 1] of all updates is done."""
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    rise = 0.1 if config.learning_rate_schedule == "one-cycle" else 0.0
    if done < rise:
        return config.learning_rate * (0.04 + 0.96 * done / rise)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


def location_std(config: RamConfig, done: float) -> float:
    """The location policy's standard deviation when a share `done` of all updates is done."""
    final = config.location_std if config.final_location_std is None else config.final_location_std
    return config.location_std + done * (final - config.location_std)


class Trainer:
    """A training run in memory: the environment, the network, the optimizer and how far it has come.

    Args:
        config: the run.
        folder: where it is written; None keeps it in memory.
    """

    def __init__(self, config: RamConfig, folder: RunFolder | None = None) -> None:
        self.config, self.folder = config, folder
        setting = config.environment()
        self.env = make_env(setting, config.device, config.batch_size * config.rollouts)
        self.validation_env = make_env(setting.replace(split="validation"), config.device)
        self.updates_per_epoch = self.env.num_images // config.batch_size
        if not self.updates_per_epoch:
            raise ValueError(f"batch_size must be at most {self.env.num_images}, the images, got {config.batch_size}")
        self.model = make_model(config, self.env)
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.weight_average))
            if config.weight_average
            else None
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.generator = torch.Generator(self.env.device).manual_seed(config.seed)
        self.locator: ScriptedLocator | None = None
        if config.locator != "learned":
            self.locator = make_locator(config.locator, self.env, self.generator)
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
        """One batch: roll out, learn, count."""
        config = self.config
        if self.update_in_epoch == 0 or not len(self.permutation):
            # A function of seed and epoch alone, so that a resumed run has the same one.
            order = torch.Generator().manual_seed(self._epoch_seed())
            self.permutation = torch.randperm(self.env.num_images, generator=order).to(self.env.device)
        start = self.update_in_epoch * config.batch_size
        index = self.permutation[start : start + config.batch_size].repeat_interleave(config.rollouts)
        first = torch.rand((len(index), 2), generator=self.generator, device=self.env.device) * 2 - 1
        options = {"index": index, "scene_seed": self._epoch_seed(), "location": first}
        std = location_std(config, self.done)
        rollout = play(self.model, self.env, options, std, self.generator, self.locator)
        losses = rollout_losses(rollout, std, config.rollouts, use_leave_one_out=config.baseline == "leave-one-out")
        reinforce_weight = config.reinforce_weight if self.locator is None else 0.0
        baseline_weight = config.baseline_weight if config.baseline == "learned" else 0.0
        self.optimizer.zero_grad(set_to_none=True)
        total_loss(losses, reinforce_weight, baseline_weight).backward()
        if config.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.done)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.sums += torch.stack((rollout.rewards.mean(), *losses)).detach()
        self.update_in_epoch += 1

    def end_epoch(self) -> dict[str, Any]:
        """Closes an epoch: validates, keeps the best weights, writes metrics and a checkpoint; returns the metrics."""
        reward, classification, reinforce, baseline = (self.sums / self.updates_per_epoch).tolist()
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
            error = self.validate()
            metrics["validation_error_percent"] = error
            if error < self.best[0]:
                self.best = (error, self.epoch)
                if self.folder is not None:
                    weights = self.evaluated_model.state_dict()
                    self.folder.write_tensors("best.safetensors", weights, {"epoch": self.epoch})
        self.last_metrics = metrics
        if self.folder is not None:
            self.folder.append_metrics(metrics)
            self.save()
        return metrics

    def validate(self) -> float:
        """Error in percent on the validation split, single rollout."""
        policy = make_policy(self.evaluated_model, self.validation_env, self.config.locator, self.config.seed)
        return evaluate(policy, self.validation_env).error_percent

    def save(self) -> None:
        """Writes last.safetensors, from which `load` goes on to the same numbers."""
        assert self.folder is not None
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        tensors |= {"generator": self.generator.get_state(), "sums": self.sums}
        about: dict[str, Any] = {"epoch": self.epoch, "update_in_epoch": self.update_in_epoch, "seconds": self.seconds}
        about |= {"best_error": self.best[0] if self.best[1] else None, "best_epoch": self.best[1]}
        self.folder.write_tensors("last.safetensors", tensors, about)

    def load(self) -> None:
        """Goes back to where last.safetensors was written.

        Raises:
            RunError: it is missing, damaged, or not of this configuration.
        """
        assert self.folder is not None
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
) -> TrainResult:
    """Trains a Recurrent Attention Model.

    Never reads the test split. Ctrl-C (SIGINT, in the main thread) ends it after the running update, with a checkpoint.

    Args:
        config: the run.
        folder: where to write it; None writes nothing.
        resume: go on from the folder's last checkpoint (or from the beginning, if it was killed before the first).
        on_progress: called a few times a second.

    Raises:
        RunError: the folder holds a run already, or, resuming, none that fits.
    """
    trainer = Trainer(config, folder)
    if folder is not None:
        if not resume:
            folder.create(AGENT, config.to_dict())
        elif (folder.path / "last.safetensors").exists():
            trainer.load()
        folder.truncate_metrics(trainer.epoch)
        if trainer.epoch < config.epochs:
            folder.remove_results()
        trainer.last_metrics = next(reversed(folder.read_metrics()), None)
    writer = _tensorboard(folder)
    saved = reported = time.perf_counter()
    began = trainer.seconds, trainer.done
    with _interrupts() as is_interrupted:
        while trainer.epoch < config.epochs and not is_interrupted():
            start = time.perf_counter()
            trainer.update()
            trainer.seconds += time.perf_counter() - start
            if trainer.update_in_epoch == trainer.updates_per_epoch:
                metrics = trainer.end_epoch()
                saved = time.perf_counter()
                _add_scalars(writer, metrics)
            now = time.perf_counter()
            if folder is not None and now - saved > 60 * config.checkpoint_minutes:
                trainer.save()
                saved = now
            if on_progress is not None and (now - reported > 0.25 or trainer.epoch == config.epochs):
                reported = now
                on_progress(_progress(trainer, *began))
        if folder is not None and trainer.epoch < config.epochs:
            trainer.save()
    if writer is not None:
        writer.close()
    is_complete = trainer.epoch == config.epochs
    error, best_epoch = trainer.best
    if folder is not None and is_complete:
        found: dict[str, Any] = {"error_percent": error, "epoch": best_epoch, "epochs": config.epochs}
        found |= {"train_seconds": round(trainer.seconds, 1), "scenes": (trainer.last_metrics or {}).get("scenes")}
        folder.add_result("validation", found)
    return TrainResult(is_complete, best_epoch, error)


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


def _tensorboard(folder: RunFolder | None) -> Any:
    """A writer that has the rows of metrics.jsonl and hides whatever else an earlier writer left."""
    if folder is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder.path), purge_step=1)
    for row in folder.read_metrics():
        _add_scalars(writer, row)
    return writer


def _add_scalars(writer: Any, row: dict[str, Any]) -> None:
    for key, value in row.items():
        if writer is not None and key != "epoch":
            writer.add_scalar(key, value, row["epoch"])


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C is noted instead of raised; a second one is raised as ever."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: Any) -> None:
        del signum, frame
        noted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)
