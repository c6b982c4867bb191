"""Command: what every `python -m agents train AGENT` does with its arguments, before training and after it."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from ram_gym import get_task

from ..terminal import say
from .config import TrainConfig, nearest_task
from .environment import find_data_root
from .loop import TrainResult
from .pretrained import find_run
from .run_folder import RunFolder

_SEVERAL = "\n\nWith --seeds 0-2 --out DIR it trains DIR/seed-0, seed-1 and seed-2, with --jobs 2 two at a time."


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, with the configuration it was begun with, to the same numbers."""

    resume: Path
    """Folder of the run."""
    data_root: str | None = None
    """Folder with the datasets, if it is not where the run was begun."""


@dataclasses.dataclass(frozen=True)
class ResumeEpochs(Resume):
    """Go on with a run that was stopped, with the configuration it was begun with, to the same numbers."""

    epochs: int | None = None
    """Last epoch, to go on longer than the run was begun for. Only a run whose learning rate and everything else are
    constant can."""


class Training(NamedTuple):
    """A run that is to begin or to go on."""

    prog: str
    options: Any
    """Of the type that parsed the arguments, a `Resume` or what begins a run."""
    config: Any
    """A TrainConfig."""
    folder: RunFolder
    is_resumed: bool
    init: RunFolder | None
    """The run whose weights it begins with."""
    title: str
    """What to call it while it runs."""


def refuse_several_processes(agent: str) -> None:
    """Raises ValueError where torchrun started several processes, for an agent that trains in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"train {agent} runs in one process: start it without torchrun")


def parse_training(
    agent: str,
    arguments: list[str],
    begin: Callable[..., Any],
    preset: Callable[[str], TrainConfig],
    *,
    presets: Collection[str],
    default_task: str,
    resume: Callable[..., Any] = Resume,
    name: str | None = None,
) -> Training:
    """What the arguments ask for.

    Args:
        agent: name of the agent, after `train`.
        arguments: what follows it.
        begin: dataclass of the options of a new run, `config` the first, `out` and `like` among them; {name} in its
            docstring stands for the agent's.
        preset: gives a task's configuration, which the options not given are of, without --like. With --like and --task
            the environment is the task's and all else the run's.
        presets: the tasks that have settings of their own.
        default_task: the task where none is given.
        resume: dataclass of the options with --resume.
        name: what messages call the agent.

    Raises:
        SystemExit: 2 for wrong arguments, 0 after --help.
        RunError: --resume or --like names no run of this agent.
        ValueError: both are given.
    """
    prog, name = f"python -m agents train {agent}", name or agent
    given = {argument.partition("=")[0] for argument in arguments}
    is_resumed = "--resume" in given
    command = [*_launcher(), "-m", "agents", "train", agent, *arguments]

    def stored(folder: RunFolder) -> Any:
        return folder.read_as(type(preset(default_task)), agent)

    if {"--resume", "--like"} <= given:
        raise ValueError("--resume goes on with a run and --like begins another: give one of them")
    if is_resumed:
        options = tyro.cli(resume, args=arguments, prog=prog)
        folder = RunFolder(options.resume, command)
        config = stored(folder)
        config = config.moved(None, find_data_root(config.env_config, options.data_root))
        if getattr(options, "epochs", None) is not None:
            config = _lengthen(config, options.epochs, f"{prog} --like {folder.path} --init {folder.path}")
    else:
        # --like, or else --task, decides what the other options default to, wherever it stands.
        finder = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
        finder.add_argument("--task")
        finder.add_argument("--like")
        found = finder.parse_known_args(arguments)[0]
        if found.like is None:
            defaults = preset(task := found.task or default_task)
            if (nearest := nearest_task(task, presets)) != task and os.environ.get("RANK", "0") == "0":
                say(f"{task} has no settings of its own for {name}: it gets those of {nearest}")
        else:
            defaults = stored(find_run(found.like))
            env_config = get_task(found.task).config if found.task else defaults.env_config
            # The data folder was another machine's.
            defaults = dataclasses.replace(defaults, env_config=env_config.replace(data_root=None))
        options = tyro.cli(
            begin,
            args=arguments,
            default=begin(defaults),
            prog=prog,
            description=inspect.cleandoc(begin.__doc__ or "").replace("{name}", name) + _SEVERAL,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        config = options.config
        path = options.out or Path("runs") / f"{agent}-{config.task}-{config.seed}"
        folder = RunFolder(path, command)
    title = f"{'Going on with' if is_resumed else 'Training'} {name} on {config.task}: {folder.path}"
    init = getattr(options, "init", None)
    return Training(prog, options, config, folder, is_resumed, init and find_run(init), title)


def _lengthen(config: Any, epochs: int, instead: str) -> Any:
    """The configuration with another number of epochs.

    Raises:
        ValueError: what a run does in an epoch depends on how many there are; `instead` is what to do then.
    """
    planned = config.planned_fields()
    if planned and epochs != config.epochs:
        fields = f"{', '.join(planned)} {'was' if len(planned) == 1 else 'were'} planned for {config.epochs} epochs"
        raise ValueError(f"--epochs: the run cannot go on longer, since its {fields}. To train on: {instead}")
    return dataclasses.replace(config, epochs=epochs)


def close_training(training: Training, result: TrainResult, saved: str = "Interrupted and saved. To go on") -> None:
    """Says how it ended and what to do next.

    Raises:
        SystemExit: 130 where it was interrupted.
    """
    if not result.is_complete:
        say(f"{saved}: {training.prog} --resume {training.folder.path}")
        raise SystemExit(130)
    error = f"validation error {result.validation_error_percent:.2f}% at epoch {result.best_epoch}"
    say(f"Done: {error}. Next: python -m agents evaluate {training.folder.path}")


def _launcher() -> list[str]:
    """How this process was started, without the ports of a meeting of several machines."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    return ["python"] if ranks == "1" else ["torchrun", f"--nproc-per-node={ranks}"]
