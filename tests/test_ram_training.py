from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.ram.config import PRESETS, RamConfig, location_std, preset
from agents.ram.losses import rollout_losses, total_loss
from agents.ram.network import make_model
from agents.ram.policy import RamPolicy
from agents.ram.rollout import play
from agents.ram.training import RamLearner, train
from agents.registry import load_run
from agents.scripted import make_locator, scan_path
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from agents.training.config import learning_rate
from agents.training.fingerprint import fingerprint
from agents.training.learner import Progress
from agents.training.loop import Trainer
from agents.training.run_folder import RunError, RunFolder
from ram_gym import TASKS, GlimpseVectorEnv, evaluate, get_task

TINY = {
    "epochs": 2,
    "validate_every": 1,
    "hidden_size": 16,
    "glimpse_hidden_size": 8,
    "locator_hidden_size": 8,
    "batch_size": 256,
}


def spot_task(num_envs: int) -> GlimpseVectorEnv:
    """Three classes: a red, green or blue 4x4 spot off the centre of 32x32. One look at random, then one more."""
    images = np.zeros((3, 3, 32, 32), np.uint8)
    images[[0, 1, 2], [0, 1, 2], 20:24, 20:24] = 255
    return GlimpseVectorEnv(
        num_envs,
        dataset=(images, np.arange(3)),
        canvas_size=32,
        patch_size=6,
        num_glimpses=2,
        output="torch",
        autoreset_mode="Disabled",
    )


def share_of_looks_that_see_it() -> float:
    """Over random locations: those whose 6x6 patch covers a pixel of the spot."""
    first = np.round((np.linspace(-1, 1, 4001)[:-1] + 1) * 16) - 3
    return float(np.mean((first + 5 >= 20) & (first <= 23)) ** 2)


def learn(locator_name: str, updates: int) -> float:
    """Accuracy after learning, with (nearly) the mean location, over 10 x 256 episodes."""
    env = spot_task(256)
    config = RamConfig(hidden_size=64, glimpse_hidden_size=32, locator_hidden_size=0)
    model = make_model(config, env)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    locator = None if locator_name == "learned" else make_locator(locator_name, env, generator)
    rewards = []
    for update in range(updates + 10):
        options = {"index": torch.randint(3, (256,), generator=generator), "scene_seed": update}
        is_learning = update < updates
        rollout = play(model, env, options, 0.3 if is_learning else 1e-3, generator, locator)
        if is_learning:
            optimizer.zero_grad()
            losses = rollout_losses(rollout, 0.3, 1, use_leave_one_out=False)
            total_loss(losses, 1.0, 1.0).backward()
            optimizer.step()
        else:
            rewards.append(float(rollout.rewards.mean()))
    return float(np.mean(rewards))


def test_a_toy_task_is_learned_well_above_what_random_looking_can_reach() -> None:
    seen = 1 - (1 - share_of_looks_that_see_it()) ** 2
    ceiling = seen + (1 - seen) / 3
    assert ceiling < 0.5
    assert learn("random", 150) < ceiling + 0.03
    assert learn("learned", 150) > ceiling + 0.35


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "train_seconds"}


def digits(**fields: Any) -> RamConfig:
    return dataclasses.replace(preset("digits"), **{**TINY, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"core": "lstm", "rollouts": 2, "baseline": "leave-one-out", "weight_average": 0.9},
        {"locator": "random", "final_location_std": 0.01, "validate_every": 2},
    ],
)
def test_a_run_resumed_in_the_middle_of_an_epoch_equals_an_unbroken_one(tmp_path: Path, fields: dict) -> None:
    config = digits(**fields)
    train(config, RunFolder(tmp_path / "unbroken"))
    folder = RunFolder(tmp_path / "broken")
    folder.create("ram", config)
    trainer = Trainer(RamLearner, config, folder)
    for _ in range(trainer.updates_per_epoch):
        trainer.update()
    trainer.end_epoch()
    trainer.update()
    save_checkpoint(trainer)
    trainer.update()  # lost
    folder.append_metrics({"epoch": 2, "lost": 1})
    result = train(config, folder, resume=True)
    assert result.is_complete
    rows = [[strip(row) for row in RunFolder(tmp_path / name).read_metrics()] for name in ("unbroken", "broken")]
    assert rows[0] == rows[1]
    for file in ("best.safetensors", "last.safetensors"):
        ours, theirs = (RunFolder(tmp_path / name).read_tensors(file)[0] for name in ("unbroken", "broken"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_trainer_that_went_on_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    config = digits()
    folder = RunFolder(tmp_path)
    folder.create("ram", config)
    used, fresh = Trainer(RamLearner, config, folder), Trainer(RamLearner, config, folder)
    used.update()
    save_checkpoint(used)
    for _ in range(used.updates_per_epoch - 1):
        used.update()
    used.epoch, used.update_in_epoch = 1, 0
    used.update()  # in another order
    for trainer in (used, fresh):
        load_checkpoint(trainer)
        trainer.update()
    assert torch.equal(used.order, fresh.order)
    weights = used.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in fresh.model.state_dict().items())


def test_several_processes_may_add_results(tmp_path: Path) -> None:
    def add(number: int) -> None:
        RunFolder(tmp_path).add_result(str(number), number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(100)))
    assert RunFolder(tmp_path).read_json("results.json") == {str(number): number for number in range(100)}


def test_a_taken_folder_is_refused_before_a_trainer_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = digits()
    RunFolder(tmp_path).create("ram", config)
    monkeypatch.setattr("agents.training.loop.Trainer", lambda *_: pytest.fail("made"))
    with pytest.raises(RunError, match="already holds a run"):
        train(config, RunFolder(tmp_path))


def test_the_run_folder_holds_what_the_design_says(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = train(digits(), RunFolder(tmp_path / "run"), on_progress=seen.append)
    folder = RunFolder(tmp_path / "run")
    about = folder.read_json("config.json")
    assert RamConfig.from_dict(about["config"]) == digits().resolve() == digits(backpropagation="batched")
    assert {"torch", "gymnasium", "numpy", "python", "ram_gym"} <= set(about["versions"])
    rows = folder.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    best = min(rows, key=lambda row: row["validation_error_percent"])
    assert (best["epoch"], best["validation_error_percent"]) == (result.best_epoch, result.validation_error_percent)
    assert folder.read_json("results.json")["validation"]["error_percent"] == result.validation_error_percent
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert seen[-1].done == 1
    assert seen[-1].seconds_left == 0
    run = load_run(folder)
    model, config, epoch = run.model, run.config, run.epoch
    assert epoch == result.best_epoch
    env = GlimpseVectorEnv(
        500, config.env_config.replace(split="validation"), output="torch", autoreset_mode="Disabled"
    )
    again = evaluate(RamPolicy(model), env)
    assert again.error_percent == result.validation_error_percent


def test_training_draws_fresh_scenes_every_pass_and_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(RamLearner, digits(batch_size=100, rollouts=2))
    calls: list[dict] = []
    original = trainer.env.reset
    monkeypatch.setattr(trainer.env, "reset", lambda **kw: (calls.append(kw["options"]), original(**kw))[1])
    for _ in range(2):
        for _ in range(trainer.updates_per_epoch):
            trainer.update()
        trainer.end_epoch()
    per_epoch = trainer.updates_per_epoch
    for calls_of_epoch in (calls[:per_epoch], calls[per_epoch:]):
        index = torch.cat([call["index"] for call in calls_of_epoch])
        assert torch.equal(index[::2], index[1::2])
        assert len(set(index.tolist())) == len(index) // 2
    assert calls[0]["scene_seed"] == calls[1]["scene_seed"] != calls[per_epoch]["scene_seed"]


def test_an_environment_with_a_scene_seed_shows_the_same_scenes_in_every_pass() -> None:
    env_config = get_task("digits").config.replace(canvas_size=40, scene_seed=7)
    trainer = Trainer(RamLearner, digits(batch_size=100, env_config=env_config))
    seen: list[torch.Tensor] = []
    for epoch in (0, 1):
        trainer.epoch, trainer.update_in_epoch = epoch, 0
        trainer.update()
        order = trainer.order[:100].argsort()
        seen += [trainer.order[:100][order], trainer.env.canvases[order]]
    assert not torch.equal(seen[0], seen[2]), "the order is another one"
    env = GlimpseVectorEnv(100, trainer.config.env_config, output="torch", autoreset_mode="Disabled")
    for index, canvases in (seen[:2], seen[2:]):
        env.reset(options={"index": index})
        assert torch.equal(env.canvases, canvases)


@pytest.mark.parametrize("core", ["rnn", "lstm"])
def test_divergence_by_a_learning_rate_is_named(core: str, tmp_path: Path) -> None:
    config = digits(core=core, learning_rate=1e18, learning_rate_schedule="constant", max_gradient_norm=0.0, epochs=1)
    with pytest.raises(RunError, match=r"^training diverged in epoch 1: a (loss|weight) is NaN or infinite; lower"):
        train(config, RunFolder(tmp_path / "run"))


def test_weights_that_are_no_numbers_are_named_before_they_are_measured() -> None:
    trainer = Trainer(RamLearner, digits())
    trainer.update()
    next(trainer.model.parameters()).data[0] = math.nan
    with pytest.raises(RunError, match="diverged in epoch 1: a weight is NaN or infinite"):
        trainer.end_epoch()


def test_divergence_is_named_and_leave_one_out_ignores_the_baseline(tmp_path: Path) -> None:
    trainer = Trainer(RamLearner, digits())
    trainer.update()
    trainer.sums += math.nan
    with pytest.raises(RunError, match="diverged in epoch 1"):
        trainer.end_epoch()
    weights = []
    for baseline_weight in (0.0, 5.0):
        trainer = Trainer(RamLearner, digits(baseline="leave-one-out", rollouts=2, baseline_weight=baseline_weight))
        for _ in range(3):
            trainer.update()
        weights.append(trainer.model.classifier.weight)
    assert torch.equal(*weights)


def test_schedules_by_hand() -> None:
    config = RamConfig(learning_rate=1.0, location_std=0.2, final_location_std=0.1)
    np.testing.assert_allclose([learning_rate(config, d) for d in (0, 0.05, 0.1, 0.55, 1)], [0.04, 0.52, 1, 0.5, 0])
    np.testing.assert_allclose([location_std(config, d) for d in (0, 0.5, 1)], [0.2, 0.15, 0.1])
    cosine = dataclasses.replace(config, learning_rate_schedule="cosine")
    np.testing.assert_allclose([learning_rate(cosine, d) for d in (0, 0.5, 1)], [1, 0.5, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "imagenet"}, "task must be one of"),
        ({"epochs": 0}, "epochs must be greater than or equal to 1, got 0"),
        ({"location_std": 0.0}, "location_std must be greater than 0, got 0"),
        ({"final_location_std": -1.0}, "final_location_std"),
        ({"weight_average": 1.0}, "weight_average"),
        ({"baseline": "leave-one-out"}, "rollouts of at least 2"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"location_std": float("inf")}, "location_std must be a finite number"),
        ({"seed": 2**31}, "seed must be less than 2147483648"),
    ],
)
def test_bad_configurations_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RamConfig(**fields)


def test_every_task_has_a_preset() -> None:
    assert set(PRESETS["ram"]) == set(TASKS)
    for name in PRESETS["ram"]:
        assert preset(name).env_config.canvas_size == TASKS[name].config.canvas_size


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match="no run"):
        load_run(folder)
    folder.create("ram", digits())
    with pytest.raises(RunError, match="no checkpoint"):
        load_run(folder)
    with pytest.raises(RunError, match="already"):
        train(digits(), folder)
    (folder.path / "best.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="damaged"):
        load_run(folder)
    other = Trainer(RamLearner, digits(hidden_size=32))
    header = {"epoch": 1, "fingerprint": fingerprint(other.data)}
    folder.write_tensors("best.safetensors", other.model.state_dict(), header)
    with pytest.raises(RunError, match="does not fit"):
        load_run(folder)
    about = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps({**about, "agent": "ppo"}))
    with pytest.raises(RunError, match="'ppo'"):
        load_run(folder)


def test_scripted_locators_by_hand() -> None:
    env = spot_task(3)
    observation, _ = env.reset(seed=0)
    assert make_locator("centre", env)(observation, 1).tolist() == [[0, 0]] * 3
    assert torch.equal(make_locator("oracle", env)(observation, 1), torch.zeros(3, 2))  # images fill the canvas
    draws = torch.stack([make_locator("random", env)(observation, 1) for _ in range(300)])
    assert draws.min() < -0.95
    assert draws.max() > 0.95
    path = scan_path(7)
    np.testing.assert_allclose(path.norm(dim=1), 0.8 * np.sqrt((np.arange(7) + 0.5) / 7), rtol=1e-6)
    assert torch.cdist(path, path).add(torch.eye(7) * 9).min() > 0.4
    with pytest.raises(ValueError, match="random, centre, scan, oracle"):
        make_locator("nowhere", env)
