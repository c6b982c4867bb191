"""`python -m agents summary`: the numbers of finished runs, from made-up folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.analysis.cells import spread
from agents.analysis.results import read_numbers
from agents.analysis.summary import group, to_markdown
from agents.cli import main
from agents.full_image.config import FullImageConfig
from agents.ram.config import RamConfig
from agents.sb3.config import Sb3Config
from agents.training.fingerprint import describe_data
from agents.training.pretrained import find_run
from agents.training.run_folder import RunFolder
from ram_gym import GlimpseConfig, get_task

DATA = describe_data(GlimpseConfig(dataset="digits"))


def make_run(path: Path, agent: str, config: Any, results: dict[str, Any] | None) -> RunFolder:
    folder = RunFolder(path, [])
    folder.create(agent, config, DATA)
    if results is not None:
        folder.write_json("results.json", results)
    return folder


def found(validation: float, test: float | None = None, **more: Any) -> dict[str, Any]:
    results: dict[str, Any] = {"validation": {"error_percent": validation, "train_seconds": 90.0, **more}}
    return results if test is None else {**results, "test single": {"error_percent": test}}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, RunFolder]:
    env_config = get_task("cluttered-60").config.replace(composition="overwrite", num_glimpses=5)
    learned: dict[str, Any] = {"task": "cluttered-60", "env_config": env_config}
    same = {"device": "cuda", "validate_every": 7, "checkpoint_minutes": 1.0}
    same["env_config"] = env_config.replace(data_root="x")
    return {
        "c": make_run(tmp_path / "c", "ram", RamConfig(**learned, seed=2), found(4.0, 7.0, scenes=1_000)),
        "a": make_run(tmp_path / "a", "ram", RamConfig(**{**learned, **same}, seed=0), found(1.0, 2.0, scenes=1_000)),
        "b": make_run(tmp_path / "b", "ram", RamConfig(**learned, seed=1), found(2.5, None, scenes=1_000)),
        "scan": make_run(
            tmp_path / "scan",
            "ram",
            RamConfig(env_config=GlimpseConfig(dataset="kmnist"), locator="scan"),
            {"validation single": {}},
        ),
        "ppo": make_run(
            tmp_path / "ppo", "sb3-ppo", Sb3Config(algorithm="sb3-ppo", task="digits"), found(9.0, steps=6_000)
        ),
        "cnn": make_run(tmp_path / "cnn", "cnn", FullImageConfig(), None),
    }


def test_runs_that_differ_in_the_seed_alone_are_one_row(runs: dict[str, RunFolder]) -> None:
    rows = group([read_numbers(folder) for folder in runs.values()])
    assert [[run.path.name for run in row] for row in rows] == [["a", "b", "c"], ["scan"], ["ppo"], ["cnn"]]
    assert [run.seed for run in rows[0]] == [0, 1, 2]
    # By hand: (1 + 2.5 + 4) / 3 = 2.5, deviations -1.5, 0, 1.5, so sqrt(4.5 / 2) = 1.5; (2 + 7) / 2 and sqrt(12.5).
    assert spread([run.validation_percent for run in rows[0]]) == pytest.approx((2.5, 1.5))
    assert spread([run.test_percent for run in rows[0]]) == pytest.approx((4.5, 12.5**0.5))
    assert (spread([3.0, None]), spread([None])) == ((3.0, None), None)


def test_the_markdown_table(runs: dict[str, RunFolder]) -> None:
    runs["a"].add_result("test average-10", {"error_percent": 1.5})
    lines = to_markdown(group([read_numbers(folder) for folder in runs.values()])).splitlines()
    assert lines[2:6] == [
        "| `a`, `b`, `c` | ram | cluttered-60, overwrite, 5 glimpses | 3 | 1.00, 2.50, 4.00 (2.50 ± 1.50) "
        "| 2.00, -, 7.00 (4.50 ± 3.54) | 1.50, -, - (1.50 ± -) | 1,000 | 1.5, 1.5, 1.5 |",
        "| `scan` | ram, scan locator | mnist-28, kmnist | 1 | - | - | - | - | - |",
        "| `ppo` | sb3-ppo | digits | 1 | 9.00 | - | - | 1,000 | 1.5 |",  # 6 glimpses, so 6 steps a scene
        "| `cnn` | cnn | mnist-28 | 1 | - | - | - | - | - |",
    ]


def test_the_command_shows_and_writes_the_table(
    runs: dict[str, RunFolder], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    file = tmp_path / "new" / "table.md"
    paths = [str(folder.path) for folder in runs.values()]
    main(["summary", *paths, "pretrained:mnist-28", "--markdown", str(file)])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "0", "1.00", "2.00", "-", "1,000", "1.5"] in shown
    assert ["3", "seeds", "2.50", "±", "1.50", "4.50", "±", "3.54"] in shown
    held = find_run("pretrained:mnist-28").read_json("results.json")
    wanted = [f"{held[key]['error_percent']:.2f}" for key in ("validation", "test single", "test average-10")]
    assert next(line for line in shown if line[:1] == ["mnist-28"])[2:5] == wanted
    assert file.read_text().count("\n| `") == 5


def test_what_is_no_run_or_damaged_is_refused(runs: dict[str, RunFolder], tmp_path: Path, capsys: Any) -> None:
    def refusal(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["summary", *arguments])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    path = str(runs["a"].path)
    assert f"{tmp_path} holds no run" in refusal(str(tmp_path))
    assert f"{path} and {path} have the same training config and seed 0" in refusal(path, path)
    for text, message in (
        ("[]", "holds no object"),
        ("{", "is damaged"),
        ('{"validation": 3}', "validation: it must be an object, got 3"),
        ('{"test single": {"error_percent": "low"}}', "test single: error_percent must be a valid number, got 'low'"),
    ):
        (runs["a"].path / "results.json").write_text(text)
        shown = refusal(path)
        assert f"{path}/results.json" in shown
        assert message in shown
    make_run(tmp_path / "other", "dreamer", RamConfig(), None)
    assert "other is a run of 'dreamer', which is no agent of this version" in refusal(str(tmp_path / "other"))
