"""`train AGENT --seeds`: several seeds by one command."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.training import seeds
from agents.training.run_folder import RunFolder
from agents.training.seeds import parse_seeds, train_seeds

SMALL = ["--task", "digits", "--hidden-size", "16", "--glimpse-hidden-size", "8", "--epochs", "1"]


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0-2") == [0, 1, 2]
    assert parse_seeds("7,0,3-4") == [7, 0, 3, 4]
    for text in ("", "2-0", "a", "0-", "-1", "0,,1"):
        with pytest.raises(ValueError, match="seeds must be numbers such as 0-2 or 0,3, got"):
            parse_seeds(text)
    with pytest.raises(ValueError, match="named once each"):
        parse_seeds("0-2,1")


def test_each_seed_is_trained_finished_ones_are_left_and_begun_ones_go_on(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "small"
    words = ["train", "ram", *SMALL, "--seeds", "0-1", "--jobs", "2", "--out", str(out)]
    main(words)
    folders = [RunFolder(out / f"seed-{seed}") for seed in (0, 1)]
    errors = [folder.read_json("results.json")["validation"]["error_percent"] for folder in folders]
    mean, deviation = statistics.mean(errors), statistics.stdev(errors)
    last = f"seed 0: {errors[0]:.2f}, 1: {errors[1]:.2f}, mean {mean:.2f}, deviation {deviation:.2f}"
    assert last in capfd.readouterr().err
    main(["train", "ram", *SMALL, "--seed", "1", "--out", str(tmp_path / "alone")])
    alone = RunFolder(tmp_path / "alone")
    assert alone.read_about()["config"] == folders[1].read_about()["config"]
    assert alone.read_json("results.json")["validation"]["error_percent"] == errors[1]

    started: list[list[str]] = []

    def note(command: list[str], check: bool) -> Any:
        started.append(command[4:])
        folders[1].add_result("validation", {"error_percent": errors[1]})
        return type("Ended", (), {"returncode": 0})

    monkeypatch.setattr(seeds.subprocess, "run", note)
    folders[1].remove_results()
    main(words)
    assert started == [["ram", "--resume", str(out / "seed-1")]]
    folders[1].remove_results()
    with pytest.raises(ValueError, match="seed-1 holds a run that another command began"):
        train_seeds("ram", [*words[2:], "--locator", "scan"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0-1"], "--seeds needs --out"),
        (["--seeds", "0-1", "--out", "x", "--seed", "3"], "--seed cannot be combined with --seeds"),
        (["--seeds", "0-1", "--out", "x", "--resume", "y"], "--resume cannot be combined with --seeds"),
        (["--seeds", "0-1", "--out", "x", "--jobs", "0"], "jobs must be a number of at least 1"),
        (["--seeds", "x", "--out", "x"], "seeds must be numbers"),
    ],
)
def test_what_does_not_go_with_seeds_is_refused(words: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ram", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_training_that_fails_ends_the_command_with_its_status(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds.subprocess, "run", lambda *_, **__: type("Ended", (), {"returncode": 130}))
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ram", *SMALL, "--seeds", "0-2", "--out", str(tmp_path)])
    assert stopped.value.code == 130
    assert "3 of 3 seeds are not finished: run the same command again to resume them" in capsys.readouterr().err
