"""The runs in results/ lie where their configurations say, and hold what was measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import agents.cli
from agents.analysis.pages import stale_files
from agents.registry import read_config
from agents.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1] / "results"
RUNS = sorted(path.parent for path in ROOT.rglob("config.json"))


def test_the_index_and_the_tables_of_all_pages_are_what_the_runs_say() -> None:
    stale = [str(path.relative_to(ROOT.parent)) for path, _ in stale_files(ROOT.parent)]
    assert not stale, "run python -m agents summary --write"


def test_the_index_has_a_line_for_each_run() -> None:
    lines = [json.loads(line) for line in (ROOT / "index.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {str(path.relative_to(ROOT)) for path in RUNS}
    assert len(RUNS) >= 184


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_run_lies_at_group_task_name_seed_and_holds_what_its_metrics_say(path: Path) -> None:
    group, task, _, seed = path.relative_to(ROOT).parts
    folder = RunFolder(path)
    config = read_config(folder)
    assert (config.task, f"seed-{config.to_dict()['seed']}") == (task, seed)
    rows = folder.read_metrics()
    numbers = [row["epoch"] for row in rows]
    assert numbers == sorted(set(numbers))
    found = folder.read_json("results.json")
    best = min(row.get("validation_error_percent", 100) for row in rows)
    if group == "stopped":
        assert numbers[-1] < config.to_dict()["epochs"]
    else:
        assert numbers[-1] == found["validation"]["epochs"] == config.to_dict().get("epochs", numbers[-1])
        assert found["validation"]["error_percent"] == best
    if "validation single" in found:
        assert found["validation single"]["error_percent"] == best
    for test in (found.get("test single"), found.get("test average-10")):
        if test is not None:
            assert (test["task"], test["episodes"]) == (task, 358 if task == "digits" else 10_000)
            assert test["error_percent"] == 100 * test["errors"] / test["episodes"]


class _Begun(Exception):
    """Training would begin now, with this configuration."""


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_command_repeats_a_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(config: Any, *_: Any, **__: Any) -> None:
        raise _Begun(config)

    for agent in ("ram", "full_image", "sb3"):
        monkeypatch.setattr(f"agents.{agent}.training.train", begin)
    folder = RunFolder(path)
    with pytest.raises(_Begun) as begun:
        agents.cli.main(["train", folder.read_agent(), "--like", str(path)])
    (config,) = begun.value.args
    assert config == read_config(folder)


@pytest.mark.parametrize("path", sorted((ROOT / "compare").glob("*.json")), ids=lambda path: path.stem)
def test_a_comparison_begins_with_the_published_error_of_the_weights(path: Path) -> None:
    own = json.loads(path.read_text())[0]
    assert own["policy"] == f"pretrained:{path.stem}"
    published = RunFolder(ROOT.parent / "pretrained" / path.stem).read_json("results.json")["test single"]
    assert (own["errors"], own["episodes"]) == (published["errors"], published["episodes"])
