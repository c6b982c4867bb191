"""Training: the loop that drives a trainer, whatever it trains, and what that loop tells."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from ram_gym import load_dataset

from .config import NativeConfig
from .fingerprint import is_other_data
from .interrupts import noted_interrupts
from .ranks import ALONE, Ranks
from .run_folder import RunFolder
from .tensorboard import TensorBoard
from .trainer import Trainer

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


def run_training(
    make: Callable[[], Trainer],
    config: NativeConfig,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains to the end, or until it is stopped.

    Reads the test split for its fingerprint alone. Ctrl-C (SIGINT) or SIGTERM, in the main thread, ends it after
    the running update, with a checkpoint; with several ranks, after an update that they agree on.

    Args:
        make: makes the trainer of the configuration, folder and ranks.
        config: the run.
        folder: where to write it; None writes nothing.
        resume: go on from the folder's last checkpoint.
        init: a run of the same agent; training begins with its best weights instead of random ones.
        on_progress: called a few times a second.
        ranks: the processes that share the work; each calls this with the same arguments, and rank 0 writes.

    Raises:
        RunError: the folder holds a run already, or another process trains in it; resuming, it holds none that fits,
            or a file of it is missing; or `init` does not fit.
        SystemExit: another rank raised an error before training began.
    """
    with ExitStack() as stack:
        trainer = _begin(make, config, folder, resume, init, ranks, stack)
        return _train(trainer, config, folder, on_progress, ranks)


def _train(
    trainer: Trainer,
    config: NativeConfig,
    folder: RunFolder | None,
    on_progress: Callable[[Progress], None] | None,
    ranks: Ranks,
) -> TrainResult:
    board = TensorBoard(folder) if folder is not None and ranks.rank == 0 else None
    saved = reported = time.perf_counter()
    began = trainer.seconds, trainer.done
    with noted_interrupts() as is_interrupted:
        for number in itertools.count():
            if trainer.epoch >= config.epochs:
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
                if "validation_error_percent" in metrics:
                    saved = time.perf_counter()
                if board is not None:
                    board.add(metrics)
            now = time.perf_counter()
            if on_progress is not None and (now - reported > 0.25 or trainer.epoch >= config.epochs):
                reported = now
                on_progress(_progress(trainer, *began))
        if folder is not None and trainer.epoch < config.epochs:
            trainer.save()
    if board is not None:
        board.close()
    is_complete = trainer.epoch >= config.epochs
    error, best_epoch = trainer.best
    if folder is not None and is_complete and ranks.rank == 0:
        found: dict[str, Any] = {"error_percent": error, "epoch": best_epoch, "epochs": config.epochs}
        found |= {"train_seconds": round(trainer.seconds, 1), "scenes": (trainer.last_metrics or {}).get("scenes")}
        folder.add_result("validation", found)
    return TrainResult(is_complete, best_epoch, error)


def _begin(
    make: Callable[[], Trainer],
    config: NativeConfig,
    folder: RunFolder | None,
    resume: bool,
    init: RunFolder | None,
    ranks: Ranks,
    stack: ExitStack,
) -> Trainer:
    """The trainer, as far as the folder's run has come; the folder as it was then, and nobody else's until `stack`
    is closed.
    """
    writes = folder is not None and ranks.rank == 0
    with ranks.together():
        if folder is not None and not resume:
            folder.require_no_run()
        if folder is not None and resume:
            folder.read_about()
            if writes:
                stack.enter_context(folder.training())
        if ranks.local_rank == 0:  # one process of a machine, since this may download
            load_dataset(config.env_config.dataset, "train", config.env_config.data_root)
        if folder is not None and resume:
            other = f"--like {folder.path} begins another run"
            is_other_data(folder.read_about()["data"], config.env_config, ("train", "validation"), folder.path, other)
    with ranks.together():
        trainer = make()
        if resume:
            trainer.load()
        elif init is not None:
            trainer.begin_with(init)
        if folder is not None and writes and not resume:
            stack.enter_context(folder.training())
            folder.require_no_run()
    if folder is not None and not resume:
        trainer.save()  # before config.json makes it a run, so that a run always has a checkpoint
    with ranks.together():
        if folder is not None and writes:
            folder.truncate_metrics(trainer.epoch)
            if not resume:
                folder.create(trainer.agent, config, trainer.data, ranks=ranks.size)
            elif trainer.epoch < config.epochs:
                folder.note_resume(trainer.epoch, {"epochs": config.epochs}, ranks=ranks.size)
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
