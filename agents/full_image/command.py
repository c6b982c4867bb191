"""The commands `python -m agents train cnn` and `train mlp`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from ..training.command import ResumeEpochs, close_training, parse_training, refuse_several_processes
from ..training.loop import Progress
from ..training.progress import format_training, show_progress
from .config import PRESETS, FullImageConfig, Network, preset
from .training import train

_NAMES = {"cnn": "convolutional network", "mlp": "fully connected network"}


@dataclasses.dataclass(frozen=True)
class TrainFullImage:
    """Train a {name} that sees the whole canvas, on the task's scenes: what looking is measured against.

    The defaults below are the preset of --task, or what the run named by --like was trained with. The run is written to
    a folder: config, metrics (JSON lines and TensorBoard), last and best checkpoint, results. Ctrl-C saves; `--resume
    RUN` (alone, or with --data-root) goes on with a run that was stopped, to the same numbers. With --epochs it goes on
    longer, if its schedule is constant; `--like RUN --init RUN` trains on from its best weights.
    """

    config: FullImageConfig
    out: Path | None = None
    """Folder to write the run to; default: runs/NETWORK-TASK-SEED."""
    like: Path | None = None
    """Run folder, or pretrained:NAME, that the options default to instead of the task's preset."""
    init: Path | None = None
    """Run folder, or pretrained:NAME, whose best weights training begins with instead of random ones."""


def train_full_image(network: Network, arguments: list[str]) -> None:
    """Runs `train cnn` or `train mlp`.

    Raises:
        ValueError: several processes were started.
        SystemExit: 130 where training was interrupted.
    """
    refuse_several_processes(network)
    training = parse_training(
        network,
        arguments,
        TrainFullImage,
        partial(preset, network),
        presets=PRESETS[network],
        default_task=FullImageConfig.task,
        resume=ResumeEpochs,
        name=_NAMES[network],
    )
    with show_progress(training.title) as report:

        def on_progress(progress: Progress) -> None:
            text = format_training(progress.epoch, progress.epochs, progress.images_per_second, progress.last_metrics)
            report(progress.done, text, progress.seconds_left)

        result = train(
            training.config,
            training.folder,
            resume=training.is_resumed,
            init=training.init,
            on_progress=on_progress,
        )
    close_training(training, result)
