"""The tables and pages of results, from made-up runs, with numbers computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.analysis.pages import fill, stale_files
from agents.analysis.results import Results, as_options, differences
from agents.analysis.tables import TABLES
from agents.ram.config import RamConfig, preset
from agents.registry import preset as registered_preset
from agents.training.fingerprint import describe_data
from agents.training.run_folder import RunError, RunFolder
from ram_gym import GlimpseConfig

DATA = describe_data(GlimpseConfig(dataset="digits"))


def evaluation(errors: int, accuracies: list[float] | None = None) -> dict[str, Any]:
    """What `evaluate` stores of 10,000 scenes, as far as tables read it."""
    error = errors / 100
    found: dict[str, Any] = {"episodes": 10_000, "errors": errors, "error_percent": error}
    found["interval_percent"] = [error - 0.25, error + 0.5]
    if accuracies is not None:
        found["accuracy_by_glimpse_percent"] = accuracies
        found["distance_by_glimpse_pixels"] = [20.0 - 2 * number for number in range(len(accuracies))]
        found["spread_by_glimpse_pixels"] = [10.0] * len(accuracies)
    return found


def make_run(root: Path, name: str, config: Any, measured: dict[str, Any], agent: str = "ram") -> RunFolder:
    folder = RunFolder(root / name / f"seed-{config.seed}", ["train", "--out", f"runs/old-{name[-1]}"])
    folder.create(agent, config, DATA)
    folder.write_json("results.json", measured)
    return folder


def trained(validation: float, **more: Any) -> dict[str, Any]:
    return {"validation": {"error_percent": validation, "train_seconds": 90.0, "scenes": 1_500_000, "epochs": 3}} | more


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    for seed, errors in enumerate((100, 250, 400)):
        found = trained(errors / 100 + 0.5, **{"test single": evaluation(errors, [20.0, 90.0, 100 - errors / 100])})
        found["test average-10"] = evaluation(errors // 2)
        make_run(root, "main/translated-60/preset", replace(preset("translated-60"), seed=seed), found)
    base = replace(preset("mnist-28"), epochs=40)
    measured = trained(1.25, **{"validation single": {"error_percent": 1.25, "distance_by_glimpse_pixels": [9, 5, 4]}})
    make_run(root, "ablations/mnist-28/reference", base, measured)
    scan = replace(base, locator="scan", locator_gradient_into_core=True)
    make_run(root, "ablations/mnist-28/scan", scan, trained(2.0, **{"test single": evaluation(207)}))
    whole = registered_preset("cnn", "translated-60")
    make_run(root, "full_image/translated-60/cnn", whole, trained(0.5, **{"test single": evaluation(40)}), "cnn")
    published = [
        {"task": task, "composition": None, "glimpses": glimpses, "error_percent": error, "who": who}
        | {"attention": attention, "protocol": "not stated", "source": "a book"}
        for task, glimpses, error, who, attention in (
            ("translated-60", 8, 1.84, "paper, arXiv version", "hard"),
            ("translated-60", 2, 9.1, "paper, NIPS version", "hard"),
            ("translated-60", 8, 0.5, "someone", "soft"),
            ("mnist-28", 6, 0.1, "another", "hard"),
        )
    ]
    (root / "published.json").write_text(json.dumps(published))
    return root


def table(root: Path, *words: str) -> list[list[str]]:
    """The cells of a table, without its headings' underlining."""
    lines = TABLES[words[0]](Results(root), *words[1:]).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_runs_of_one_name_are_a_row_with_their_spread(root: Path) -> None:
    (headings, row) = table(root, "runs", "main/*/*")
    # By hand: the mean of 1.5, 3 and 4.5 is 3, the deviations -1.5, 0 and 1.5, so the sample's is sqrt(4.5 / 2) = 1.5.
    assert row[: len(headings) - 1] == [
        "`main/translated-60/preset`",
        "1.50, 3.00, 4.50 (3.00 ± 1.50)",
        "1.00, 2.50, 4.00 (2.50 ± 1.50)",
        "0.50, 1.25, 2.00 (1.25 ± 0.75)",
        "1.5 M",
        "1.5, 1.5, 1.5",
    ]
    assert headings[:4] == ["run", "validation", "test, single", "test, average-10"]  # no preset differs from itself
    _, reference, scan = table(root, "runs", "ablations/*/*")
    assert reference[:3] == ["`ablations/mnist-28/reference`", "`--epochs 40`", "1.25"]
    assert scan[1:4] == ["`--epochs 40 --locator scan --locator-gradient-into-core`", "2.00", "2.07 (1.82 to 2.57)"]


def test_changes_are_to_the_run_named_first(root: Path) -> None:
    _, reference, scan = table(root, "changes", "ablations/mnist-28/reference", "ablations/mnist-28/*")
    assert reference == ["`ablations/mnist-28/reference`", "", "1.5 M", "5.0, 4.0", "1.25", ""]
    changed = "`--locator scan --locator-gradient-into-core`"
    assert scan == ["`ablations/mnist-28/scan`", changed, "1.5 M", "", "2.00", "2.07 (1.82 to 2.57)"]


def test_the_headline_has_ours_the_papers_the_best_and_the_whole_images(root: Path) -> None:
    headings, row = table(root, "headline", "main/translated-60/preset")
    assert row == [
        "translated-60",
        "2.50 ± 1.50",
        "1.25",
        "3",
        "1.84 / -",
        "1.84 (paper, arXiv version)",  # 0.5 is of soft attention
        "0.40",
        "`main/translated-60/preset`",
    ]
    assert headings[1:3] == ["ours, single", "ours, average-10"]


def test_tables_by_glimpse_are_means_over_seeds(root: Path) -> None:
    headings, error, distance, spread = table(root, "by-glimpse", "main/translated-60/preset")
    assert headings[3:] == ["1", "2", "3"]
    assert error[3:] == ["80.00", "10.00", "2.50"]
    assert distance[2:] == ["16.0, 16.0, 16.0", "20.0", "18.0", "16.0"]
    assert spread[3:] == ["10.0"] * 3
    ((_, *row),) = table(root, "number-of-glimpses", "main/translated-60/preset")[1:]
    assert row == ["2", "10.00", "9.10"]  # no run was trained for two


def test_probes_and_places_are_read_from_their_files(root: Path) -> None:
    for folder in ("compare", "probes"):
        (root / folder).mkdir()
    own = evaluation(190, [0.0, 98.1])
    scripts = [evaluation(100 * number, [0.0, 0.0]) | {"policy": name} for number, name in enumerate("abcd")]
    names = ("oracle*", "scan*", "random*", "centre*")
    scripts = [found | {"policy": name} for found, name in zip(scripts, names, strict=True)]
    (root / "compare" / "x.json").write_text(json.dumps([own | {"policy": "pretrained:x"}, *reversed(scripts)]))
    rows = table(root, "places", "x")
    assert rows[1] == ["`pretrained:x`", "1.90 (18, 18)", *(f"{number}.00 (18, 18)" for number in range(4))]
    points = [own | {"policy": "pretrained:x", "by": "clutter", "value": value} for value in (0, 4)]
    points += [own | {"policy": "random", "by": "clutter", "value": value, "error_percent": 9.0} for value in (0, 4)]
    (root / "probes" / "x-clutter.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    assert table(root, "probe", "clutter") == [
        ["", "0", "4"],
        ["`pretrained:x`", "1.90", "1.90"],
        ["distance of its last glimpse", "18.0", "18.0"],
        ["random places, its network", "9.00", "9.00"],
    ]


def test_training_speed_is_the_ratio_of_medians_by_precision_and_threads(root: Path) -> None:
    def row(measure: str, variant: str, task: str, batch: int, rate: float) -> dict[str, Any]:
        case = {"measure": f"training.{measure}", "variant": variant, "task": task, "batch": batch, "threads": 2}
        return {**case, "device": "cpu", "rate": {"median": rate}}

    rows = [row("plain", "as published", "a", 32, 10.0), row("plain", "as published", "b", 32, 20.0)]
    rows += [row("native", "", "a", 1024, 75.0), row("native", "", "b", 2048, 180.0)]
    rows += [row("native", "bfloat16", "a", 1024, 140.0)]
    path = root.parent / "benchmarks" / "results" / "machine" / "training.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"rows": rows, "hardware": {"cpu": "CPU", "load_average_before": 0.91}}))
    where = ["CPU", "2", "0.9"]
    assert table(root, "training-speed")[1:] == [
        [*where, "bfloat16", "14.0 to 14.0", "`benchmarks/results/machine`"],
        [*where, "float32", "7.5 to 9.0", "`benchmarks/results/machine`"],
    ]


def test_recurrent_and_plain_agents_are_compared_at_equal_time(root: Path) -> None:
    for name, agent, times in (
        ("ppo-lstm-reward", "sb3-ppo-lstm", (40, 90, 150)),
        ("ppo-reward", "sb3-ppo", (30, 100)),
    ):
        config = registered_preset(agent, "digits")
        folder = make_run(root, f"sb3/digits/{name}", config, trained(5.0, **{"test single": evaluation(700)}), agent)
        for epoch, seconds in enumerate(times, 1):
            row = {"epoch": epoch, "train_seconds": seconds, "validation_error_percent": 50.0 - 10 * epoch}
            folder.append_metrics(row)
    (_, row) = table(root, "memory")
    # PPO ends after 100 s with 30; by then the recurrent one has had two epochs, the third ends later.
    assert row[-5:] == ["7.00", "7.00", "100", "30.00", "30.00"]


def test_the_index_has_what_differs_and_the_old_name(root: Path) -> None:
    lines = [json.loads(line) for line in Results(root).index().splitlines()]
    scan = next(line for line in lines if line["id"] == "ablations/mnist-28/scan/seed-0")
    assert scan["differs"] == {"epochs": 40, "locator": "scan", "locator_gradient_into_core": True}
    assert (scan["old_name"], scan["test_percent"], scan["minutes"], scan["scenes"]) == ("old-n", 2.07, 1.5, 1_500_000)
    assert scan["test_interval_percent"] == [1.82, 2.57]
    assert [line["seed"] for line in lines if line["task"] == "translated-60"] == [0, 0, 1, 2]


def test_differences_leave_out_where_it_ran() -> None:
    ours = RamConfig(seed=3, device="cuda", cuda_graph=True, final_location_std=0.1, baseline_weight=2.0)
    assert as_options(differences(ours, RamConfig())) == "--final-location-std 0.1 --baseline-weight 2.0"
    assert as_options(differences(RamConfig(), ours)) == "--final-location-std None --baseline-weight 1.0"
    options = as_options({"locator_gradient_into_core": False, "channels": [16, 32]})
    assert options == "--no-locator-gradient-into-core --channels 16 32"


def test_a_run_in_the_wrong_place_or_unlike_its_seeds_is_refused(root: Path) -> None:
    config = replace(preset("translated-60"), seed=3, epochs=7)
    odd = make_run(root, "main/translated-60/preset", config, trained(1.0))
    with pytest.raises(RunError, match="main/translated-60/preset: seeds differ in epochs too"):
        Results(root)
    odd.path.rename(root / "main" / "translated-60" / "preset" / "seed-4")
    with pytest.raises(RunError, match=r"must be at .*/GROUP/translated-60/NAME/seed-3"):
        Results(root)


def test_pages_are_filled_and_stale_ones_are_named(root: Path) -> None:
    page = root.parent / "RESULTS.md"
    text = "typed\n\n<!-- table: headline main/translated-60/preset -->\n| old |\n<!-- end -->\n\ntyped too\n"
    page.write_text(text)
    stale = dict(stale_files(root.parent))
    assert set(stale) == {page, root / "index.jsonl"}
    assert stale[page].startswith(
        "typed\n\n<!-- table: headline main/translated-60/preset -->\n| task | ours, single |"
    )
    assert stale[page].endswith("|\n<!-- end -->\n\ntyped too\n")
    assert "old" not in stale[page]
    for path, new in stale.items():
        path.write_text(new)
    assert not list(stale_files(root.parent))
    for wrong, message in (
        ("<!-- table: rums x -->\n<!-- end -->\n", "RESULTS.md: tables are runs, .*, got 'rums x'"),
        ("<!-- table: runs none/*/* -->\n<!-- end -->\n", "holds no run 'none/"),
        ("<!-- table: runs main/*/* -->\n", "needs an <!-- end -->"),
    ):
        page.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            list(stale_files(root.parent))
    assert fill("no table\n", Results(root)) == "no table\n"
