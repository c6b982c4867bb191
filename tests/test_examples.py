"""The examples and every snippet and command of the README and of docs/ run."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import yaml
from PIL import Image

import ram_gym
from agents.cli import main
from ram_gym import TASKS
from tests.shapes import write_shapes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_examples_are_short_and_all_are_run_here() -> None:
    paths = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    elsewhere = {"reinforce": 250}  # by tests/test_reinforce_example.py; it is a whole algorithm
    here = {"compare_policies", "draw_tasks", "plug_in_your_policy", "quickstart", "random_agent", "sb3_recurrent_ppo"}
    assert paths == here | set(elsewhere)
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= elsewhere.get(path.stem, 80)


def test_quickstart(tmp_path: Path, capsys: Any) -> None:
    from examples.quickstart import quickstart

    quickstart(tmp_path, epochs=1)
    shown = capsys.readouterr().out
    assert "accuracy %" in shown
    assert (tmp_path / "episodes.gif").stat().st_size > 1000
    assert {path.name for path in tmp_path.iterdir()} == {"learned", "random", "centre", "episodes.gif"}
    with pytest.raises(SystemExit, match="holds a quickstart already"):
        quickstart(tmp_path, epochs=1)


def test_random_agent_is_right_by_chance() -> None:
    from examples.random_agent import play_many, play_one

    assert play_one() in (True, False)
    assert 0.05 < play_many(256, 24) < 0.15


def test_compare_policies_writes_a_report(tmp_path: Path) -> None:
    from examples.compare_policies import PLACES, compare_places

    table = compare_places(tmp_path / "report.html")
    accuracy = {row["policy"]: row["accuracy_percent"] for row in table.rows()}
    assert set(accuracy) == set(PLACES)
    assert accuracy["corners"] > accuracy["centre"] > 60
    text = (tmp_path / "report.html").read_text()
    assert all(name in text for name in PLACES)


def test_plug_in_your_policy() -> None:
    pytest.importorskip("sb3_contrib")
    from examples.plug_in_your_policy import compare_mine, make_sb3_model

    rows = compare_mine(make_sb3_model()).rows()
    names = ["stay_and_answer_seven", "my recurrent module", "my SB3 model"]
    assert [row["policy"] for row in rows] == names
    assert all(2 < row["accuracy_percent"] < 30 for row in rows), "none is trained"
    assert len(compare_mine().rows()) == 2


def test_sb3_recurrent_ppo_is_the_same_after_loading(tmp_path: Path) -> None:
    from examples.sb3_recurrent_ppo import main as play

    learned, loaded = play(tmp_path, 768)
    assert learned == loaded < 97


def test_draw_tasks(tmp_path: Path) -> None:
    from examples.draw_tasks import WIDTH, draw_task

    picture = Image.open(draw_task("digits", tmp_path))
    assert picture.width == WIDTH
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50


# docs/algorithm.md quotes examples/reinforce.py; tests/test_reinforce_example.py compares them.
@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES if page.stem != "algorithm" for number in range(len(blocks(page, "python")))],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_python_snippets_run(page: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = blocks(page, "python")[number]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAM_GYM_TASKS", "")
    # Shown for MNIST, run on the digits, which need no download.
    if "pretrained:mnist-28" in snippet:
        main(["train", "ram", "--task", "digits", "--epochs", "1", "--hidden-size", "8", "--out", "run"])
    shown = {"RamGym/MNIST-v0": "RamGym/Digits-v0", "pretrained:mnist-28": "run"}
    for words, instead in shown.items():
        snippet = snippet.replace(words, instead)
    (tmp_path / "snippet.py").write_text(snippet)
    with patch.dict(TASKS), patch.dict(gym.registry):  # a snippet may register tasks
        runpy.run_path(str(tmp_path / "snippet.py"))


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("#")[0].split() for line in lines if "-m agents" in line]


def test_the_readme_shows_commands() -> None:
    assert len(commands(PAGES[0])) > 3


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_agent_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One after the other, as written but for the task and the length: on the digits, for an epoch."""
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path / "shapes", 330)
    for command in commands(page):
        arguments = command[command.index("agents") + 1 :]
        # Trained weights are of MNIST, which need not be here; tests/test_pretrained.py evaluates them.
        arguments = ["runs/ram" if word.startswith("pretrained:") else word for word in arguments]
        arguments = ["digits" if word in TASKS else word for word in arguments]
        if arguments[:2] == ["train", "ram"] and "--resume" not in arguments:
            arguments += ["--epochs", "1", "--hidden-size", "8"]
        if arguments[:2] in (["train", "cnn"], ["train", "mlp"]):
            arguments += ["--epochs", "1"]
        if arguments[:2] in (["train", "sb3-ppo-lstm"], ["train", "sb3-ppo"]):
            arguments += ["--total-timesteps", "100", "--n-envs", "8", "--hidden-size", "8"]
        main(arguments)
    assert "Traceback" not in capsys.readouterr().err
    sys.stdout.flush()


def test_links_between_pages_lead_to_files() -> None:
    for page in [*PAGES, ROOT / "RESULTS.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_lists_every_task() -> None:
    for name, task in TASKS.items():
        assert f"`{task.env_id}`" in README
        assert f"`{name}`" in README


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ram_gym.__version__
    assert citation["license"] == "MIT"
