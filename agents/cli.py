"""Train agents on glimpse tasks, evaluate them, compare them on the same scenes, and watch them."""

from __future__ import annotations

import dataclasses
import json as json_text
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ram_gym import save_gif
from ram_gym.files import printable

from .analysis.compare import ProtocolName, Split, compare_policies, evaluate_with_progress
from .analysis.figures import draw_figures
from .analysis.probe import probe_runs
from .analysis.summary import summarise
from .ram.config import PRESETS, RamConfig, preset
from .ram.training import train
from .registry import RENAMED, load_run
from .terminal import command_ending, say
from .training.command import ResumeEpochs, close_training, parse_training
from .training.environment import describe_environment, make_env
from .training.loop import Progress
from .training.migrate import migrate
from .training.pretrained import PRETRAINED, find_run, publish
from .training.progress import format_training, show_progress
from .training.ranks import join_ranks
from .training.seeds import train_seeds


@dataclasses.dataclass(frozen=True)
class TrainRam:
    """Train a Recurrent Attention Model (Mnih et al. 2014) by REINFORCE.

    The defaults below are the preset of --task, or what the run named by --like was trained with. The run is written to
    a folder: config, metrics (JSON lines and TensorBoard), last and best checkpoint, results. Ctrl-C saves; `--resume
    RUN` (alone, or with --data-root) continues a stopped run; it resumes bit-exactly. With --epochs it goes on
    longer, if its schedules are constant; `--like RUN --init RUN` trains on from its best weights.
    """

    config: RamConfig
    out: Path | None = None
    """Folder to write the run to; default: runs/ram-TASK-SEED."""
    like: Path | None = None
    """Run folder, or pretrained:NAME, whose options are the defaults instead of the task's preset."""
    init: Path | None = None
    """Run folder, or pretrained:NAME, whose best weights training begins with instead of random ones."""


def train_ram(arguments: list[str]) -> None:
    """Train a Recurrent Attention Model (Mnih et al. 2014) by REINFORCE."""
    training = parse_training(
        "ram",
        arguments,
        TrainRam,
        preset,
        presets=PRESETS,
        default_task=RamConfig.task,
        resume=ResumeEpochs,
        name="RAM",
    )
    config = training.config
    with join_ranks(config.device) as ranks, ExitStack() as stack:
        report = stack.enter_context(show_progress(training.title)) if ranks.rank == 0 else None

        def on_progress(progress: Progress) -> None:
            text = format_training(progress.epoch, progress.epochs, progress.images_per_second, progress.last_metrics)
            if report is not None:
                report(progress.done, text, progress.seconds_left)

        result = train(
            config,
            training.folder,
            resume=training.is_resumed,
            init=training.init,
            on_progress=on_progress,
            ranks=ranks,
        )
    if ranks.rank == 0:
        close_training(training, result)
    elif not result.is_complete:
        raise SystemExit(130)


def evaluate_run(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    protocol: ProtocolName = "single",
    split: Split = "test",
    data_root: str | None = None,
    device: str = "cpu",
    other_data: bool = False,
    json: bool = False,
) -> None:
    """Evaluate a trained run on fixed scenes, and add the result to its results.json (not to a pretrained run's).

    Args:
        run: The run's folder, or pretrained:NAME.
        protocol: One rollout a scene, or log-probabilities averaged over 10 rollouts from different first locations.
        split: The test split, or the validation split, on which the best checkpoint was chosen.
        data_root: Folder with the datasets; default: the one that the run was trained with.
        device: PyTorch device, "cpu" or "cuda".
        other_data: Measure it though the environment or the images are not those that it learned from; what is printed
            and stored says so.
        json: Print a JSON object and nothing else.
    """
    trained = load_run(find_run(run), device, data_root)
    env_config = trained.config.env_config.replace(split=split)
    is_other = trained.is_other_data(env_config, other_data)
    env = make_env(env_config, device)
    policy = trained.make_policy(env, None, str(run))
    evaluation = evaluate_with_progress(policy, env, trained.config.task, protocol)
    result = {**evaluation.to_dict(), "epoch": trained.epoch} | ({"other_data": True} if is_other else {})
    if not str(run).startswith(PRETRAINED):
        try:
            find_run(run).add_result(f"{split} {protocol}{' other data' * is_other}", result)
        except (OSError, ValueError) as error:
            say(f"not written to results.json: {error}")
    if json:
        print(json_text.dumps(result))
        return
    low, high = evaluation.interval_percent
    print(
        f"{describe_environment(evaluation.task, env.config)}, {split} split, {protocol} protocol: "
        f"error {evaluation.error_percent:.2f}% ({evaluation.errors} of {evaluation.episodes}), "
        f"95% interval {low:.2f} to {high:.2f}%{', on other data than it learned from' * is_other}"
    )


def watch(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    gif: Path,
    episodes: int = 6,
    first: int = 0,
    split: Split = "test",
    data_root: str | None = None,
    other_data: bool = False,
    milliseconds: int = 450,
) -> None:
    """Draw a run's episodes as a GIF: canvas, locations, glimpses and answers.

    Args:
        run: The run's folder, or pretrained:NAME.
        gif: File to write.
        episodes: Number of scenes, shown one after the other.
        first: Index of the first scene in the split.
        split: Split of the scenes.
        data_root: Folder with the datasets; default: the one that the run was trained with.
        other_data: Play it though the environment or the images are not those that it learned from.
        milliseconds: Time that each glimpse is shown for.
    """
    trained = load_run(find_run(run), "cpu", data_root)
    env_config = trained.config.env_config.replace(split=split)
    is_other = trained.is_other_data(env_config, other_data)
    env = make_env(env_config, "cpu", max(episodes, 1))
    policy = trained.make_policy(env, None, str(run))
    if episodes < 1 or not 0 <= first <= env.num_images - episodes:
        raise ValueError(f"first must lie in 0 to {env.num_images} - episodes, got first {first}, episodes {episodes}")
    if not 20 <= milliseconds <= 60_000:
        raise ValueError(f"milliseconds must lie in 20 to 60000, got {milliseconds}")
    if gif.suffix.lower() != ".gif":
        raise ValueError(f"gif must be a file name that ends in .gif, got {gif}")
    env.render_mode = "rgb_array"
    with torch.inference_mode():
        observation, _ = env.reset(options={"index": torch.arange(first, first + episodes)})
        frames, state = [env.render()], None
        for _ in range(env.config.num_glimpses):
            action, state = policy.act(observation, state)
            action.pop("log_probabilities")
            observation, _, _, _, _ = env.step(action)
            frames.append(env.render())
    # The answer is shown for two more frames.
    order = [frame[lane] for lane in range(episodes) for frame in (*frames, frames[-1], frames[-1]) if frame]
    save_gif(order, gif, milliseconds, milliseconds)
    other = ", on other data than it learned from" * is_other
    print(printable(f"{gif}: {episodes} episode{'s' if episodes > 1 else ''}{other}"))


def publish_run(run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")], name: str) -> None:
    """Copy a run's configuration, best weights and results to pretrained/, for use as pretrained:NAME.

    Args:
        run: The run's folder.
        name: NAME of the copy.
    """
    print(publish(find_run(run), name))


def train_sb3_ppo_lstm(arguments: list[str]) -> None:
    """Train Stable-Baselines3's RecurrentPPO, on rewards alone."""
    from .sb3.command import train_sb3

    train_sb3("sb3-ppo-lstm", arguments)


def train_sb3_ppo(arguments: list[str]) -> None:
    """Train Stable-Baselines3's PPO, the memoryless control of sb3-ppo-lstm."""
    from .sb3.command import train_sb3

    train_sb3("sb3-ppo", arguments)


def train_cnn(arguments: list[str]) -> None:
    """Train a convolutional network that sees the whole canvas."""
    from .full_image.command import train_full_image

    train_full_image("cnn", arguments)


def train_mlp(arguments: list[str]) -> None:
    """Train a fully connected network that sees the whole canvas."""
    from .full_image.command import train_full_image

    train_full_image("mlp", arguments)


TRAINERS = {"ram": train_ram, "sb3-ppo-lstm": train_sb3_ppo_lstm, "sb3-ppo": train_sb3_ppo}
TRAINERS |= {"cnn": train_cnn, "mlp": train_mlp}


def main(arguments: list[str]) -> None:
    """Runs one command.

    Raises:
        SystemExit: 2 for wrong arguments and other errors, 130 after an interrupt, 141 if the output is a closed pipe.
    """
    with command_ending():
        if arguments[:1] == ["train"] and arguments[1:2] and arguments[1] in TRAINERS:
            if not train_seeds(arguments[1], arguments[2:]):
                TRAINERS[arguments[1]](arguments[2:])
        elif arguments[:1] == ["train"] and arguments[1:2] and arguments[1] in RENAMED:
            raise ValueError(
                f"Stable-Baselines3's {arguments[1]} is trained by: python -m agents train {RENAMED[arguments[1]]}"
            )
        elif arguments[:1] == ["train"]:
            _choose(dict(TRAINERS), "python -m agents train", "Train an agent.", arguments[1:])
        else:
            commands = {"train": _train, "evaluate": evaluate_run, "compare": compare_policies, "watch": watch}
            commands |= {"probe": probe_runs, "summary": summarise, "figures": draw_figures, "publish": publish_run}
            commands["migrate"] = migrate
            _choose(commands, "python -m agents", __doc__ or "", arguments)


def _choose(commands: dict[str, Any], prog: str, description: str, arguments: list[str]) -> None:
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=arguments)


def _train() -> None:
    """Train an agent; `train --help` lists them."""
