"""The training loop of the native agents: data order, schedules, optimizer step, validation, checkpoint.

Read `run_training`, then `Trainer.train`, `update` and `end_epoch`. An agent contributes a `Learner`, see learner.py.
Longer than other files here: the loop is in one place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ram_gym import evaluate, load_dataset

from .allocator import keep_freed_memory
from .checkpoint import init_model, load_checkpoint, save_checkpoint
from .config import NativeConfig, learning_rate
from .distortion import with_distorted_copies
from .environment import check_device, make_env
from .fingerprint import Data, describe_data, fingerprint, is_other_data
from .graph import GraphedStep
from .interrupts import noted_interrupts
from .learner import MakeLearner, OnProgress, Progress, TrainResult
from .machine import chosen_threads
from .ranks import ALONE, Ranks
from .run_folder import RunError, RunFolder
from .tensorboard import TensorBoard

SECONDS_BETWEEN_REPORTS = 0.25
"""Seconds between two calls of `on_progress`."""
UPDATES_BETWEEN_AGREEMENTS = 8
"""With several ranks: they agree on whether to stop or to save once in so many updates."""


class Trainer:
    """A training run in memory: the environment, the learner, the optimizer, and how far the run has come.

    With several ranks, each rank has a trainer with its own part of every batch and otherwise the same state. All ranks
    call the same methods. Rank 0 writes the folder; the others only read it.

    Args:
        make_learner: makes the learner.
        config: configuration of the run.
        folder: folder to write the run to; None writes nothing.
        ranks: the processes that share the work.

    Raises:
        ValueError: the batch is larger than the split or not divisible by the number of ranks, or the device cannot
            be used.
    """

    def __init__(
        self, make_learner: MakeLearner, config: NativeConfig, folder: RunFolder | None = None, ranks: Ranks = ALONE
    ) -> None:
        keep_freed_memory()
        self.config, self.folder, self.ranks = config, folder, ranks
        device = ranks.device(config.device)
        check_device(device)
        env_config = config.training_env_config
        images = load_dataset(env_config).images
        self.num_images = len(images)
        self.num_scenes = ranks.share(config.batch_size, "batch_size")
        self.updates_per_epoch = self.num_images // config.batch_size
        if not self.updates_per_epoch:
            raise ValueError(
                f"batch_size must be at most {self.num_images}, the number of images, got {config.batch_size}"
            )
        distorted_images = None
        if config.distorted_copies:
            distorted_images = with_distorted_copies(images, config.distorted_copies, config.seed, device)
        self.env = make_env(env_config, device, self.num_scenes * config.episodes_per_scene, distorted_images)
        self.validation_env = make_env(config.env_config.replace(split="validation"), device)

        self.generator = torch.Generator(self.env.device).manual_seed(config.seed)
        self.learner = make_learner(config, self.env, self.generator, ranks)
        self.model = self.learner.model
        self.is_graphed = self.learner.cuda_graph and ranks.size == 1
        rate = config.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=torch.tensor(rate, device=self.env.device) if self.is_graphed else rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=self.is_graphed,
        )
        self.average: AveragedModel | None = None
        if self.learner.weight_average:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.learner.weight_average))

        self.epoch = 0  # number of complete epochs
        self.update_in_epoch = 0
        self.seconds = 0.0  # training time, without validation and checkpoints
        self.best: tuple[float, int] = (math.inf, 0)  # validation error in percent, epoch
        self.sums = torch.zeros(
            len(self.learner.losses), dtype=torch.float64, device=self.env.device
        )  # over this epoch
        self.order, self.ordered_epoch = torch.empty(0), -1
        self.last_metrics: dict[str, Any] | None = None

    def train(self, on_progress: OnProgress | None = None) -> TrainResult:
        """Trains to the end. Ctrl-C or SIGTERM stops it after the current update, with a checkpoint."""
        board = TensorBoard(self.folder) if self.folder is not None and self.ranks.rank == 0 else None
        saved = reported = time.perf_counter()
        start_seconds, start_done = self.seconds, self.done
        updates = 0
        with noted_interrupts() as is_interrupted:
            while self.epoch < self.config.epochs:
                if self.ranks.size == 1 or updates % UPDATES_BETWEEN_AGREEMENTS == 0:
                    minutes = (time.perf_counter() - saved) / 60
                    is_due = self.folder is not None and minutes > self.config.checkpoint_minutes
                    is_over, is_due = self.ranks.any(is_interrupted(), is_due)
                    if is_over:
                        break
                    if is_due:
                        save_checkpoint(self)
                        saved = time.perf_counter()
                start = time.perf_counter()
                self.update()
                updates += 1
                is_last = self.update_in_epoch == self.updates_per_epoch
                if is_last and self.env.device.type == "cuda":
                    torch.cuda.synchronize(self.env.device)  # once an epoch, so that `seconds` counts all of its work
                self.seconds += time.perf_counter() - start
                if is_last:
                    metrics = self.end_epoch()
                    if "validation_error_percent" in metrics:
                        saved = time.perf_counter()  # end_epoch wrote a checkpoint
                    if board is not None:
                        board.add(metrics)
                now = time.perf_counter()
                if on_progress is not None and (
                    now - reported > SECONDS_BETWEEN_REPORTS or self.epoch >= self.config.epochs
                ):
                    reported = now
                    on_progress(self._progress(start_seconds, start_done))
            if self.folder is not None and self.epoch < self.config.epochs:
                save_checkpoint(self)
        if board is not None:
            board.close()
        error, best_epoch = self.best
        is_complete = self.epoch >= self.config.epochs
        if self.folder is not None and is_complete and self.ranks.rank == 0:
            result: dict[str, Any] = {"error_percent": error, "epoch": best_epoch, "epochs": self.config.epochs}
            result |= {"train_seconds": round(self.seconds, 1), "scenes": (self.last_metrics or {}).get("scenes")}
            self.folder.add_result("validation", result)
        return TrainResult(is_complete, best_epoch, error)

    def update(self) -> None:
        """Trains on one batch: picks the images, sets the learning rate, takes an optimizer step. Does not synchronise
        with the device.
        """
        if self.ordered_epoch != self.epoch:
            self.order, self.ordered_epoch = self._order_images(), self.epoch
        rate = learning_rate(self.config, self.done)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        start = self.update_in_epoch * self.config.batch_size + self.ranks.rank * self.num_scenes
        device = self.env.device
        schedules = self.learner.schedules(self.done).values()
        self._run_step(
            self.order[start : start + self.num_scenes],
            torch.full((), self.scene_seed, device=device),
            *[torch.full((), value, device=device) for value in schedules],
        )
        self._average_weights()
        self.update_in_epoch += 1

    def _step(self, index: Tensor, scene_seed: Tensor, *schedules: Tensor) -> None:
        """The part of an update that runs on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, measured = self._shared_learner(index, scene_seed, *schedules)
        loss.backward()
        if self.config.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        self.sums += measured

    def end_epoch(self) -> dict[str, Any]:
        """Ends an epoch; writes and returns its metrics.

        In an epoch with validation, it also validates, saves the weights if they are the best, and writes a checkpoint.

        Raises:
            RunError: a loss or a weight is NaN or infinite.
        """
        right, *losses = (self.ranks.mean(self.sums) / self.updates_per_epoch).tolist()
        is_due = (self.epoch + 1) % self.config.validate_every == 0 or self.epoch + 1 == self.config.epochs
        with self.ranks.together():
            not_finite = None if math.isfinite(right + sum(losses)) else "a loss"
            if is_due and not all(bool(weight.isfinite().all()) for weight in self.evaluated_model.parameters()):
                not_finite = not_finite or "a weight"
            if not_finite:
                what = f"training diverged in epoch {self.epoch + 1}: {not_finite} is NaN or infinite"
                raise RunError(f"{what}; lower learning_rate")
        self.epoch, self.update_in_epoch = self.epoch + 1, 0
        self.sums.zero_()
        name, *names = self.learner.losses
        metrics: dict[str, Any] = {
            "epoch": self.epoch,
            name: 100 * right,
            **dict(zip(names, losses, strict=True)),
            "learning_rate": learning_rate(self.config, self.done),
            **self.learner.schedules(self.done),
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
                save_checkpoint(self)
        return metrics

    def validate(self) -> float:
        """Error on the validation split in percent, one rollout per scene."""
        model = self.evaluated_model.eval()  # for the user's own modules, which may have dropout
        error = evaluate(self.learner.policy(model, self.validation_env), self.validation_env).error_percent
        model.train()
        return error

    @cached_property
    def data(self) -> Data:
        """Description of the data that the run learns from."""
        return describe_data(self.config.env_config)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that validation evaluates and the best checkpoint stores."""
        return self.model if self.average is None else self.average.module

    @property
    def done(self) -> float:
        """Share of all updates that is done, in [0, 1]."""
        return (self.epoch + self.update_in_epoch / self.updates_per_epoch) / self.config.epochs

    @property
    def epoch_seed(self) -> int:
        """Seed of the order of this epoch's images and, unless the environment config has a seed, of its scenes."""
        return self.config.seed * 2**20 + self.epoch

    @property
    def scene_seed(self) -> int:
        """Seed of this epoch's scenes: that of the environment config if it has one, else the epoch's own."""
        fixed = self.config.env_config.scene_seed
        return self.epoch_seed if fixed is None else fixed

    def _order_images(self) -> Tensor:
        """Indices of this epoch's images in training order, int64 (num_images,). They depend on seed and epoch alone,
        so a resumed run has the same order.
        """
        generator = torch.Generator().manual_seed(self.epoch_seed)
        order = torch.randperm(self.num_images, generator=generator)
        if self.config.distorted_copies:
            copy = torch.randint(1 + self.config.distorted_copies, order.shape, generator=generator)
            order += copy * self.num_images
        return order.to(self.env.device)

    @cached_property
    def _shared_learner(self) -> nn.Module:
        """The learner; with several ranks wrapped, so that each update averages the gradients over the ranks.

        The ranks have equal parts of the batch, so the average is the gradient of the mean over the whole batch. All
        ranks make it at the first update.
        """
        if self.ranks.size == 1:
            return self.learner
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in self.learner.parameters())
        # One bucket holds all gradients, for one exchange per update. By default the first bucket is a small one.
        return DistributedDataParallel(self.learner, gradient_as_bucket_view=True, bucket_cap_mb=num_bytes // 2**20 + 1)

    @cached_property
    def _run_step(self) -> Callable[..., None]:
        return GraphedStep(self._step, self.generator) if self.is_graphed else self._step

    def forget_graph(self) -> None:
        """Drops the CUDA graph, since tensors that it reads have been replaced; the next updates record a new one."""
        self.__dict__.pop("_run_step", None)

    @torch.no_grad()
    def _average_weights(self) -> None:
        """Does what AveragedModel.update_parameters does, without its synchronisation with the device."""
        if self.average is None:
            return
        averages: list[Tensor] = list(self.average.module.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        if self.average.n_averaged == 0:  # n_averaged is on the CPU
            torch._foreach_copy_(averages, weights)
        else:
            get_ema_multi_avg_fn(self.learner.weight_average)(averages, weights, self.average.n_averaged)
        self.average.n_averaged += 1

    def _progress(self, seconds_before: float, done_before: float) -> Progress:
        epochs, seconds = self.config.epochs, max(self.seconds - seconds_before, 1e-9)
        share = max(self.done - done_before, 1e-9)
        scenes = share * epochs * self.updates_per_epoch * self.config.batch_size
        left = seconds / share * (1 - self.done)
        speed = f"{scenes / seconds:,.0f} images/s"
        return Progress(min(self.epoch + 1, epochs), epochs, self.done, speed, left, self.last_metrics)


def run_training(
    make_learner: MakeLearner,
    config: NativeConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Begins or resumes a run, and trains until its end or an interrupt.

    Reads the test split only to compute its fingerprint. In the main thread, Ctrl-C (SIGINT) or SIGTERM stops training
    after the current update, with a checkpoint; with several ranks, after an update that they agree on.

    Args:
        make_learner: makes the learner.
        config: configuration of the run.
        folder: folder to write the run to; None writes nothing.
        resume: resume from the folder's last checkpoint.
        init: a run of the same agent whose best weights are the initial ones; None draws random weights.
        on_progress: called a few times a second.
        ranks: the processes that share the work; each calls this with the same arguments, and rank 0 writes.

    Raises:
        RunError: a new run: the folder already holds a run. Resuming: the folder holds no run with this configuration,
            or a file is missing or damaged. Either: another process trains in the folder, or `init` does not fit.
        SystemExit: another rank raised an error before training began.
    """
    with ExitStack() as stack:  # holds the folder's lock until training has ended
        stack.enter_context(chosen_threads(config.batch_size * config.episodes_per_scene // ranks.size))
        writes = folder is not None and ranks.rank == 0
        with ranks.together():
            if folder is not None and not resume:
                folder.require_no_run()
            if folder is not None and resume:
                folder.read_about()
                if writes:
                    stack.enter_context(folder.training())
            if ranks.local_rank == 0:  # one process per machine, since this may download the data
                load_dataset(config.env_config)
            if folder is not None and resume:
                other = f"--like {folder.path} begins another run"
                data = folder.read_about()["data"]
                is_other_data(data, config.env_config, ("train", "validation"), folder.path, other)
        with ranks.together():
            trainer = Trainer(make_learner, config, folder, ranks)
            if resume:
                load_checkpoint(trainer)
            elif init is not None:
                init_model(trainer.model, config.agent, init)
            if folder is not None and writes and not resume:
                stack.enter_context(folder.training())
                folder.require_no_run()
        if folder is not None and not resume:
            save_checkpoint(trainer)  # before config.json, so that every run has a checkpoint
        with ranks.together():
            if folder is not None and writes:
                folder.truncate_metrics(trainer.epoch)
                if not resume:
                    folder.create(config.agent, config, trainer.data, ranks=ranks.size)
                elif trainer.epoch < config.epochs:
                    folder.note_resume(trainer.epoch, {"epochs": config.epochs}, ranks=ranks.size)
                if trainer.epoch < config.epochs:
                    folder.remove_results()
                trainer.last_metrics = next(reversed(folder.read_metrics()), None)
        return trainer.train(on_progress)
