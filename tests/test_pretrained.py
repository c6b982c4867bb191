"""The trained weights that the repository holds: found by name, small, and as good as documented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from agents.cli import main
from agents.registry import load_run
from agents.training import pretrained
from agents.training.pretrained import PRETRAINED_FOLDER, find_run, publish
from agents.training.run_folder import RunError, RunFolder

HELD = sorted(path.parent.name for path in PRETRAINED_FOLDER.glob("*/config.json"))
LIMIT = 2_000_000


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    options = ["--epochs", "2", "--core", "lstm", "--hidden-size", "16", "--precision", "bfloat16"]
    main(["train", "ram", "--task", "digits", *options, "--out", str(path)])
    main(["evaluate", str(path)])
    return path


def test_some_are_held() -> None:
    assert HELD


@pytest.mark.parametrize("name", HELD)
def test_held_ones_are_small_and_name_no_folder_of_a_machine(name: str) -> None:
    assert (PRETRAINED_FOLDER / name / "best.safetensors").stat().st_size < LIMIT
    about = find_run(f"pretrained:{name}").read_about()
    assert about["config"]["env_config"]["data_root"] is None


@pytest.mark.mnist
@pytest.mark.parametrize("name", HELD)
def test_held_ones_err_as_documented(name: str, capsys: pytest.CaptureFixture[str], mnist_root: str) -> None:
    documented = find_run(f"pretrained:{name}").read_json("results.json")["test single"]
    main(["evaluate", f"pretrained:{name}", "--data-root", mnist_root, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["episodes"] == documented["episodes"] == 10_000
    # The same scenes; sums in another order on another machine may move a look or two.
    assert abs(found["errors"] - documented["errors"]) <= 5


def test_a_published_run_is_found_by_name_and_evaluates_the_same(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained, "PRETRAINED_FOLDER", tmp_path / "pretrained")
    main(["publish", str(digits_run), "--name", "digits-16"])
    published = tmp_path / "pretrained" / "digits-16"
    assert sorted(path.name for path in published.iterdir()) == ["best.safetensors", "config.json", "results.json"]
    documented = json.loads((digits_run / "results.json").read_text())
    whole, stored = ((path / "best.safetensors").stat().st_size for path in (digits_run, published))
    assert stored < 0.7 * whole
    theirs, ours = load_run(digits_run).model, load_run(published).model
    observation = {"glimpse": torch.rand(50, 1, 8, 8), "location": torch.rand(50, 2) * 2 - 1}
    for model in (ours, theirs):
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    states = [model.look(observation, model.look(observation, model.initial_state(50))) for model in (ours, theirs)]
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][0].std() > 0
    before = (published / "results.json").read_text()
    capsys.readouterr()
    main(["evaluate", "pretrained:digits-16", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == documented["test single"]["errors"]
    assert (published / "results.json").read_text() == before
    with pytest.raises(RunError, match="exists already"):
        publish(RunFolder(digits_run), "digits-16")


def test_unknown_and_impossible_names_are_refused(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "PRETRAINED_FOLDER", tmp_path / "pretrained")
    with pytest.raises(RunError, match="none, in this checkout, got 'pretrained:mnist-29'"):
        find_run("pretrained:mnist-29")
    with pytest.raises(RunError, match="name must be letters"):
        publish(RunFolder(digits_run), "../elsewhere")
    with pytest.raises(RunError, match="holds no run"):
        publish(RunFolder(tmp_path), "empty")
    assert not (tmp_path / "pretrained").exists()
