"""RESULTS.md says what the runs in results/ found, and those are of the configurations that the code has."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path
from string import Template
from typing import Any

import pytest

import agents.cli
import agents.full_image.command
import agents.sb3.command
from agents.analysis.probe import VALUES
from agents.full_image.config import NETWORKS, FullImageConfig
from agents.ram.config import RamConfig
from agents.sb3.config import Sb3Config
from agents.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "RESULTS.md").read_text()
RUNS = sorted(path.parent for path in (ROOT / "results").glob("*/config.json"))
RAM_RUNS = [path for path in RUNS if RunFolder(path).read_agent() == "ram"]
FULL_IMAGE_RUNS = [path for path in RUNS if RunFolder(path).read_agent() in NETWORKS]
STOPPED = sorted(path.parent for path in (ROOT / "results" / "stopped").glob("*/config.json"))
SB3_RUNS = [path for path in RUNS if RunFolder(path).read_agent() in ("ppo", "ppo-lstm")]
ABLATIONS = sorted(path.parent for path in (ROOT / "results" / "ablations").glob("*/*/config.json"))


def training_commands() -> list[list[str]]:
    """What follows `python -m agents` in RESULTS.md, wherever it trains; $G is what `G="..."` above it says."""
    variables: dict[str, str] = {}
    commands = []
    for line in TEXT.splitlines():
        if match := re.fullmatch(r'([A-Z])="(.*)"', line):
            variables[match[1]] = match[2]
        elif line.startswith("python -m agents train "):
            commands.append(shlex.split(Template(line).substitute(variables))[3:])
    return commands


class _Begun(Exception):
    """Training would begin now, with this configuration."""


@pytest.mark.parametrize("command", training_commands(), ids=lambda command: command[-1])
def test_each_training_command_makes_the_run_it_names(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(config: Any, *_: Any, **__: Any) -> None:
        raise _Begun(config)

    for module in (agents.cli, agents.full_image.command, agents.sb3.command):
        monkeypatch.setattr(module, "train", begin)
    monkeypatch.chdir(ROOT)
    (path,) = (path for path in (ROOT / "results").rglob(Path(command[-1]).name) if path.is_dir())
    folder = RunFolder(path)
    with pytest.raises(_Begun) as begun:
        agents.cli.main(command)
    (config,) = begun.value.args
    assert config == type(config)(**folder.read_config(folder.read_agent()))


def test_there_are_results() -> None:
    assert RAM_RUNS
    assert SB3_RUNS
    assert FULL_IMAGE_RUNS
    assert ABLATIONS
    assert set(RAM_RUNS + SB3_RUNS + FULL_IMAGE_RUNS) == set(RUNS)


@pytest.mark.parametrize("path", RAM_RUNS + FULL_IMAGE_RUNS, ids=lambda path: path.name)
def test_each_run_is_quoted_as_it_was_measured(path: Path) -> None:
    folder = RunFolder(path)
    agent = folder.read_agent()
    config = (RamConfig if agent == "ram" else FullImageConfig)(**folder.read_config(agent))
    found = folder.read_json("results.json")
    rows = folder.read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, config.epochs + 1))
    best = min(row.get("validation_error_percent", 100) for row in rows)
    assert found["validation"]["error_percent"] == best
    test = found["test single"]
    assert test["error_percent"] == 100 * test["errors"] / test["episodes"]
    assert (test["task"], test["episodes"]) == (config.task, 10_000)
    line = next(line for line in TEXT.splitlines() if f"`{path.name}`" in line)
    low, high = test["interval_percent"]
    assert f"{test['error_percent']:.2f} ({low:.2f} to {high:.2f})" in line
    assert f"{best:.2f}" in line
    assert f"{found['validation']['train_seconds'] / 60:.1f} min" in line


@pytest.mark.parametrize("path", STOPPED, ids=lambda path: path.name)
def test_runs_that_were_stopped_are_quoted_as_such(path: Path) -> None:
    folder = RunFolder(path)
    config = RamConfig(**folder.read_config("ram"))
    rows = folder.read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) < config.epochs
    test = folder.read_json("results.json")["test single"]
    assert (test["task"], test["episodes"]) == (config.task, 10_000)
    low, high = test["interval_percent"]
    best = min(row.get("validation_error_percent", 100) for row in rows)
    line = next(line for line in TEXT.splitlines() if f"`{path.name}`" in line)
    assert f"| {best:.2f} | {test['error_percent']:.2f} ({low:.2f} to {high:.2f}) |" in line
    assert f"{rows[-1]['scenes'] / 1e6:.1f} million, stopped" in line


@pytest.mark.parametrize("path", SB3_RUNS, ids=lambda path: path.name)
def test_each_run_of_stable_baselines3_is_quoted_as_it_was_measured(path: Path) -> None:
    folder = RunFolder(path)
    config = Sb3Config(**folder.read_config(folder.read_agent()))
    found = folder.read_json("results.json")
    best = min(row["validation_error_percent"] for row in folder.read_metrics())
    assert found["validation"]["error_percent"] == best
    test = found["test single"]
    assert test["error_percent"] == 100 * test["errors"] / test["episodes"]
    learns_from = "and the auxiliary loss" if config.auxiliary_weight else "the reward alone"
    if config.shaping != "none":
        learns_from = f'and shaping "{config.shaping}"'
    if config.action == "box":
        learns_from += ", box actions"
    start = f"| {config.task} | {learns_from} | {config.total_timesteps:,} |"
    (line,) = (line for line in TEXT.splitlines() if line.startswith(start))
    numbers = f"{best:.2f}, {test['error_percent']:.2f} | {found['validation']['train_seconds']:.0f} s"
    cells = line.removeprefix(start)
    assert cells.startswith(f" {numbers}") if config.algorithm == "ppo-lstm" else cells.endswith(f" {numbers} |")


def test_equal_wall_times_are_quoted_as_they_were_measured() -> None:
    lines = [line for line in TEXT.splitlines() if re.match(r"\| `[\w-]+-lstm-[\w-]+`, `", line)]
    pairs = [tuple(re.findall(r"`([\w-]+)`", line)) for line in lines]
    assert {name for pair in pairs for name in pair} == {path.name for path in SB3_RUNS}
    for line, (recurrent, control) in zip(lines, pairs, strict=True):
        theirs, ours = (RunFolder(ROOT / "results" / name).read_metrics() for name in (control, recurrent))
        seconds = theirs[-1]["train_seconds"]
        early = [row["validation_error_percent"] for row in ours if row["train_seconds"] <= seconds]
        reached = f"{min(early):.2f}" if early else "none yet"
        best = min(row["validation_error_percent"] for row in theirs)
        assert line.endswith(f"| {seconds:.0f} | {reached} | {best:.2f} |")


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.name)
def test_ablations_are_quoted_as_they_were_measured(path: Path) -> None:
    folder = RunFolder(path)
    config = RamConfig(**folder.read_config("ram"))
    assert config.task == path.parent.name
    rows = folder.read_metrics()
    assert len(rows) == config.epochs
    best = min(row.get("validation_error_percent", 100) for row in rows)
    section = TEXT.partition(f"## What helps, on {config.task}")[2].partition("\n## ")[0]
    (line,) = (line for line in section.splitlines() if line.startswith(f"| `{path.name}` |"))
    assert line.endswith(f"| {config.epochs} | {best:.2f} |")
    found = folder.read_json("results.json", {})
    if "test single" in found:
        test = found["test single"]
        low, high = test["interval_percent"]
        assert f"`{path.name}` {test['error_percent']:.2f} ({low:.2f} to {high:.2f})" in section
    if "validation single" in found:
        assert found["validation single"]["error_percent"] == best
        distances = found["validation single"]["distance_by_glimpse_pixels"]
        if line.count("|") == 6:  # the table has them
            assert f"| {distances[1]:.1f}, {distances[-1]:.1f} |" in line


@pytest.mark.parametrize("task", sorted(path.name for path in (ROOT / "results" / "precision").iterdir()))
def test_precisions_are_quoted_as_they_were_measured(task: str) -> None:
    errors: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    settings = set()
    for path in sorted((ROOT / "results" / "precision" / task).iterdir()):
        config = RamConfig(**RunFolder(path).read_config("ram"))
        rows = RunFolder(path).read_metrics()
        assert (config.task, len(rows)) == (task, config.epochs)
        assert config.seed == len(errors[config.precision])
        errors[config.precision].append(min(row.get("validation_error_percent", 100) for row in rows))
        settings.add(repr({**config.to_dict(), "precision": "", "seed": 0}))
    assert len(settings) == 1
    for precision, found in errors.items():
        assert len(found) == len(errors["float32"]) >= 3
        listed = ", ".join(f"{error:.2f}" for error in found)
        mean, deviation = statistics.mean(found), statistics.stdev(found)
        assert f"| {task} | {precision} | {listed} | {mean:.2f} | {deviation:.2f} |" in TEXT


def stored(name: str) -> dict[str, Any]:
    folder = next(path for path in [*RUNS, *STOPPED, *ABLATIONS] if path.name == name)
    return RunFolder(folder).read_json("results.json")["test single"]


def test_means_over_seeds_are_those_of_the_numbers_beside_them() -> None:
    pattern = r"((?:\d+\.\d\d, )+\d+\.\d\d) \(mean (\d+\.\d\d), deviation (\d+\.\d\d)\)"
    found = re.findall(pattern, TEXT)
    assert len(found) >= 8
    for numbers, mean, deviation in found:
        errors = [float(number) for number in numbers.split(", ")]
        assert f"{statistics.mean(errors):.2f} {statistics.stdev(errors):.2f}" == f"{mean} {deviation}"


@pytest.mark.parametrize("path", RAM_RUNS + STOPPED, ids=lambda path: path.name)
def test_averaged_rollouts_are_quoted_as_they_were_measured(path: Path) -> None:
    found = RunFolder(path).read_json("results.json").get("test average-10")
    line = next(line for line in TEXT.splitlines() if f"| `{path.name}` |" in line)
    if found is not None and line.count("|") == 9:  # the table has them
        assert f" | {found['error_percent']:.2f} | " in line


def test_what_was_found_glimpse_by_glimpse_is_quoted_as_it_was_measured() -> None:
    lines = TEXT.splitlines()
    named = [
        (number, match) for number, line in enumerate(lines) if (match := re.match(r"\| `([\w-]+)`, error \|", line))
    ]
    assert len(named) >= 6
    for number, match in named:
        found = stored(match[1])
        errors = [f"{100 - accuracy:.2f}" for accuracy in found["accuracy_by_glimpse_percent"]]
        distances = [f"{distance:.1f}" for distance in found["distance_by_glimpse_pixels"]]
        assert lines[number] == f"| `{match[1]}`, error | {' | '.join(errors)} |"
        assert lines[number + 1] == f"| distance | {' | '.join(distances)} |"
        spreads = [f"{spread:.1f}" for spread in found["spread_by_glimpse_pixels"]]
        assert lines[number + 2] == f"| varies by | {' | '.join(spreads)} |"
    ((name, quoted),) = re.findall(r"`([\w-]+)` varies by ([\d., ]+) pixels", TEXT)
    assert quoted == ", ".join(f"{spread:.1f}" for spread in stored(name)["spread_by_glimpse_pixels"])
    rows = re.findall(r"\| `([\w-]+)` \| (\d+\.\d\d), (\d+\.\d\d), (\d+\.\d\d) \|", TEXT)
    assert len(rows) == 3
    for name, *numbers in rows:
        accuracies = stored(name)["accuracy_by_glimpse_percent"]
        assert numbers == [f"{100 - accuracies[number - 1]:.2f}" for number in (4, 6, 8)]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "pretrained").iterdir()))
def test_what_other_places_are_worth_is_quoted_as_measured(name: str) -> None:
    places = {
        "oracle*": "the digit's centre, its network",
        "scan*": "a fixed scan, its network",
        "random*": "random places, its network",
        "centre*": "the canvas's centre, its network",
    }
    own, *others = json.loads((ROOT / "results" / "compare" / f"{name}.json").read_text())
    assert own["policy"] == f"pretrained:{name}"
    documented = RunFolder(ROOT / "pretrained" / name).read_json("results.json")["test single"]
    assert (own["errors"], own["episodes"]) == (documented["errors"], 10_000)
    assert [other["policy"] for other in others] == list(places)
    rows = []
    for found in (own, *others):
        low, high = found["interval_percent"]
        near, last = found["distance_by_glimpse_pixels"][1], found["distance_by_glimpse_pixels"][-1]
        who = places.get(found["policy"], f"`{found['policy']}`")
        rows.append(f"| {who} | {found['error_percent']:.2f} ({low:.2f} to {high:.2f}) | {near:.1f}, {last:.1f} |")
    assert "\n".join(rows) in TEXT


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "probes").glob("*.jsonl")), ids=lambda path: path.stem)
def test_probes_are_quoted_as_they_were_measured(path: Path) -> None:
    task, _, by = path.stem.rpartition("-")
    points = [json.loads(line) for line in path.read_text().splitlines()]
    own = [point for point in points if point["policy"] == f"pretrained:{task}"]
    assert {point["by"] for point in points} == {by}
    assert [point["value"] for point in own] == list(VALUES[by])
    wanted = [f"| {' | '.join(map(str, VALUES[by]))} |"]
    for policy, name in ((f"pretrained:{task}", f"`pretrained:{task}`"), ("random", "random places, its network")):
        found = [point for point in points if point["policy"] == policy]
        errors = [f"{point['error_percent']:.2f}" if point["episodes"] else "none" for point in found]
        wanted.append(f"| {name} | {' | '.join(errors)} |")
    if by in ("position", "overlap"):
        wanted.append(f"| scenes | {' | '.join(format(point['episodes'], ',') for point in own)} |")
    if by in ("clutter", "canvas"):
        distances = [f"{point['distance_by_glimpse_pixels'][-1]:.1f}" for point in own]
        wanted.append(f"| its last glimpse's distance | {' | '.join(distances)} |")
    assert all(text in TEXT for text in wanted)
    documented = RunFolder(ROOT / "pretrained" / task).read_json("results.json")["test single"]
    trained = [point["errors"] for point in own if (by, point["value"]) in CHANGES_NOTHING[task]]
    assert trained == [documented["errors"]] * len(trained)
    if by in ("position", "overlap"):
        assert sum(point.get("errors", 0) for point in own) == documented["errors"]


CHANGES_NOTHING = {
    "cluttered-60": (("clutter", 4), ("canvas", 60), ("digit", 28), ("glimpses", 8)),
    "cluttered-100": (("clutter", 4), ("canvas", 100), ("digit", 28), ("glimpses", 8)),
}
