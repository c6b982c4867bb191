"""The commands `python -m agents train sb3-ppo-lstm` and `train sb3-ppo`."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ..training.command import Resume, close_training, parse_training, refuse_several_processes
from ..training.progress import show_progress
from .config import PRESETS, Algorithm, Sb3Config, preset
from .training import train

_NAMES = {"sb3-ppo-lstm": "RecurrentPPO", "sb3-ppo": "PPO"}


@dataclasses.dataclass(frozen=True)
class TrainSb3:
    """Train Stable-Baselines3's {name} by reinforcement learning.

    The defaults below are the preset of --task, or what the run named by --like was trained with. The run is written to
    a folder: config, metrics (JSON lines, CSV and TensorBoard), last and best model (Stable-Baselines3's zip), results.
    `--resume RUN` (alone, or with --data-root) goes on with a run that was stopped, from its last complete epoch, to
    the same numbers.
    """

    config: Sb3Config
    out: Path | None = None
    """Folder to write the run to; default: runs/ALGORITHM-TASK-SEED."""
    like: Path | None = None
    """Run folder, or pretrained:NAME, that the options default to instead of the task's preset."""
    verbose: bool = False
    """Print Stable-Baselines3's tables to standard output."""
    progress_bar: bool = False
    """Show Stable-Baselines3's own progress bar."""


@dataclasses.dataclass(frozen=True)
class ResumeSb3(Resume):
    """Go on with a run that was stopped, with the configuration it was begun with, to the same numbers."""

    verbose: bool = False
    """Print Stable-Baselines3's tables to standard output."""
    progress_bar: bool = False
    """Show Stable-Baselines3's own progress bar."""


def train_sb3(algorithm: Algorithm, arguments: list[str]) -> None:
    """Runs `train sb3-ppo-lstm` or `train sb3-ppo`.

    Raises:
        ValueError: several processes were started.
        SystemExit: 130 where training was interrupted.
    """
    refuse_several_processes(algorithm)
    training = parse_training(
        algorithm,
        arguments,
        TrainSb3,
        partial(preset, algorithm),
        presets=PRESETS,
        default_task=Sb3Config.task,
        resume=ResumeSb3,
        name=_NAMES[algorithm],
    )
    options = training.options
    with nullcontext(None) if options.progress_bar else show_progress(training.title) as report:
        result = train(
            training.config,
            training.folder,
            resume=training.is_resumed,
            report=report,
            verbose=options.verbose,
            progress_bar=options.progress_bar,
        )
    close_training(training, result, "Interrupted. To go on from the last complete epoch")
