"""Networks that see the whole canvas: what they learn from, what they write, and how they play."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from agents.cli import main
from agents.full_image.config import PRESETS, FullImageConfig, Network, preset
from agents.full_image.network import make_model
from agents.full_image.policy import FullImagePolicy
from agents.full_image.training import FullImageLearner, train
from agents.registry import load_run
from agents.training.checkpoint import save_checkpoint
from agents.training.fingerprint import fingerprint
from agents.training.loop import Trainer
from agents.training.run_folder import RunError, RunFolder
from ram_gym import TASKS, GlimpseConfig, GlimpseEnv, GlimpseVectorEnv, evaluate, load_dataset

TINY: dict[str, Any] = {"epochs": 2, "batch_size": 256, "channels": (4, 8), "hidden_sizes": (8, 8)}
CLUTTERED = GlimpseConfig(
    dataset="digits", canvas_size=40, num_clutter=4, num_glimpses=3, patch_size=6, num_scales=3, scene_seed=5
)


def digits(network: Network = "cnn", **fields: Any) -> FullImageConfig:
    return dataclasses.replace(preset("digits", network), **{**TINY, **fields})


def lanes(config: GlimpseConfig, num_envs: int = 8) -> GlimpseVectorEnv:
    return GlimpseVectorEnv(num_envs, config, output="torch", autoreset_mode="Disabled")


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "train_seconds"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cnn"
    main(["train", "cnn", "--task", "digits", "--epochs", "2", "--channels", "4", "8", "--out", str(path)])
    return path


@pytest.mark.parametrize(("network", "epochs"), [("cnn", 4), ("mlp", 12)])
def test_digits_are_learned_well_above_chance(network: Network, epochs: int) -> None:
    config = dataclasses.replace(preset("digits", network), epochs=epochs, channels=(4, 8, 16, 32))
    result = train(config)
    assert result.is_complete
    assert result.validation_error_percent < 15


@pytest.mark.parametrize("network", PRESETS)
def test_a_run_resumed_in_the_middle_of_an_epoch_equals_an_unbroken_one(tmp_path: Path, network: Network) -> None:
    config = digits(network)
    train(config, RunFolder(tmp_path / "unbroken"))
    folder = RunFolder(tmp_path / "broken")
    folder.create(network, config)
    trainer = Trainer(FullImageLearner, config, folder)
    for _ in range(trainer.updates_per_epoch):
        trainer.update()
    trainer.end_epoch()
    trainer.update()
    save_checkpoint(trainer)
    trainer.update()  # lost
    assert train(config, folder, resume=True).is_complete
    rows = [[strip(row) for row in RunFolder(tmp_path / name).read_metrics()] for name in ("unbroken", "broken")]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [1, 2]
    for file in ("best.safetensors", "last.safetensors"):
        ours, theirs = (RunFolder(tmp_path / name).read_tensors(file)[0] for name in ("unbroken", "broken"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("task", ["digits", "cluttered"])
def test_training_sees_the_canvases_of_the_task_itself(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = CLUTTERED.replace(scene_seed=None) if task == "cluttered" else digits().env_config
    trainer = Trainer(FullImageLearner, digits(batch_size=8, env_config=setting))
    assert trainer.env.config.num_glimpses == trainer.env.config.num_scales == 1
    seeds, reset = [], trainer.env.reset

    def watched(**arguments: Any) -> Any:
        observation = reset(**arguments)
        options = arguments["options"]
        seeds.append(int(options["scene_seed"]))
        env = lanes(setting)
        env.reset(options=options)
        assert torch.equal(trainer.env.canvases, env.canvases)
        assert torch.equal(trainer.env.labels, env.labels)
        single = GlimpseEnv(setting)
        single.reset(options={"index": int(options["index"][3]), "scene_seed": seeds[-1]})
        np.testing.assert_array_equal(trainer.env.canvases[3].numpy(), single.canvas)
        return observation

    monkeypatch.setattr(trainer.env, "reset", watched)
    trainer.update()
    trainer.update()
    trainer.end_epoch()
    trainer.update()
    assert seeds[0] == seeds[1] != seeds[2], "each pass draws fresh scenes"


def test_training_reads_neither_validation_nor_test_images() -> None:
    trainer = Trainer(FullImageLearner, digits())
    assert trainer.env.config.split == "train"
    assert trainer.validation_env.config.split == "validation"
    assert trainer.env.num_images == len(load_dataset("digits", "train").images)


def test_an_update_by_hand() -> None:
    config = digits("mlp", batch_size=64, max_gradient_norm=0.0, weight_decay=0.1)
    trainer = Trainer(FullImageLearner, config)
    weights = [parameter.detach().clone().requires_grad_() for parameter in trainer.model.parameters()]
    trainer.update()
    # The digits fill their canvas, so the scenes are the images.
    data = load_dataset("digits", "train")
    index = trainer.order[:64].numpy()
    hidden = torch.tensor(data.images[index]).flatten(1) / 255
    for weight, bias in zip(weights[:4:2], weights[1:4:2], strict=True):
        hidden = torch.relu(hidden @ weight.T + bias)
    logits, labels = hidden @ weights[4].T + weights[5], torch.tensor(data.labels[index])
    loss = -logits.log_softmax(-1)[torch.arange(64), labels].mean()
    loss.backward()
    np.testing.assert_allclose(float(trainer.sums[1]), float(loss.detach()), rtol=1e-5)
    assert float(trainer.sums[0]) == float((logits.argmax(-1) == labels).double().mean())
    rate = 0.04 * config.learning_rate  # where one-cycle begins
    for before, after in zip(weights, trainer.model.parameters(), strict=True):
        assert before.grad is not None
        step = before.grad / (before.grad.abs() + 1e-8)  # Adam's first one
        expected = before * (1 - rate * config.weight_decay) - rate * step
        np.testing.assert_allclose(after.detach().numpy(), expected.detach().numpy(), atol=rate * 0.02)


def convolve(model: torch.nn.Module, canvases: np.ndarray, blocks: int) -> torch.Tensor:
    """The convolutional network, layer by layer, in evaluation mode."""
    state = model.state_dict()
    hidden = torch.tensor(canvases) / 255
    for number in range(blocks):
        if number:
            hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        hidden = functional.conv2d(hidden, state[f"convolutions.{number}.weight"], padding=1)
        scale, shift, mean, variance = (
            state[f"normalizations.{number}.{name}"][:, None, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        hidden = torch.relu((hidden - mean) / torch.sqrt(variance + 1e-5) * scale + shift)
    return hidden.mean((-1, -2)) @ state["classifier.weight"].T + state["classifier.bias"]


@torch.no_grad()
def test_the_policy_answers_what_the_network_says_of_the_canvas() -> None:
    env = lanes(CLUTTERED.replace(split="test"))
    config = digits(channels=(4, 8, 8))
    model = make_model(config, env)
    model.train()
    env.reset(seed=0)
    model(env.canvases / 255)  # so that batch normalization has seen something
    policy = FullImagePolicy(model.eval(), env, "mine")
    single = GlimpseEnv(CLUTTERED.replace(split="test"))
    canvases = []
    for index in range(8):
        single.reset(options={"index": index})
        canvases.append(np.asarray(single.canvas))
    logits = convolve(model, np.stack(canvases), 3)
    observation, _ = env.reset(options={"index": torch.arange(8)})
    state = None
    for _ in range(3):
        action, state = policy.act(observation, state)
        assert torch.equal(action["label"], logits.argmax(-1))
        assert torch.equal(action["location"], torch.zeros(8, 2))
        np.testing.assert_allclose(action.pop("log_probabilities"), logits.log_softmax(-1), atol=1e-5)
        observation, _, _, _, info = env.step(action)
    assert torch.equal(info["prediction"], logits.argmax(-1))
    found = {name: evaluate(policy, env, protocol=name, episodes=20) for name in ("single", "average-10")}  # type: ignore[arg-type]
    assert torch.equal(found["single"].predictions, found["average-10"].predictions)
    assert torch.equal(found["single"].predictions[:8], logits.argmax(-1))
    assert policy.answers_early is False


def test_a_run_is_evaluated_compared_and_watched_like_any_other(run: Path, tmp_path: Path, capsys: Any) -> None:
    ram, mlp = str(tmp_path / "ram"), str(tmp_path / "mlp")
    main(["train", "ram", "--task", "digits", "--epochs", "1", "--hidden-size", "8", "--out", ram])
    main(["train", "mlp", "--task", "digits", "--epochs", "1", "--hidden-sizes", "8", "--out", mlp])
    capsys.readouterr()
    main(["evaluate", str(run), "--json"])
    alone = json.loads(capsys.readouterr().out)
    main(["compare", ram, str(run), mlp, "random", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["policy"]).name for row in rows] == ["ram", "cnn", "mlp", "random*"]
    assert rows[1]["errors"] == alone["errors"]
    assert rows[1]["episodes"] == len(load_dataset("digits", "test").images)
    assert rows[1]["difference_percent"] == pytest.approx(rows[1]["error_percent"] - rows[0]["error_percent"])
    folder = RunFolder(run)
    main(["evaluate", str(run), "--split", "validation", "--json"])
    on_validation = json.loads(capsys.readouterr().out)
    assert on_validation["error_percent"] == folder.read_json("results.json")["validation"]["error_percent"]
    assert folder.read_json("results.json")["test single"] == alone
    best = min(folder.read_metrics(), key=lambda row: row["validation_error_percent"])
    assert (best["epoch"], best["validation_error_percent"]) == (alone["epoch"], on_validation["error_percent"])
    assert list(run.glob("events.out.tfevents.*"))
    main(["watch", str(run), "--gif", str(tmp_path / "a.gif"), "--episodes", "2"])
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames > 2


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match="no run"):
        load_run(folder)
    folder.create("cnn", digits())
    with pytest.raises(RunError, match="no checkpoint"):
        load_run(folder)
    with pytest.raises(RunError, match="already"):
        train(digits(), folder)
    (folder.path / "best.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="damaged"):
        load_run(folder)
    other = Trainer(FullImageLearner, digits(channels=(4, 9)))
    header = {"epoch": 1, "fingerprint": fingerprint(other.data)}
    folder.write_tensors("best.safetensors", other.model.state_dict(), header)
    with pytest.raises(RunError, match="does not fit"):
        load_run(folder)
    about = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps({**about, "agent": "mlp"}))
    with pytest.raises(RunError, match="of 'mlp' and of 'cnn'"):
        load_run(folder)


def test_scripted_places_borrow_the_network_of_the_first_run_that_looks(run: Path, tmp_path: Path, capsys: Any) -> None:
    looks = str(tmp_path / "ram")
    main(["train", "ram", "--task", "digits", "--epochs", "1", "--hidden-size", "16", "--out", looks])
    capsys.readouterr()
    main(["compare", str(run), "random", looks, "--split", "validation", "--json"])
    mixed = {row["policy"]: row["errors"] for row in json.loads(capsys.readouterr().out)}
    main(["compare", looks, "random", "--split", "validation", "--json"])
    alone = {row["policy"]: row["errors"] for row in json.loads(capsys.readouterr().out)}
    assert mixed["random*"] == alone["random*"]
    assert list(mixed) == [str(run), "random*", looks]


def test_mistakes_are_one_clear_line(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == 2
        shown = capsys.readouterr()
        return shown.out + shown.err

    assert "already" in refusal("train", "cnn", "--task", "digits", "--out", str(run))
    assert "is a run of 'cnn', not of 'mlp'" in refusal("train", "mlp", "--resume", str(run))
    assert "task must be one of" in refusal("train", "mlp", "--task", "imagenet")
    assert "channels must be" in refusal("train", "cnn", "--task", "digits", "--channels", *["4"] * 6)
    assert "given once" in refusal("compare", str(run), str(run))
    assert "sees the whole canvas" in refusal("compare", str(run), "random")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refusal("train", "cnn", "--task", "digits")


def test_every_task_has_presets_whose_networks_fit_it() -> None:
    for network in PRESETS:
        assert set(PRESETS[network]) == set(TASKS)
        for task in TASKS:
            config = preset(task, network)
            assert FullImageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
            size = config.env_config.canvas_size
            images = np.zeros((2, 1, 8, 8), np.uint8), np.arange(2)
            env = GlimpseVectorEnv(2, dataset=images, canvas_size=size, output="torch")
            model = make_model(config, env)
            assert model(torch.zeros(2, 1, size, size)).shape == (2, 2)
            assert torch.equal(next(model.parameters()), next(make_model(config, env).parameters()))
    with pytest.raises(ValueError, match=r"channels.1 must be greater than or equal to 1, got 0"):
        digits(channels=(4, 0))
    with pytest.raises(ValueError, match="network must be 'cnn' or 'mlp', got 'transformer'"):
        FullImageConfig(network="transformer")  # type: ignore[arg-type]


def test_divergence_is_named() -> None:
    trainer = Trainer(FullImageLearner, digits())
    trainer.update()
    trainer.sums += math.nan
    with pytest.raises(RunError, match="diverged in epoch 1"):
        trainer.end_epoch()
