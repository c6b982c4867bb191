"""Fingerprints: a run is played on what it learned from, or says that it is not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.cli import main
from agents.ram.config import RamConfig
from agents.registry import load_run
from agents.sb3.config import Sb3Config
from agents.sb3.training import train as train_sb3
from agents.training import fingerprint as module
from agents.training.fingerprint import describe_data, digest_of_environment, fingerprint
from agents.training.run_folder import RunError, RunFolder
from ram_gym import TASKS, GlimpseConfig, get_task, load_dataset

DIGITS = get_task("digits").config
SMALL = ["--task", "digits", "--epochs", "1", "--batch-size", "512", "--hidden-size", "8", "--glimpse-hidden-size", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    main(["train", "ram", *SMALL, "--out", str(path)])
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change_config(path: Path, **changes: Any) -> None:
    about = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**about, **changes}))


def refusal(capsys: Any, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_it_is_of_the_environment_and_the_data_by_hand() -> None:
    """Worked out again from the text of this test: stored runs have these numbers, so they must stay."""
    keys = ["canvas_size", "clutter_size", "composition", "num_clutter", "num_glimpses", "num_scales", "patch_size"]
    text = json.dumps({**{key: getattr(DIGITS, key) for key in [*keys, "scale_factor", "scene_seed"]}})
    environment = hashlib.sha256(text.encode()).hexdigest()
    found = describe_data(DIGITS)
    assert found["environment"] == environment == digest_of_environment(DIGITS)
    for split in ("train", "validation", "test"):
        images, labels, _ = load_dataset("digits", split)
        data = b"[[%d, 1, 28, 28], 10]" % len(images)
        data += bytes(images.flatten().tolist()) + b"".join(struct.pack("<q", label) for label in labels.tolist())
        assert dict(found)[split] == hashlib.sha256(data).hexdigest()
    assert (found["num_classes"], found["num_channels"]) == (10, 1)
    assert fingerprint(found) == hashlib.sha256(json.dumps(dict(sorted(found.items()))).encode()).hexdigest()
    assert fingerprint(found) == "2823e2f3f9d7ca026e36b3531a13dd2a4d616e4c8a907ac91a3031d0fa57adee"


def test_each_field_but_where_the_data_lies_changes_it() -> None:
    others = {
        "canvas_size": 40,
        "num_clutter": 1,
        "clutter_size": 7,
        "composition": "overwrite",
        "num_glimpses": 5,
        "patch_size": 9,
        "num_scales": 2,
        "scale_factor": 3,
        "scene_seed": 0,
    }
    same = {"dataset": "mnist", "data_root": "x", "split": "test", "image_size": 9}
    assert {*others, *same} == {field.name for field in dataclasses.fields(GlimpseConfig)}, "a new field: see its text"
    for fields, count in ((others, 1 + len(others)), (same, 1)):
        found = {digest_of_environment(DIGITS.replace(**{name: value})) for name, value in fields.items()}
        assert len({digest_of_environment(DIGITS), *found}) == count
    assert len({digest_of_environment(task.config) for task in TASKS.values()}) == len(TASKS) - 1  # digits, mnist-28


def test_it_depends_on_each_image_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        return module.digest_of_split(DIGITS, "train")

    data, right = load_dataset("digits", "train"), digest()
    for name, index in (("images", (7, 0, 3, 3)), ("labels", 5)):
        changed = getattr(data, name).copy()
        changed[index] ^= 1
        other = data._replace(**{"images": data.images.copy(), name: changed})
        with monkeypatch.context() as patch:
            patch.setattr(module, "load_dataset", lambda *_, other=other: other)
            assert digest() != right
    with monkeypatch.context() as patch:
        copied = data._replace(images=data.images.copy())
        patch.setattr(module, "load_dataset", lambda *_: copied)
        assert digest() == right
        patch.setattr(module.hashlib, "sha256", lambda *_: pytest.fail("it is hashed once a process"))
        assert digest() == right


def test_a_run_and_its_checkpoints_hold_it(trained: Path) -> None:
    folder = RunFolder(trained)
    about = folder.read_about()
    assert about["data"] == describe_data(DIGITS)
    for name in ("best.safetensors", "last.safetensors"):
        assert folder.read_tensors(name)[1]["fingerprint"] == about["fingerprint"] == fingerprint(about["data"])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_other_images_are_refused_or_marked(run: Path, split: str, capsys: Any) -> None:
    """As if the images had been others when it was trained."""
    data = {**describe_data(DIGITS), split: "0" * 64}
    new = {"data": data, "fingerprint": fingerprint(data)}
    folder = RunFolder(run)
    tensors, header = folder.read_tensors("best.safetensors")
    change_config(run, **new)
    folder.write_tensors("best.safetensors", tensors, {**header, "fingerprint": new["fingerprint"]})
    path, gif = str(run), str(run / "x.gif")
    line = f"error: {run} was trained on other data, not the same {split} images; --other-data plays it all the same"
    on = ["--split", split]
    for command in (
        ["evaluate", path],
        ["compare", path],
        ["watch", path, "--gif", gif],
        ["probe", path, "--by", "glimpses", "--values", "1"],
        ["figures", path, "--out", str(run / "figures")],
    ):
        shown = refusal(capsys, *command, *on)
        assert shown.endswith(line)
        capsys.readouterr()
        main([*command, *on, "--other-data"])
        shown = " ".join(capsys.readouterr().out.split())
        if command[0] != "figures":
            assert "other data than" in shown
    other = {"test": "validation", "validation": "test"}[split]
    main(["evaluate", path, "--split", other])
    assert "other data" not in capsys.readouterr().out
    for command in (["evaluate", path], ["compare", path], ["probe", path, "--by", "glimpses", "--values", "1"]):
        capsys.readouterr()
        main([*command, *on, "--other-data", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found[0] if isinstance(found, list) else found)["other_data"] is True
    results = RunFolder(run).read_json("results.json")
    assert results[f"{split} single other data"]["other_data"] is True
    assert f"{split} single" not in results
    assert "other_data" not in results[f"{other} single"]


def test_another_environment_is_refused_or_marked(run: Path, capsys: Any) -> None:
    config = RunFolder(run).read_about()["config"]
    change_config(run, config={**config, "env_config": {**config["env_config"], "num_glimpses": 3}})
    line = refusal(capsys, "evaluate", str(run))
    assert line.endswith(
        f"{run} was trained on other data, not the same environment; --other-data plays it all the same"
    )
    main(["evaluate", str(run), "--other-data"])
    assert "3 glimpses" in capsys.readouterr().out


@pytest.mark.parametrize("agent", ["ram", "sb3-ppo"])
def test_a_run_does_not_go_on_with_other_data(agent: str, run: Path, capsys: Any, tmp_path: Path) -> None:
    if agent == "sb3-ppo":
        run = tmp_path / "ppo"
        config = Sb3Config(algorithm="sb3-ppo", n_envs=8, total_timesteps=48, evaluate_every=48, n_epochs=1)
        train_sb3(config, RunFolder(run))
    data = describe_data(DIGITS)
    for split, word in (("train", "train images"), ("validation", "validation images"), ("environment", "environment")):
        new = {**data, split: "0" * 64}
        change_config(run, data=new, fingerprint=fingerprint(new))
        line = refusal(capsys, "train", agent, "--resume", str(run))
        assert line.endswith(f"{run} was trained on other data, not the same {word}; --like {run} begins another run")
    new = {**data, "test": "0" * 64}
    change_config(run, data=new, fingerprint=fingerprint(new))
    line = refusal(capsys, "train", agent, "--resume", str(run))
    assert line.endswith(f"is of a run on other data than {run}/config.json says")


def test_a_number_that_does_not_fit_its_data_is_damage(run: Path) -> None:
    folder = RunFolder(run)
    about = folder.read_about()
    for changes, message in (
        ({"fingerprint": "0" * 64}, " is damaged: its fingerprint is not that of its data"),
        ({"data": {**about["data"], "num_classes": 26}}, " is damaged: its fingerprint is not that of its data"),
        ({"fingerprint": None}, ": fingerprint must be a valid string, got None"),
        ({"fingerprint": "abc"}, ": fingerprint: String should have at least 64 characters"),
        ({"data": {**about["data"], "num_classes": 1.0}}, ": data.num_classes must be a valid integer, got 1.0"),
        ({"data": {}}, ": data.num_classes is missing (5 more)"),
        ({"data": None}, ": data must be an object, got None"),
        ({"hardware": 3}, ": hardware must be an object, got 3"),
        ({"agent": None}, ": agent must be a valid string, got None"),
        ({"colour": 1}, ": colour is no field of this version, got 1"),
    ):
        (run / "config.json").write_text(json.dumps({**about, **changes}))
        with pytest.raises(RunError) as refused:
            folder.read_about()
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"{run}/config.json{message}"), line


@pytest.mark.parametrize("agent", ["ram", "cnn", "sb3-ppo"])
def test_weights_are_loaded_without_data(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"ram": ["--hidden-size", "8"], "cnn": ["--channels", "2", "2"], "sb3-ppo": ["--hidden-size", "8"]}[agent]
    short = (
        ["--total-timesteps", "48", "--n-envs", "8"] if agent == "sb3-ppo" else ["--epochs", "1", "--batch-size", "512"]
    )
    words = ["--num-clutter", "2", "--canvas-size", "40"]
    main(["train", agent, "--task", "digits", *words, *sizes, *short, "--out", str(tmp_path)])
    with_data = load_run(RunFolder(tmp_path))
    monkeypatch.setattr("ram_gym.datasets._load_digits", lambda *_: pytest.fail("the data was read"))
    run = load_run(RunFolder(tmp_path))
    assert (run.data, run.config, run.epoch) == (with_data.data, with_data.config, with_data.epoch)
    assert run.data["num_classes"] == 10


def test_other_classes_are_refused_whatever_is_allowed(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, _ = load_dataset("digits", "test")
    fewer = type(load_dataset("digits", "test"))(images, np.minimum(labels, 4), 5)
    monkeypatch.setattr(module, "load_dataset", lambda *_: fewer)
    line = refusal(capsys, "evaluate", str(run), "--other-data")
    assert "must have the same classes and channels, got 10 classes and 1 channels and 5 classes and 1 channels" in line


def test_a_config_beside_another_runs_weights_is_refused(run: Path, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    config = RamConfig(task="digits", hidden_size=8, glimpse_hidden_size=4, env_config=DIGITS.replace(num_clutter=1))
    other.create("ram", config)
    shutil.copy(run / "best.safetensors", other.path)
    with pytest.raises(RunError, match=r"is of a run on other data than .*other/config.json says"):
        load_run(other)
