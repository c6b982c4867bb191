"""The commands `python -m agents train ppo-lstm` and `train ppo`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from agents.progress import show_progress
from agents.runs import RunFolder
from agents.sb3.config import Algorithm, Sb3Config, preset
from agents.sb3.playing import read_config
from agents.sb3.training import train

_NAMES = {"ppo-lstm": "RecurrentPPO", "ppo": "PPO"}


@dataclasses.dataclass(frozen=True)
class TrainSb3:
    """Train Stable-Baselines3's {algorithm} by reinforcement learning.

    The defaults below are the preset of --task. The run is written to a folder: config, metrics (JSON lines, CSV and
    TensorBoard), last and best model (Stable-Baselines3's zip), results. `--resume RUN` (alone, or with --data-root)
    goes on with a run that was stopped, from its last complete epoch, to the same numbers.
    """

    config: Sb3Config
    out: Path | None = None
    """Folder to write the run to; default: runs/ALGORITHM-TASK-SEED."""
    verbose: bool = False
    """Print Stable-Baselines3's tables to standard output."""
    progress_bar: bool = False
    """Show Stable-Baselines3's own progress bar."""


@dataclasses.dataclass(frozen=True)
class ResumeSb3:
    """Go on with a run that was stopped, with the configuration it was begun with, to the same numbers."""

    resume: Path
    """Folder of the run."""
    data_root: str | None = None
    """Folder with the datasets, if it is not where the run was begun."""
    verbose: bool = False
    """Print Stable-Baselines3's tables to standard output."""
    progress_bar: bool = False
    """Show Stable-Baselines3's own progress bar."""


def train_sb3(algorithm: Algorithm, arguments: list[str]) -> None:
    """Runs `train ppo-lstm` or `train ppo`.

    Raises:
        SystemExit: 130 where training was interrupted.
    """
    prog = f"python -m agents train {algorithm}"
    is_resumed = any(argument.partition("=")[0] == "--resume" for argument in arguments)
    options: Any
    if is_resumed:
        options = tyro.cli(ResumeSb3, args=arguments, prog=prog)
        folder = RunFolder(options.resume)
        folder.read_config(algorithm)
        config = read_config(folder)
        config = dataclasses.replace(config, data_root=options.data_root or config.data_root)
    else:
        options = _parse_with_preset(algorithm, arguments, prog)
        config = options.config
        path = options.out or Path("runs") / f"{algorithm}-{config.task}-{config.seed}"
        folder = RunFolder(path, ["python", "-m", "agents", "train", algorithm, *arguments])
    title = f"{'Going on with' if is_resumed else 'Training'} {_NAMES[algorithm]} on {config.task}: {folder.path}"
    with nullcontext(None) if options.progress_bar else show_progress(title) as report:
        result = train(
            config,
            folder,
            resume=is_resumed,
            report=report,
            verbose=options.verbose,
            progress_bar=options.progress_bar,
        )
    if not result.is_complete:
        _say(f"Interrupted. To go on from the last complete epoch: {prog} --resume {folder.path}")
        raise SystemExit(130)
    error = f"validation error {result.validation_error_percent:.2f}% at epoch {result.best_epoch}"
    _say(f"Done: {error}. Next: python -m agents evaluate {folder.path}")


def _parse_with_preset(algorithm: Algorithm, arguments: list[str], prog: str) -> TrainSb3:
    """The options; --task decides what the others default to, wherever it stands."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--task", default=Sb3Config.task)
    task = finder.parse_known_args(arguments)[0].task
    return tyro.cli(
        TrainSb3,
        args=arguments,
        default=TrainSb3(preset(algorithm, task)),
        prog=prog,
        description=inspect.cleandoc(TrainSb3.__doc__ or "").replace("{algorithm}", _NAMES[algorithm]),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
