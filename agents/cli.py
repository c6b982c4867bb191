"""Train agents on glimpse tasks, measure them, compare them on the same scenes, and watch them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from agents.loading import RunConfig, load_run
from agents.progress import format_training, show_progress
from agents.ram.config import RamConfig, preset
from agents.ram.rollout import make_env, read_ram_config
from agents.ram.trainer import Progress, train
from agents.ranks import join_ranks
from agents.runs import RunFolder
from agents.scripted import SCRIPTED_LOCATORS, ScriptedPolicy
from ram_gym import Comparison, Evaluation, GlimpseVectorEnv, Policy, evaluate, get_task, save_gif
from ram_gym import compare as compare_evaluations

BORROWED = "*"
Split = Literal["test", "validation"]
ProtocolName = Literal["single", "average-10"]


@dataclasses.dataclass(frozen=True)
class TrainRam:
    """Train a Recurrent Attention Model (Mnih et al. 2014) by REINFORCE.

    The defaults below are the preset of --task. The run is written to a folder: config, metrics (JSON lines and
    TensorBoard), last and best checkpoint, results. Ctrl-C saves; `--resume RUN` (alone, or with --data-root) goes on
    with a run that was stopped, to the same numbers.
    """

    config: RamConfig
    out: Path | None = None
    """Folder to write the run to; default: runs/ram-TASK-SEED."""


@dataclasses.dataclass(frozen=True)
class ResumeRam:
    """Go on with a run that was stopped, with the configuration it was begun with, to the same numbers."""

    resume: Path
    """Folder of the run."""
    data_root: str | None = None
    """Folder with the datasets, if it is not where the run was begun."""


def train_ram(arguments: list[str]) -> None:
    """Train a Recurrent Attention Model (Mnih et al. 2014) by REINFORCE."""
    is_resumed = any(argument.partition("=")[0] == "--resume" for argument in arguments)
    if is_resumed:
        again = tyro.cli(ResumeRam, args=arguments, prog="python -m agents train ram")
        folder = RunFolder(again.resume)
        config = read_ram_config(folder)
        config = dataclasses.replace(config, data_root=again.data_root or config.data_root)
    else:
        options = _parse_with_preset(arguments)
        config = options.config
        path = options.out or Path("runs") / f"ram-{config.task}-{config.seed}"
        folder = RunFolder(path, [*_launcher(), "-m", "agents", "train", "ram", *arguments])
    title = f"{'Going on with' if is_resumed else 'Training'} RAM on {config.task}: {folder.path}"
    with join_ranks(config.device) as ranks, ExitStack() as stack:
        report = stack.enter_context(show_progress(title)) if ranks.rank == 0 else None

        def on_progress(progress: Progress) -> None:
            text = format_training(progress.epoch, progress.epochs, progress.images_per_second, progress.last_metrics)
            if report is not None:
                report(progress.done, text, progress.seconds_left)

        result = train(config, folder, resume=is_resumed, on_progress=on_progress, ranks=ranks)
    if not result.is_complete:
        if ranks.rank == 0:
            _say(f"Interrupted and saved. To go on: python -m agents train ram --resume {folder.path}")
        raise SystemExit(130)
    if ranks.rank == 0:
        error = f"validation error {result.validation_error_percent:.2f}% at epoch {result.best_epoch}"
        _say(f"Done: {error}. Next: python -m agents evaluate {folder.path}")


def _launcher() -> list[str]:
    """How this process was started, without the ports of a meeting of several machines."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    return ["python"] if ranks == "1" else ["torchrun", f"--nproc-per-node={ranks}"]


def _parse_with_preset(arguments: list[str]) -> TrainRam:
    """The options of `train ram`; --task decides what the others default to, wherever it stands."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--task", default=RamConfig.task)
    task = finder.parse_known_args(arguments)[0].task
    return tyro.cli(
        TrainRam,
        args=arguments,
        default=TrainRam(preset(task)),
        prog="python -m agents train ram",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def evaluate_run(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    protocol: ProtocolName = "single",
    split: Split = "test",
    data_root: str | None = None,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Measure a trained run on fixed scenes, and add what was found to its results.json.

    Args:
        run: The run's folder.
        protocol: One rollout a scene, or log-probabilities averaged over 10 that begin at different places.
        split: The test split, or the one the best checkpoint was chosen on.
        data_root: Folder with the datasets, if it is not where the run was trained.
        device: PyTorch device, "cpu" or "cuda".
        json: Print a JSON object and nothing else.
    """
    trained = load_run(RunFolder(run), device, data_root)
    env = make_env(trained.config.environment().replace(split=split), device)
    policy = trained.make_policy(env, None, str(run))
    evaluation = _evaluate(policy, env, trained.config.task, protocol)
    found = {**evaluation.to_dict(), "epoch": trained.epoch}
    if json:
        _print_json(found)
    else:
        low, high = evaluation.interval_percent
        print(
            f"{evaluation.task}, {split} split, {protocol} protocol: error {evaluation.error_percent:.2f}% "
            f"({evaluation.errors} of {evaluation.episodes}), 95% interval {low:.2f} to {high:.2f}%"
        )
    try:
        RunFolder(run).add_result(f"{split} {protocol}", found)
    except (OSError, ValueError) as error:
        _say(f"not written to results.json: {error}")


def compare_policies(
    policies: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="POLICY")],
    task: str | None = None,
    protocol: ProtocolName = "single",
    split: Split = "test",
    data_root: str | None = None,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Compare policies on the very same scenes; differences are to the first one named.

    random, centre, scan and oracle look where their name says (oracle: at the digit) and leave the answer to the
    network of the first run named. That network was not trained for such looks: for a fair control train one,
    `python -m agents train ram --locator random`, and name its folder. Without a run they guess.

    Args:
        policies: Run folders, and any of random, centre, scan, oracle.
        task: Task to compare on; default: that of the first run.
        protocol: One rollout a scene, or log-probabilities averaged over 10 that begin at different places.
        split: The test split, or the one checkpoints were chosen on.
        data_root: Folder with the datasets, if it is not where the runs were trained.
        device: PyTorch device, "cpu" or "cuda".
        json: Print a JSON array and nothing else.
    """
    if not policies:
        raise ValueError(f"policies must name run folders or any of {', '.join(SCRIPTED_LOCATORS)}, got none")
    runs = {name: load_run(RunFolder(name), device, data_root) for name in policies if name not in SCRIPTED_LOCATORS}
    first = next(iter(runs.values()), None)
    if first is None and task is None:
        raise ValueError("--task must be given where no run folder is named")
    task_name = task or (first.config.task if first else "")
    setting = first.config.environment() if first else get_task(task_name).config.replace(data_root=data_root)
    for name, run in runs.items():
        # Where the files lie does not matter, only what they show.
        same = run.config.environment().replace(data_root=None) == setting.replace(data_root=None)
        if run.config.task != task_name or not same:
            there = first.config if first is not None and first.config.task == task_name else None
            raise ValueError(
                f"{name} is a run on {_describe(run.config)}; the comparison is on "
                f"{_describe(there) if there else task_name}"
            )
    evaluations: list[Evaluation] = []
    for name in policies:
        env = make_env(setting.replace(split=split), device)
        policy: Policy
        if name in runs:
            policy = runs[name].make_policy(env, None, name)
        elif first is None:
            policy = ScriptedPolicy(name, env)
        else:
            policy = first.make_policy(env, name, name + BORROWED)
        evaluations.append(_evaluate(policy, env, task_name, protocol))
    _show_comparison(evaluations, json)


def _show_comparison(evaluations: list[Evaluation], as_json: bool) -> None:
    reference = evaluations[0]
    rows, table = [], Table(title=f"{reference.task}, {reference.split} split, {reference.protocol} protocol")
    for heading in ("policy", "error % (95% interval)", "minus first, points", "p (McNemar)"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", overflow="fold")
    for evaluation in evaluations:
        row = evaluation.to_dict()
        cells = [Path(evaluation.policy).name, _with_interval("{:.2f}", evaluation)]
        if evaluation is not reference:
            difference = compare_evaluations(evaluation, reference)
            cells += [_with_interval("{:+.2f}", difference), f"{difference.p_value:.2g}"]
            row["difference_percent"] = difference.difference_percent
            row["difference_interval_percent"] = list(difference.interval_percent)
            row["p_value"] = difference.p_value
        table.add_row(*cells)
        rows.append(row)
    if as_json:
        _print_json(rows)
        return
    if any(evaluation.policy.endswith(BORROWED) for evaluation in evaluations):
        table.caption = f"{BORROWED} looks as named; the first run's network, not trained for such looks, answers"
    Console().print(table)


def _with_interval(form: str, value: Evaluation | Comparison) -> str:
    centre = value.error_percent if isinstance(value, Evaluation) else value.difference_percent
    low, high = value.interval_percent
    return f"{form.format(centre)} ({form.format(low)} to {form.format(high)})"


def watch(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    gif: Path,
    episodes: int = 6,
    first: int = 0,
    split: Split = "test",
    data_root: str | None = None,
    milliseconds: int = 450,
) -> None:
    """Draw a run's episodes as a GIF: the canvas, where it looks, what it sees, what it answers.

    Args:
        run: The run's folder.
        gif: File to write.
        episodes: How many scenes, one after the other.
        first: Index of the first one in the split.
        split: Which split's scenes.
        data_root: Folder with the datasets, if it is not where the run was trained.
        milliseconds: How long each look is shown.
    """
    trained = load_run(RunFolder(run), "cpu", data_root)
    env = make_env(trained.config.environment().replace(split=split), "cpu", max(episodes, 1))
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
    # The answer stays on the screen for two frames more.
    order = [frame[lane] for lane in range(episodes) for frame in (*frames, frames[-1], frames[-1]) if frame]
    gif.parent.mkdir(parents=True, exist_ok=True)
    save_gif(order, str(gif), milliseconds, milliseconds)
    print(f"{gif}: {episodes} episodes")


def train_ppo_lstm(arguments: list[str]) -> None:
    """Train Stable-Baselines3's RecurrentPPO, by reinforcement learning alone."""
    from agents.sb3.command import train_sb3

    train_sb3("ppo-lstm", arguments)


def train_ppo(arguments: list[str]) -> None:
    """Train Stable-Baselines3's PPO, the memoryless control of ppo-lstm."""
    from agents.sb3.command import train_sb3

    train_sb3("ppo", arguments)


def train_cnn(arguments: list[str]) -> None:
    """Train a convolutional network that sees the whole canvas."""
    from agents.full_image.command import train_full_image

    train_full_image("cnn", arguments)


def train_mlp(arguments: list[str]) -> None:
    """Train a fully connected network that sees the whole canvas."""
    from agents.full_image.command import train_full_image

    train_full_image("mlp", arguments)


TRAINERS = {"ram": train_ram, "ppo-lstm": train_ppo_lstm, "ppo": train_ppo, "cnn": train_cnn, "mlp": train_mlp}


def main(arguments: list[str]) -> None:
    """Runs one command.

    Raises:
        SystemExit: 2 for wrong arguments, 130 where training was interrupted.
    """
    try:
        if arguments[:1] == ["train"] and arguments[1:2] and arguments[1] in TRAINERS:
            TRAINERS[arguments[1]](arguments[2:])
        elif arguments[:1] == ["train"]:
            _choose(dict(TRAINERS), "python -m agents train", "Train an agent.", arguments[1:])
        else:
            commands = {"train": _train, "evaluate": evaluate_run, "compare": compare_policies, "watch": watch}
            _choose(commands, "python -m agents", __doc__ or "", arguments)
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say("Interrupted.")
        raise SystemExit(130) from None


def _choose(commands: dict[str, Any], prog: str, description: str, arguments: list[str]) -> None:
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=description, args=arguments)


def _train() -> None:
    """Train an agent; `train --help` lists them."""


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)


def _evaluate(policy: Policy, env: GlimpseVectorEnv, task: str, protocol: ProtocolName) -> Evaluation:
    start = time.monotonic()
    with show_progress(f"evaluating {policy.name}") as report:

        def on_batch(done: int) -> None:
            seconds = time.monotonic() - start
            report(done / env.num_images, f"{done:,} scenes", seconds / done * (env.num_images - done))

        return evaluate(policy, env, task=task, protocol=protocol, on_batch=on_batch)


def _describe(config: RunConfig) -> str:
    setting = config.environment()
    return f"{config.task} ({setting.composition}, {setting.num_glimpses} glimpses)"


def _print_json(value: Any) -> None:
    print(json.dumps(value))
