"""PPO with and without recurrence: what they learn from, what they write, and how they are taken up again.

Longer than other files here: both algorithms go through the same few helpers.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from agents.cli import main
from agents.sb3 import network as policies
from agents.sb3.checkpoint import load_checkpoint
from agents.sb3.config import PRESETS, Sb3Config, preset
from agents.sb3.policy import Sb3Policy, make_env, make_model
from agents.sb3.training import RunCallback, train
from agents.training.learner import Progress
from agents.training.run_folder import RunError, RunFolder
from ram_gym import GlimpseVectorEnv, get_task, wrappers

HYPERPARAMS = Path(policies.__file__).parent / "hyperparams"
SMALL: dict[str, Any] = {"task": "digits", "n_envs": 8, "hidden_size": 16, "glimpse_hidden_size": 8}
SHORT: dict[str, Any] = {**SMALL, "total_timesteps": 4 * 96, "evaluate_every": 96}
ALGORITHMS = ["sb3-ppo-lstm", "sb3-ppo"]
FILES = {"sb3-ppo-lstm": "ppo_lstm.yml", "sb3-ppo": "ppo.yml"}


def small_model(algorithm: str = "sb3-ppo-lstm", **options: Any) -> Any:
    config = Sb3Config(algorithm=algorithm, **{**SMALL, **options})  # type: ignore[arg-type]
    return make_model(config, make_env(config, config.env_config, config.n_envs, shaped=True))


def observations(count: int, progress: list[float]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "glimpse": torch.rand(count, 1, 8, 8, generator=generator),
        "location": torch.rand(count, 2, generator=generator) * 2 - 1,
        "progress": torch.tensor(progress)[:, None],
    }


def network_outputs(policy: Any, seen: dict[str, torch.Tensor]) -> torch.Tensor:
    """Inputs of the action distribution after one step from an empty memory, layer by layer."""
    encoder = policy.features_extractor
    what = torch.relu(encoder.what(seen["glimpse"].reshape(len(seen["glimpse"]), -1)))
    where = torch.relu(encoder.where(torch.cat((seen["location"], seen["progress"]), dim=1)))
    hidden = torch.relu(encoder.combine(torch.cat((what, where), dim=1)))
    if isinstance(policy, policies.GlimpseLstmPolicy):
        hidden = policy.lstm_actor(hidden[None])[0][0]
    return policy.action_net(policy.mlp_extractor.policy_net(hidden))


def evaluate_actions(policy: Any, seen: dict[str, torch.Tensor], actions: torch.Tensor) -> Any:
    if not isinstance(policy, policies.GlimpseLstmPolicy):
        return policy.evaluate_actions(seen, actions)
    zeros = (torch.zeros(1, len(actions), 16),) * 2
    return policy.evaluate_actions(seen, actions, RNNStates(zeros, zeros), torch.ones(len(actions)))


@pytest.mark.parametrize("shaping", ["none", "every-answer"])
@pytest.mark.parametrize("action", ["multi-discrete", "box"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_log_probability_is_that_of_what_is_read(algorithm: str, action: str, shaping: str) -> None:
    policy = small_model(algorithm, action=action, shaping=shaping).policy
    seen = observations(4, [1 / 6, 5 / 6, 1.0, 1.0])
    outputs = network_outputs(policy, seen)
    if action == "box":
        actions = torch.linspace(-1, 1, 4 * 12).reshape(4, 12)
        std = policy.log_std.exp()
        each = -0.5 * ((actions - outputs) / std) ** 2 - std.log() - 0.5 * np.log(2 * np.pi)
        entropies = (0.5 * np.log(2 * np.pi * np.e) + std.log()).expand(4, 12)
        parts = [(values[:, :2].sum(1), values[:, 2:].sum(1)) for values in (each, entropies)]
    else:
        actions = torch.tensor([[0.0, 6.0, 3.0], [1.0, 2.0, 9.0], [3.0, 3.0, 0.0], [5.0, 1.0, 7.0]])
        logs = [block.log_softmax(1) for block in outputs.split([7, 7, 10], dim=1)]
        chosen = [log[torch.arange(4), actions[:, number].long()] for number, log in enumerate(logs)]
        spread = [-(log.exp() * log).sum(1) for log in logs]
        parts = [(values[0] + values[1], values[2]) for values in (chosen, spread)]
    _, found, entropy = evaluate_actions(policy, seen, actions)
    for values, (location, label) in zip((found, entropy), parts, strict=True):
        early = location + label if shaping == "every-answer" else location
        torch.testing.assert_close(values, torch.cat((early[:2], label[2:])))


@pytest.mark.parametrize("action", ["multi-discrete", "box"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_auxiliary_loss_adds_its_gradient_and_nothing_else(algorithm: str, action: str) -> None:
    policy = small_model(algorithm, action=action, auxiliary_weight=0.7).policy
    seen = observations(4, [1.0, 0.5, 1.0, 1.0])
    actions = torch.zeros(4, 12 if action == "box" else 3)
    labels = torch.tensor([[4.0], [0.0], [10.0], [1.0]])  # 3, none, 9, 0
    with pytest.raises(ValueError, match="LabelledPPO"):
        evaluate_actions(policy, seen, actions)
    policy.auxiliary_weight = 0.0
    _, plain, entropy = evaluate_actions(policy, seen, actions)
    policy.auxiliary_weight = 0.7
    _, found, same_entropy = evaluate_actions(policy, {**seen, policies.LABEL: labels}, actions)
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    torch.testing.assert_close(entropy, same_entropy, rtol=0, atol=0)
    weights = list(
        policy.lstm_actor.parameters() if algorithm == "sb3-ppo-lstm" else policy.mlp_extractor.policy_net.parameters()
    )
    ours = torch.autograd.grad(found.sum(), weights)
    outputs = network_outputs(policy, seen)
    logits = outputs[:, 2:] / policy.log_std.exp()[2:] if action == "box" else outputs[:, 14:]
    answered = functional.cross_entropy(logits[[0, 2, 3]], torch.tensor([3, 9, 0]))
    policy.auxiliary_weight = 0.0
    _, again, _ = evaluate_actions(policy, seen, actions)
    theirs = torch.autograd.grad(again.sum() + 0.7 * answered, weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("action", ["multi-discrete", "box"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_locations_train_the_network_below_only_if_asked(algorithm: str, action: str) -> None:
    """The same distribution either way; what differs is which weights looks and answers have gradients for."""
    actions = torch.zeros(1, 12 if action == "box" else 3)
    found = {}
    for location_gradient in (True, False):
        policy = small_model(algorithm, action=action, location_gradient=location_gradient).policy
        for progress in (0.5, 1.0):
            policy.zero_grad()
            _, value, _ = evaluate_actions(policy, observations(1, [progress]), actions)
            value.sum().backward()
            below = policy.features_extractor.what.weight.grad
            found[location_gradient, progress] = value.item(), below is not None and bool(below.any())
            assert policy.action_net.weight.grad.any()
    assert [reached for _, reached in found.values()] == [True, True, False, True]
    assert found[True, 0.5][0] == found[False, 0.5][0]
    assert found[True, 1.0][0] == found[False, 1.0][0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rollouts_know_the_labels_of_ended_episodes(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(algorithm, auxiliary_weight=1.0, episodes_per_rollout=2, n_epochs=1)
    ended, trained = [], []
    step = model.env.step_wait

    def step_wait() -> Any:
        result = step()
        ended.append([1 + info["label"] if info else 0 for info in result[3]])
        return result

    evaluate = model.policy.evaluate_actions

    def evaluate_actions(obs: dict[str, torch.Tensor], *arguments: Any) -> Any:
        trained.append(obs)
        return evaluate(obs, *arguments)

    monkeypatch.setattr(model.env, "step_wait", step_wait)
    monkeypatch.setattr(model.policy, "evaluate_actions", evaluate_actions)
    model.learn(2 * 12 * 8)
    assert len(ended) == 24
    assert policies.LABEL not in model.env.reset()
    # Learning shuffles; the labels still stand beside the observations from which the answers were given.
    for batches, steps in ((trained[:2], ended[:12]), (trained[2:], ended[12:])):
        labels = torch.cat([batch[policies.LABEL].flatten() for batch in batches])
        progress = torch.cat([batch["progress"].flatten() for batch in batches])
        assert sorted(labels[labels > 0].tolist()) == sorted(label for row in steps for label in row if label)
        assert (progress[labels > 0] == 1).all()


def test_lstm_sequences_in_one_call_equal_step_by_step() -> None:
    lstm = torch.nn.LSTM(5, 7)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(12, 5, generator=generator)
    state = (torch.randn(1, 3, 7, generator=generator), torch.randn(1, 3, 7, generator=generator))
    for starts in ([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]]):
        flat = torch.tensor(starts, dtype=torch.float32).flatten()
        ours = policies.GlimpseLstmPolicy._process_sequence(features, state, flat, lstm)
        theirs = RecurrentActorCriticPolicy._process_sequence(features, state, flat, lstm)
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("action", ["multi-discrete", "box"])
def test_shaping_pays_for_early_right_labels_in_training_alone(action: str) -> None:
    config = Sb3Config(**{**SMALL, "action": action, "shaping": "every-answer", "shaping_weight": 0.25})
    shaped, plain = (make_env(config, config.env_config, 8, shaped=shaped) for shaped in (True, False))
    for env in (shaped, plain):
        env.seed(3)
        env.reset()
    labels = np.array(plain.get_attr("label"))
    total = np.zeros(8)
    for step in range(6):
        actions: Any = np.zeros((8, 3), np.int64)
        actions[:, 2] = np.where(np.arange(8) < step, labels, (labels + 1) % 10)
        if action == "box":
            actions = np.concatenate((np.zeros((8, 2)), np.eye(10)[actions[:, 2]]), axis=1).astype(np.float32)
        reward, expected = shaped.step(actions)[1], plain.step(actions)[1]
        np.testing.assert_allclose(reward - expected, 0.25 * (np.arange(8) < step) * (step < 5))
        assert reward.dtype == np.float32
        total += expected
    np.testing.assert_array_equal(total, np.arange(8) < 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_box_actions_are_measured_as_they_are_trained_and_validated(algorithm: str) -> None:
    """Stable-Baselines3 clips scores to [-1, 1], so that the first of several above 1 is the answer."""
    model = small_model(algorithm, action="box")
    with torch.no_grad():
        model.policy.action_net.bias[2 + 3] = 5.0
        model.policy.action_net.bias[2 + 7] = 9.0
    actions, _ = model.predict(model.env.reset(), deterministic=True)
    config = Sb3Config(**{**SMALL, "action": "box"}, algorithm=algorithm)  # type: ignore[arg-type]
    setting = config.env_config.replace(split="validation")
    env = GlimpseVectorEnv(8, setting, output="torch", autoreset_mode="Disabled")
    played, _ = Sb3Policy(model.policy, env, config).act(env.reset()[0], None)
    assert played["label"].tolist() == actions[:, 2:].argmax(1).tolist() == [3] * 8


@pytest.mark.parametrize(
    ("field", "value"),
    [("algorithm", "dqn"), ("action", "boxx"), ("shaping", "early"), ("minibatches", 48)],
)
def test_fields_that_do_not_fit_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        Sb3Config(**{**SMALL, field: value})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hyperparameter_files_are_the_presets(algorithm: str) -> None:
    held = yaml.safe_load((HYPERPARAMS / FILES[algorithm]).read_text())
    expected = {get_task(task).env_id: preset(task, algorithm).hyperparameters() for task in PRESETS[algorithm]}
    assert held == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hyperparameter_files_train_with_their_own_algorithms(algorithm: str) -> None:
    """Reads them as RL Zoo does: wrappers and policy by name, schedules as text, many single environments."""
    options = yaml.safe_load((HYPERPARAMS / FILES[algorithm]).read_text())["RamGym/Digits-v0"]

    def wrap(env: Any) -> Any:
        for entry in options["env_wrapper"]:
            name, arguments = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
            env = getattr(wrappers, name.removeprefix("ram_gym.wrappers."))(env, **arguments)
        return env

    env = make_vec_env("RamGym/Digits-v0", 2, wrapper_class=wrap)
    policy = getattr(policies, options["policy"].removeprefix("agents.sb3.network."))
    known = {key: options[key] for key in ("n_steps", "n_epochs", "gamma", "gae_lambda", "ent_coef", "policy_kwargs")}
    rate = float(options["learning_rate"].removeprefix("lin_"))
    make = RecurrentPPO if algorithm == "sb3-ppo-lstm" else PPO
    model = make(policy, env, batch_size=12, learning_rate=lambda left: rate * left, seed=0, **known)
    before = model.policy.action_net.weight.detach().clone()
    model.learn(24)
    assert (model.policy.action_net.weight != before).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(algorithm: str, tmp_path: Path) -> None:
    config = Sb3Config(algorithm=algorithm, auxiliary_weight=1.0, **SHORT)  # type: ignore[arg-type]
    assert config.epochs == 4
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    train(config, whole)

    def cut(progress: Progress) -> None:
        if progress.done > 0.6:
            raise MemoryError("as if killed")

    class EachStep(RunCallback):
        def _on_step(self) -> bool:
            self._reported = -1.0
            return super()._on_step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.sb3.training.RunCallback", EachStep)
        with pytest.raises(MemoryError):
            train(config, broken, on_progress=cut)
    assert len(broken.read_metrics()) == 2
    result = train(config, broken, resume=True)
    assert result.is_complete
    rows = [
        [{k: v for k, v in row.items() if k != "train_seconds"} for row in f.read_metrics()] for f in (whole, broken)
    ]
    assert rows[0] == rows[1]
    assert [row["steps"] for row in rows[0]] == [96, 192, 288, 384]
    for name in ("best_model.zip", "last_model.zip"):
        models = [small_model(algorithm) for _ in range(2)]
        for model, folder in zip(models, (whole, broken), strict=True):
            load_checkpoint(folder, name, model.policy, model.policy.optimizer)
        weights, others = (model.policy.state_dict() for model in models)
        assert all(torch.equal(weights[key], others[key]) for key in weights)
        moments, others = (model.policy.optimizer.state_dict()["state"] for model in models)
        assert all(torch.equal(moments[n][key], others[n][key]) for n in moments for key in moments[n])
    results = [folder.read_json("results.json")["validation"] for folder in (whole, broken)]
    assert {k: v for k, v in results[0].items() if k != "train_seconds"} == {
        k: v for k, v in results[1].items() if k != "train_seconds"
    }
    with pytest.raises(RunError, match="already holds a run"):
        train(config, whole)


def test_a_checkpoint_that_does_not_fit_is_not_gone_on_with(tmp_path: Path) -> None:
    config = Sb3Config(**{**SHORT, "total_timesteps": 48, "n_epochs": 1})
    folder = RunFolder(tmp_path / "run")
    train(config, folder)
    with pytest.raises(RunError, match=r"run/last_model.zip does not fit its config.json"):
        train(dataclasses.replace(config, hidden_size=17), folder, resume=True)


@pytest.mark.parametrize("action", ["multi-discrete", "box"])
def test_divergence_is_named(action: str) -> None:
    config = Sb3Config(**{**SHORT, "action": action, "learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(RunError, match=r"^training diverged in epoch 1: an output is NaN or infinite; lower"):
        train(config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each algorithm, by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    for algorithm in ALGORITHMS:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in SHORT.items()]
        main(["train", algorithm, *options, "--out", str(folder / algorithm)])
    return {algorithm: folder / algorithm for algorithm in ALGORITHMS}


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    main(list(arguments))
    return capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_runs_are_evaluated_compared_and_watched(runs: dict[str, Path], algorithm: str, capsys: Any) -> None:
    run = str(runs[algorithm])
    validation = RunFolder(run).read_json("results.json")["validation"]
    found = json.loads(output(capsys, "evaluate", run, "--split", "validation", "--json"))
    assert found["errors"] == round(validation["error_percent"] * found["episodes"] / 100)
    assert found["epoch"] == validation["epoch"]
    average = json.loads(output(capsys, "evaluate", run, "--protocol", "average-10", "--json"))
    assert average["episodes"] == 358
    rows = json.loads(output(capsys, "compare", run, "random", "scan", "--json"))
    assert [row["policy"] for row in rows] == [run, "random*", "scan*"]
    output(capsys, "watch", run, "--gif", f"{run}/a.gif", "--episodes", "2")
    with Image.open(f"{run}/a.gif") as image:
        assert image.n_frames > 2 * 6


def test_runs_of_both_are_compared(runs: dict[str, Path], capsys: Any) -> None:
    rows = json.loads(output(capsys, "compare", *map(str, runs.values()), "--json"))
    assert len(rows) == 2
    assert {"difference_percent", "p_value"} <= set(rows[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_keeps_stable_baselines3s_habits(runs: dict[str, Path], algorithm: str) -> None:
    assert "sb3-contrib" in RunFolder(runs[algorithm]).read_json("config.json")["versions"]
    make = RecurrentPPO if algorithm == "sb3-ppo-lstm" else PPO
    model = make.load(runs[algorithm] / "best_model.zip", custom_objects={})
    config = Sb3Config.from_dict(RunFolder(runs[algorithm]).read_config(algorithm))
    env = make_env(config, config.env_config.replace(split="validation"), 3)
    assert model.predict(env.reset(), deterministic=True)[0].shape == (3, 3)
    with (runs[algorithm] / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["eval/success_rate"]) for row in rows if row["eval/success_rate"]]
    errors = [row["validation_error_percent"] for row in RunFolder(runs[algorithm]).read_metrics()]
    np.testing.assert_allclose(100 * (1 - np.array(rates)), errors)
    events = EventAccumulator(str(runs[algorithm]))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/success_rate")] == [96, 192, 288, 384]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.out + shown.err


def test_mistakes_are_one_clear_line(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    lstm = str(runs["sb3-ppo-lstm"])
    assert "not of 'sb3-ppo'" in refusal(capsys, "train", "sb3-ppo", "--resume", lstm)
    assert "not of 'ram'" in refusal(capsys, "train", "ram", "--resume", lstm)
    assert "already holds a run" in refusal(capsys, "train", "sb3-ppo-lstm", "--task", "digits", "--out", lstm)
    assert "task must be one of" in refusal(capsys, "train", "sb3-ppo", "--task", "imagenet")
    assert "gamma must be less than or equal to 1, got 1.5" in refusal(capsys, "train", "sb3-ppo", "--gamma", "1.5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert "start it without torchrun" in refusal(capsys, "train", "sb3-ppo", "--task", "digits")
    for old in ("ppo", "ppo-lstm"):
        said = refusal(capsys, "train", old, "--task", "digits")
        assert said == f"error: Stable-Baselines3's {old} is called sb3-{old}\n"
    assert "Unrecognized" in refusal(capsys, "train", "sb3-ppo", "--algorithm", "sb3-ppo-lstm")
    copy = tmp_path / "copy"
    shutil.copytree(lstm, copy)
    (copy / "best_model.zip").write_bytes(b"no zip")
    assert "is damaged" in refusal(capsys, "evaluate", str(copy))
    (copy / "best_model.zip").unlink()
    assert "no checkpoint best_model.zip yet" in refusal(capsys, "evaluate", str(copy))
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**about, "agent": "dqn"}))
    assert "no agent of this version" in refusal(capsys, "evaluate", str(copy))


def test_recurrent_ppo_learns_to_name_digits() -> None:
    config = dataclasses.replace(preset("digits", "sb3-ppo-lstm"), total_timesteps=60_000, evaluate_every=60_000)
    result = train(dataclasses.replace(config, auxiliary_weight=1.0))
    assert result.validation_error_percent < 75, "chance is 90"
