"""`python -m agents compare`: trained and scripted policies on the same scenes."""

from __future__ import annotations

import json as json_text
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ram_gym import ComparisonTable, Evaluation, GlimpseVectorEnv, Policy, evaluate, get_task, write_report
from ram_gym.files import write_file

from .. import PROGRAM
from ..registry import TrainedRun, load_run
from ..scripted import SCRIPTED_LOCATORS, ScriptedPolicy
from ..terminal import show_table
from ..training.config import TrainConfig
from ..training.environment import describe_environment, make_env
from ..training.pretrained import find_run
from ..training.progress import show_progress

BORROWED = "*"
Split = Literal["test", "validation"]
ProtocolName = Literal["single", "average-10"]


def compare_policies(
    policies: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="POLICY")],
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    reference: str | None = None,
    protocol: ProtocolName = "single",
    split: Split = "test",
    data_root: str | None = None,
    device: str = "cpu",
    other_data: bool = False,
    json: bool = False,
    report: Path | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Compare policies on the same scenes, with differences to the first policy or to --reference.

    random, centre, scan and oracle are scripted policies: they look at random locations, at the canvas's centre, along
    a fixed path, or at the digit. The label comes from the network of the task's first run that takes glimpses, which
    was not trained on such glimpses. For a fair control, train a network on them by `python -m agents train ram
    --locator random`, and compare that run. Without a run, scripted policies guess.

    Args:
        policies: Run folders, pretrained:NAME, and any of random, centre, scan, oracle.
        task: Task to compare on; may be given several times; default: the task of the first run. Runs play their own
            task, scripted policies all tasks.
        reference: The policy that the others are compared with; default: the first of each task.
        protocol: One rollout a scene, or log-probabilities averaged over 10 rollouts from different first locations.
        split: The test split, or the validation split, on which checkpoints were chosen.
        data_root: Folder with the datasets; default: the one that the runs were trained with.
        device: PyTorch device, "cpu" or "cuda".
        other_data: Allow an environment or images other than those that a run learned from; tables say so.
        json: Print a JSON array and nothing else.
        report: Self-contained HTML file to write: tables, plots, and episodes side by side.
        markdown: Markdown file to write the tables to.
        csv: CSV file to write, with one line for each policy and task.
    """
    if not policies:
        raise ValueError(f"policies must name run folders or any of {', '.join(SCRIPTED_LOCATORS)}, got none")
    if reference is not None and reference not in policies:
        raise ValueError(f"--reference must be one of the policies, {', '.join(policies)}, got {reference!r}")
    if len(set(policies)) < len(policies):
        raise ValueError(f"policies must be given once, got {', '.join(policies)}")
    runs = {name: load_run(find_run(name), device, data_root) for name in policies if name not in SCRIPTED_LOCATORS}
    tasks = task or tuple(run.config.task for run in runs.values())[:1]
    if not tasks:
        raise ValueError("--task is missing: give a task or a run")
    _refuse_other_tasks(runs, tasks)
    # All checks come before the first episode.
    own_runs = {name: {key: run for key, run in runs.items() if run.config.task == name} for name in tasks}
    scripts = [name for name in policies if name not in runs]
    lenders = {name: _find_lender(name, own, scripts) for name, own in own_runs.items()}
    env_configs = {name: get_task(name).config.replace(data_root=data_root) for name in own_runs}
    env_configs |= {name: next(iter(own.values())).config.env_config for name, own in own_runs.items() if own}
    env_configs = {name: env_config.replace(split=split) for name, env_config in env_configs.items()}
    pairs = [(name, run, env_configs[run.config.task]) for name, run in runs.items()]
    other_data_runs = [name for name, run, env_config in pairs if run.is_other_data(env_config, other_data)]
    played: list[tuple[str, Evaluation]] = []
    for task_name, own in own_runs.items():
        lender = lenders[task_name]
        for name in policies:
            if name in runs and name not in own:
                continue
            env = make_env(env_configs[task_name], device)
            policy: Policy
            if name in own:
                policy = own[name].make_policy(env, None, name)
            elif lender is None:
                policy = ScriptedPolicy(name, env)
            else:
                policy = lender.make_policy(env, name, name + BORROWED)
            played.append((name, evaluate_with_progress(policy, env, task_name, protocol)))
    evaluations = [evaluation for _, evaluation in played]
    base = next((evaluation.policy for name, evaluation in played if name == reference), None)
    is_borrowed = any(evaluation.policy.endswith(BORROWED) for evaluation in evaluations)
    note = f"{BORROWED} locations as named; labels by the first run's network, untrained on them"
    notes = [note] if is_borrowed else []
    notes += [f"other data than {', '.join(other_data_runs)} learned from"] if other_data_runs else []
    described = {name: describe_environment(name, env_configs[name]) for name in own_runs}
    table = ComparisonTable(evaluations, base, _short_labels(evaluations), "; ".join(notes), described)
    for path, text in ((markdown, table.to_markdown()), (csv, table.to_csv())):
        if path is not None:
            write_file(path, text)
    if report is not None:
        options = [("--task", name) for name in task]
        options += [("--protocol", protocol), ("--split", split), ("--device", device)]
        options += [("--reference", reference)] if reference else []
        options += [("--data-root", data_root)] if data_root else []
        words = [*PROGRAM.split(), "compare", *policies, *(word for option in options for word in option)]
        words += ["--other-data"] if other_data else []
        write_report(report, table, command=shlex.join(words))
    # After the files, so that they are complete even if the output goes to `head`.
    if json:
        rows = [row | ({"other_data": True} if row["policy"] in other_data_runs else {}) for row in table.rows()]
        print(json_text.dumps(rows, allow_nan=False))
    else:
        _show(table)


def evaluate_with_progress(policy: Policy, env: GlimpseVectorEnv, task: str, protocol: ProtocolName) -> Evaluation:
    """`ram_gym.evaluate` on the whole split, with a progress display."""
    start = time.monotonic()
    with show_progress(f"evaluating {policy.name}") as report:

        def on_batch(done: int) -> None:
            seconds = time.monotonic() - start
            report(done / env.num_images, f"{done:,} scenes", seconds / done * (env.num_images - done))

        return evaluate(policy, env, task=task, protocol=protocol, on_batch=on_batch)


def _refuse_other_tasks(runs: dict[str, TrainedRun], tasks: Sequence[str]) -> None:
    """Raises ValueError for a run of another task, or with another environment than the first run of its task."""
    first_configs: dict[str, TrainConfig] = {}
    for name, run in runs.items():
        expected = first_configs.setdefault(run.config.task, run.config)
        # Data folders may differ.
        ours, theirs = (config.env_config.replace(data_root=None) for config in (run.config, expected))
        if run.config.task not in tasks or ours != theirs:
            is_task = run.config.task in tasks
            expected_environment = describe_environment(run.config.task, theirs) if is_task else ", ".join(tasks)
            own = describe_environment(run.config.task, ours)
            raise ValueError(f"{name} is a run on {own}; the comparison is on {expected_environment}")


def _find_lender(task: str, own: dict[str, TrainedRun], scripts: Sequence[str]) -> TrainedRun | None:
    """The run on a task whose network answers for the scripted policies; None if the task has no run.

    Raises:
        ValueError: there are scripted policies, and all runs of the task see the whole canvas.
    """
    lender = next((run for run in own.values() if run.looks), None)
    if own and scripts and lender is None:
        raise ValueError(
            f"{', '.join(scripts)} need a network that takes glimpses, and {', '.join(own)} sees the whole canvas: "
            f"add a run of another agent on {task}"
        )
    return lender


def _short_labels(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Names of run folders without their path; empty if two would be the same."""
    names = dict.fromkeys(evaluation.policy for evaluation in evaluations)
    short = {name: Path(name).name or name for name in names}  # "." has no name
    return short if len(set(short.values())) == len(names) else {}


def _show(table: ComparisonTable) -> None:
    for number, section in enumerate(section for task in table.by_task for section in table.sections(task)):
        if number:
            print()
        show_table(section.title, section.headings, section.rows, section.note)
