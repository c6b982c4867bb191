"""`python -m agents evaluate`: a run's error on fixed scenes."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import tyro

from ..registry import load_run
from ..terminal import say
from ..training.environment import describe_environment, make_env
from ..training.pretrained import PRETRAINED, find_run
from .compare import ProtocolName, Split, evaluate_with_progress


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
        other_data: Allow an environment or images other than those that the run learned from; the result says so.
        json: Print a JSON object and nothing else.
    """
    trained = load_run(run, device, data_root)
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
