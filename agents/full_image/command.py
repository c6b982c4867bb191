"""The commands `python -m agents train cnn` and `train mlp`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from pathlib import Path

import tyro
from rich.console import Console

from agents.full_image.config import FullImageConfig, Network, preset
from agents.full_image.playing import read_config
from agents.full_image.training import train
from agents.progress import format_training, show_progress
from agents.runs import RunFolder
from agents.trainer import Progress

_NAMES = {"cnn": "convolutional network", "mlp": "fully connected network"}


@dataclasses.dataclass(frozen=True)
class TrainFullImage:
    """Train a {network} that sees the whole canvas, on the task's scenes: what looking is measured against.

    The defaults below are the preset of --task. The run is written to a folder: config, metrics (JSON lines and
    TensorBoard), last and best checkpoint, results. Ctrl-C saves; `--resume RUN` (alone, or with --data-root) goes on
    with a run that was stopped, to the same numbers.
    """

    config: FullImageConfig
    out: Path | None = None
    """Folder to write the run to; default: runs/NETWORK-TASK-SEED."""


@dataclasses.dataclass(frozen=True)
class ResumeFullImage:
    """Go on with a run that was stopped, with the configuration it was begun with, to the same numbers."""

    resume: Path
    """Folder of the run."""
    data_root: str | None = None
    """Folder with the datasets, if it is not where the run was begun."""


def train_full_image(network: Network, arguments: list[str]) -> None:
    """Runs `train cnn` or `train mlp`.

    Raises:
        ValueError: several processes were started.
        SystemExit: 130 where training was interrupted.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"train {network} runs in one process: start it without torchrun")
    prog = f"python -m agents train {network}"
    is_resumed = any(argument.partition("=")[0] == "--resume" for argument in arguments)
    if is_resumed:
        again = tyro.cli(ResumeFullImage, args=arguments, prog=prog)
        folder = RunFolder(again.resume)
        folder.read_config(network)
        config = read_config(folder)
        config = dataclasses.replace(config, data_root=again.data_root or config.data_root)
    else:
        options = _parse_with_preset(network, arguments, prog)
        config = options.config
        path = options.out or Path("runs") / f"{network}-{config.task}-{config.seed}"
        folder = RunFolder(path, ["python", "-m", "agents", "train", network, *arguments])
    title = f"{'Going on with' if is_resumed else 'Training'} {network} on {config.task}: {folder.path}"
    with show_progress(title) as report:

        def on_progress(progress: Progress) -> None:
            text = format_training(progress.epoch, progress.epochs, progress.images_per_second, progress.last_metrics)
            report(progress.done, text, progress.seconds_left)

        result = train(config, folder, resume=is_resumed, on_progress=on_progress)
    if not result.is_complete:
        _say(f"Interrupted and saved. To go on: {prog} --resume {folder.path}")
        raise SystemExit(130)
    error = f"validation error {result.validation_error_percent:.2f}% at epoch {result.best_epoch}"
    _say(f"Done: {error}. Next: python -m agents evaluate {folder.path}")


def _parse_with_preset(network: Network, arguments: list[str], prog: str) -> TrainFullImage:
    """The options; --task decides what the others default to, wherever it stands."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--task", default=FullImageConfig.task)
    task = finder.parse_known_args(arguments)[0].task
    return tyro.cli(
        TrainFullImage,
        args=arguments,
        default=TrainFullImage(preset(network, task)),
        prog=prog,
        description=inspect.cleandoc(TrainFullImage.__doc__ or "").replace("{network}", _NAMES[network]),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
