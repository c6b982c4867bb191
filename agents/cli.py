"""Train agents on glimpse tasks, evaluate them, compare them on the same scenes, and watch them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import tyro

from ram_gym import get_task

from . import PACKAGE, PROGRAM
from .analysis.compare import compare_policies
from .analysis.evaluate import evaluate_run
from .analysis.figures import draw_figures
from .analysis.probe import probe_runs
from .analysis.summary import summarise
from .analysis.watch import watch
from .registry import AGENTS, RENAMED, get_agent
from .terminal import command_ending, say
from .training.config import TrainConfig, nearest_task
from .training.environment import describe_environment, find_data_root
from .training.learner import Progress
from .training.migrate import migrate
from .training.pretrained import find_run, publish
from .training.progress import format_training, show_progress
from .training.ranks import join_ranks
from .training.run_folder import RunFolder
from .training.seeds import train_seeds

Config = TypeVar("Config", bound=TrainConfig)

_DESCRIPTION = """Train {title}.

The defaults below are the preset of --task, or the options of the run named by --like. The run is written to a folder:
config, metrics (JSON lines and TensorBoard), last and best checkpoint, results. Ctrl-C saves a checkpoint. `--resume
RUN` resumes a stopped run bit-exactly; it can be combined with --data-root, and with --epochs to train longer if the
schedules are constant. `--like RUN --init RUN` begins a new run with the best weights of another.

--seeds 0-2 --out DIR trains DIR/seed-0, DIR/seed-1 and DIR/seed-2, with --jobs 2 two at a time."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(Generic[Config]):
    """Options that begin a run."""

    config: Config
    out: Path | None = None
    """Folder to write the run to; default: runs/AGENT-TASK-SEED."""
    like: Path | None = None
    """Run folder or pretrained:NAME whose options are the defaults, instead of the task's preset."""
    init: Path | None = None
    """Run folder or pretrained:NAME whose best weights are the initial ones, instead of random weights."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Resume a stopped run, with the training config that it began with. It resumes bit-exactly."""

    resume: Path
    """Folder of the run."""
    data_root: str | None = None
    """Folder with the datasets; default: the one that the run was begun with."""
    epochs: int | None = None
    """Number of epochs of the whole run, to train longer than planned. Only for a run with constant schedules."""


class Training(NamedTuple):
    """What `train` has to do: begin or resume a run."""

    config: TrainConfig
    folder: RunFolder
    is_resumed: bool
    init: RunFolder | None
    """The run whose best weights are the initial ones."""


def train(name: str, arguments: list[str]) -> None:
    """`python -m agents train NAME ARGUMENTS`.

    Raises:
        ValueError: there is no agent of that name, or torchrun started several processes and the agent trains in one.
        RunError: see `parse_training`, and `agents.training.loop.run_training`.
        SystemExit: 2 for wrong arguments, 130 where training was interrupted.
    """
    agent = get_agent(name)
    if train_seeds(name, arguments):
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not agent.CONFIG.shares_batches:
        raise ValueError(f"train {name} runs in one process: start it without torchrun")
    config, folder, is_resumed, init = parse_training(name, arguments)
    described = describe_environment(config.task, config.env_config)
    title = f"{'Resuming' if is_resumed else 'Training'} {name} on {described}: {folder.path}"
    with join_ranks(config.device) as ranks, ExitStack() as stack:
        show = stack.enter_context(show_progress(title)) if ranks.rank == 0 else None

        def on_progress(progress: Progress) -> None:
            if show is not None:
                show(progress.done, format_training(progress), progress.seconds_left)

        result = agent.train(config, folder, resume=is_resumed, init=init, on_progress=on_progress, ranks=ranks)
    if ranks.rank == 0 and result.is_complete:
        error = f"validation error {result.validation_error_percent:.2f}% at epoch {result.best_epoch}"
        say(f"Done: {error}. Next: {PROGRAM} evaluate {folder.path}")
    elif ranks.rank == 0:
        say(f"Interrupted and saved. To resume: {PROGRAM} train {name} --resume {folder.path}")
    if not result.is_complete:
        raise SystemExit(130)


def parse_training(name: str, arguments: list[str]) -> Training:
    """Parses the arguments of `train NAME`.

    With both --like and --task, the environment config is the task's and all other defaults are the run's.

    Raises:
        SystemExit: 2 for wrong arguments, 0 after --help.
        RunError: --resume or --like does not name a run of this agent.
        ValueError: both --resume and --like are given.
    """
    agent, prog = get_agent(name), f"{PROGRAM} train {name}"
    command = [*_launcher(), "-m", PACKAGE, "train", name, *arguments]
    given_options = {argument.partition("=")[0] for argument in arguments}
    if {"--resume", "--like"} <= given_options:
        raise ValueError("--resume resumes a run and --like begins a new one: give one of them")
    if "--resume" in given_options:
        resume = tyro.cli(ResumeOptions, args=arguments, prog=prog)
        folder = RunFolder(resume.resume, command)
        config = folder.read_as(agent.CONFIG, name)
        config = config.moved(None, find_data_root(config.env_config, resume.data_root))
        if resume.epochs is not None:
            config = _lengthen(config, resume.epochs, f"{prog} --like {folder.path} --init {folder.path}")
        return Training(config, folder, True, None)

    # --like, or else --task, sets the defaults of the other options, so it is parsed first.
    finder = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    finder.add_argument("--task", default=agent.CONFIG.task)
    finder.add_argument("--like")
    first, _ = finder.parse_known_args(arguments)
    if first.like is None:
        defaults = agent.preset(first.task, name)
        nearest = nearest_task(first.task, agent.PRESETS[name])
        if nearest != first.task and os.environ.get("RANK", "0") == "0":
            say(f"{first.task} has no preset for {name}: using that of {nearest}")
    else:
        defaults = find_run(first.like).read_as(agent.CONFIG, name)
        env_config = get_task(first.task).config if "--task" in given_options else defaults.env_config
        # The run may come from another machine, where the data folder is another one.
        defaults = dataclasses.replace(defaults, env_config=env_config.replace(data_root=None))
    options = tyro.cli(
        TrainOptions[agent.CONFIG],  # type: ignore[name-defined]
        args=arguments,
        default=TrainOptions(defaults),
        prog=prog,
        description=_DESCRIPTION.replace("{title}", AGENTS[name].title),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    path = options.out or Path("runs") / f"{name}-{options.config.task}-{options.config.seed}"
    init = None if options.init is None else find_run(options.init)
    return Training(options.config, RunFolder(path, command), False, init)


def _lengthen(config: TrainConfig, epochs: int, instead: str) -> TrainConfig:
    """The training config with another number of epochs.

    Raises:
        ValueError: a schedule depends on the total number of epochs; the message recommends `instead`.
    """
    planned = config.planned_fields()
    if not planned:
        return dataclasses.replace(config, epochs=epochs)  # type: ignore[call-arg]
    if epochs != config.epochs:
        fields = f"{', '.join(planned)} {'was' if len(planned) == 1 else 'were'} planned for {config.epochs} epochs"
        raise ValueError(f"--epochs: the run cannot train longer, since its {fields}. Begin a new run: {instead}")
    return config


def _launcher() -> list[str]:
    """The command that started this process: python, or torchrun without the addresses of other machines."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    return ["python"] if ranks == "1" else ["torchrun", f"--nproc-per-node={ranks}"]


def publish_run(run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")], name: str) -> None:
    """Copy a run's training config, best weights and results to pretrained/, for use as pretrained:NAME.

    Args:
        run: The run's folder.
        name: NAME of the copy.
    """
    print(publish(find_run(run), name))


def _train() -> None:
    """Train an agent; `train --help` lists them."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": _train,
    "evaluate": evaluate_run,
    "compare": compare_policies,
    "watch": watch,
    "probe": probe_runs,
    "summary": summarise,
    "figures": draw_figures,
    "publish": publish_run,
    "migrate": migrate,
}


def main(arguments: list[str]) -> None:
    """Runs one command.

    Raises:
        SystemExit: 2 for wrong arguments and other errors, 130 after an interrupt, 141 if the output is a closed pipe.
    """
    with command_ending():
        match arguments:
            case ["train", name, *options] if name in AGENTS or name in RENAMED:
                train(name, options)
            case ["train", *options]:
                _choose(_list_agents(), f"{PROGRAM} train", "Train an agent.", options)
            case _:
                _choose(COMMANDS, PROGRAM, __doc__ or "", arguments)


def _choose(commands: dict[str, Any], prog: str, description: str, arguments: list[str]) -> None:
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=arguments)


def _list_agents() -> dict[str, Callable[[], None]]:
    """A command for each agent, for `train --help`."""

    def describe(title: str) -> Callable[[], None]:
        def command() -> None:
            pass

        command.__doc__ = f"Train {title}."
        return command

    return {name: describe(agent.title) for name, agent in AGENTS.items()}
