"""Markdown tables of a results folder. A page names a table in a comment, see pages.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ram_gym import GlimpseConfig

from .cells import code, format_errors, format_interval, format_number, format_spread, markdown_table, spread
from .results import Results, StoredRun, as_options, differences

NIPS = "paper, NIPS version"
ARXIV = "paper, arXiv version"
SCRIPTS = {"oracle*": "the digit's centre", "scan*": "a scan", "random*": "random", "centre*": "the canvas's centre"}


def runs(results: Results, *patterns: str) -> str:
    """A line for each name, with all its seeds: what differs from the preset, errors, scenes, minutes, hardware."""
    rows = []
    for name, seeds in results.select(*patterns).items():
        errors = [format_errors([getattr(run.numbers, field) for run in seeds]) for field in _ERRORS]
        if len(seeds) == 1:
            errors[1] = format_interval(seeds[0].measured.get("test single"))
        options = as_options(seeds[0].differs)
        minutes = [format_number(run.numbers.minutes, ".1f") for run in seeds]
        hardware = ", ".join(dict.fromkeys(run.hardware for run in seeds))
        rows.append([code(name), code(options), *errors, _scenes(seeds), ", ".join(minutes), hardware])
    headings = ["run", "differs from the preset", "validation", "test, single", "test, average-10"]
    return markdown_table([*headings, "scenes", "minutes", "on"], rows, left=2)


_ERRORS = ("validation_percent", "test_percent", "average_percent")


def changes(results: Results, base: str, *patterns: str) -> str:
    """Runs of one seed compared with the run `base`: what each changes in it, distances of its glimpses, errors."""
    ((reference,),) = results.select(base).values()
    rows = []
    for name, (run,) in results.select(base, *patterns).items():
        options = as_options(differences(run.numbers.config, reference.numbers.config))
        distances = run.measured.get("validation single", {}).get("distance_by_glimpse_pixels")
        rows.append(
            [
                code(name),
                code(options),
                _scenes([run]),
                f"{distances[1]:.1f}, {distances[-1]:.1f}" if distances else "",
                format_number(run.numbers.validation_percent, ".2f"),
                format_interval(run.measured.get("test single")),
            ]
        )
    headings = ["run", "changes", "scenes", "distance of glimpse 2, of the last", "validation", "test, single"]
    return markdown_table(headings, rows, left=2)


def headline(results: Results, *names: str) -> str:
    """One run by name for each task: its error beside published ones and that of a network on the whole image."""
    published = _read_published(results)
    rows = []
    for name, seeds in results.select(*names).items():
        env = seeds[0].numbers.config.env_config
        entries = [entry for entry in published if _is_of(entry, seeds[0].numbers.config.task, env)]
        hard = [entry for entry in entries if entry["attention"] == "hard"]
        paper = [_published_error(hard, who, env.num_glimpses) for who in (ARXIV, NIPS)]
        best = min(hard, key=lambda entry: entry["error_percent"])
        whole = [
            run.numbers.test_percent
            for run in results.runs
            if (run.id.split("/")[0], run.numbers.agent) == ("full_image", "cnn")
            and (run.numbers.config.task, run.numbers.config.env_config.composition)
            == (seeds[0].numbers.config.task, env.composition)
        ]
        tests = [run.numbers.test_percent for run in seeds]
        average = spread([run.numbers.average_percent for run in seeds])
        rows.append(
            [
                _describe(seeds[0]),
                format_spread(tests) or format_errors(tests),
                f"{average[0]:.2f}" if average else "",
                str(len(seeds)),
                " / ".join(text or "-" for text in paper) if any(paper) else "",
                f"{best['error_percent']:.2f} ({best['who']})",
                ", ".join(format_number(error, ".2f") for error in whole),
                code(name),
            ]
        )
    headings = ["task", "ours, single", "ours, average-10", "seeds", "paper: arXiv / NIPS", "best published"]
    return markdown_table([*headings, "whole image, ours", "run"], rows)


def published(results: Results) -> str:
    """All entries of published.json."""
    rows = [
        [
            entry["task"] + (f', "{entry["composition"]}"' if entry["composition"] else ""),
            entry["who"],
            entry["attention"],
            str(entry["glimpses"] or ""),
            f"{entry['error_percent']:.2f}",
            entry["protocol"],
            entry["source"],
        ]
        for entry in _read_published(results)
    ]
    headings = ["task", "who", "attention", "glimpses", "test error", "protocol", "read in"]
    return markdown_table(headings, rows, left=3)


def by_glimpse(results: Results, *names: str) -> str:
    """Error after each glimpse, and its distance from the digit's centre: means over the seeds of each run."""
    rows = []
    for name, seeds in results.select(*names).items():
        tests = [run.measured["test single"] for run in seeds]
        errors = [f"{100 - accuracy:.2f}" for accuracy in _means(tests, "accuracy_by_glimpse_percent")]
        distances = [f"{distance:.1f}" for distance in _means(tests, "distance_by_glimpse_pixels")]
        last = ", ".join(f"{test['distance_by_glimpse_pixels'][-1]:.1f}" for test in tests)
        rows += [[code(name), "error in %", "", *errors], ["", "distance", last, *distances]]
        if all("spread_by_glimpse_pixels" in test for test in tests):
            spreads = [f"{spread:.1f}" for spread in _means(tests, "spread_by_glimpse_pixels")]
            rows.append(["", "varies by", "", *spreads])
    width = max(map(len, rows))
    rows = [[*row, *[""] * (width - len(row))] for row in rows]
    headings = ["run", "after glimpse", "last, each seed", *map(str, range(1, width - 2))]
    return markdown_table(headings, rows, left=2)


def _means(tests: Sequence[dict[str, Any]], field: str) -> list[float]:
    """Element-wise means over evaluations of a field that is a list."""
    return [statistics.mean(values) for values in zip(*(test[field] for test in tests), strict=True)]


def number_of_glimpses(results: Results, *names: str) -> str:
    """Error by number of glimpses: of the named runs stopped early, of runs trained for that number, of the paper."""
    rows = []
    for seeds in results.select(*names).values():
        run = seeds[0]
        task, env = run.numbers.config.task, run.numbers.config.env_config
        entries = [entry for entry in _read_published(results) if _is_of(entry, task, env)]
        tests = [run.measured["test single"] for run in seeds]
        stopped = [100 - accuracy for accuracy in _means(tests, "accuracy_by_glimpse_percent")]
        trained = {
            other.numbers.config.env_config.num_glimpses: other
            for other in results.runs
            if other.id.startswith(f"glimpses/{task}/")
        }
        for count in range(2, 9):
            paper = _published_error(entries, NIPS, count)
            if paper:
                own = trained.get(count)
                errors = [format_number(getattr(own.numbers, field), ".2f") if own else "" for field in _ERRORS[1:]]
                rows.append(
                    [
                        _describe(run),
                        str(count),
                        f"{stopped[count - 1]:.2f}" if count <= len(stopped) else "",
                        *errors,
                        paper,
                    ]
                )
    headings = ["task", "glimpses", "stopped after them", "trained for them, single", "trained for them, average-10"]
    return markdown_table([*headings, NIPS], rows)


def places(results: Results, *names: str) -> str:
    """Error of a network at its own locations and at scripted ones, from compare/NAME.json."""
    rows = []
    for name in names:
        own, *others = json.loads((results.root / "compare" / f"{name}.json").read_text())
        by_policy = {other["policy"]: other for other in others}
        rows.append([code(own["policy"]), *(_error_and_distances(row) for row in (own, *map(by_policy.get, SCRIPTS)))])
    return markdown_table(["network", "its own places", *SCRIPTS.values()], rows)


def _error_and_distances(evaluation: dict[str, Any]) -> str:
    distances = evaluation["distance_by_glimpse_pixels"]
    return f"{evaluation['error_percent']:.2f} ({distances[1]:.0f}, {distances[-1]:.0f})"


def probe(results: Results, by: str) -> str:
    """Error by a property of the scenes, from probes/*-PROPERTY.jsonl."""
    rows: list[list[str]] = []
    values: list[str] = []
    for path in sorted((results.root / "probes").glob(f"*-{by}.jsonl")):
        points = [json.loads(line) for line in path.read_text().splitlines()]
        policies = list(dict.fromkeys(point["policy"] for point in points))
        for policy in policies:
            own = [point for point in points if point["policy"] == policy]
            values = [str(point["value"]) for point in own]
            errors = [f"{point['error_percent']:.2f}" if point["episodes"] else "none" for point in own]
            rows.append(
                [code(policy) if policy.startswith("pretrained:") else f"{policy} places, its network", *errors]
            )
            if policy == policies[0] and by in ("clutter", "canvas"):
                last = [f"{point['distance_by_glimpse_pixels'][-1]:.1f}" for point in own]
                rows.append(["distance of its last glimpse", *last])
            if policy == policies[0] and by in ("position", "overlap"):
                rows.append(["scenes", *(f"{point['episodes']:,}" for point in own)])
    return markdown_table(["", *values], rows)


def memory(results: Results) -> str:
    """PPO with and without LSTM: final errors, and the best error of each in the training time of PPO."""
    rows = []
    for name, (recurrent,) in results.select("sb3/*/*ppo-lstm-*").items():
        ((control,),) = results.select(name.replace("ppo-lstm-", "ppo-")).values()
        curves = [_curve(run) for run in (recurrent, control)]
        seconds = curves[1][-1][0]
        reached = [[error for time, error in curve if time <= seconds] for curve in curves]
        tests = [format_number(run.numbers.test_percent, ".2f") for run in (recurrent, control)]
        best = [f"{min(errors):.2f}" if errors else "none yet" for errors in reached]
        options = as_options(recurrent.differs)
        steps = recurrent.numbers.config.to_dict()["total_timesteps"]
        task = recurrent.numbers.config.task
        rows.append([task, code(options), f"{steps:,}", *tests, f"{seconds:.0f}", *best])
    headings = ["task", "differs from the preset", "steps", "PPO with LSTM, test", "PPO, test"]
    headings += ["seconds of PPO", "PPO with LSTM by then, validation", "PPO by then, validation"]
    return markdown_table(headings, rows, left=2)


def _curve(run: StoredRun) -> list[tuple[float, float]]:
    lines = (run.numbers.path / "metrics.jsonl").read_text().splitlines()
    return [(row["train_seconds"], row["validation_error_percent"]) for row in map(json.loads, lines)]


def training_speed(results: Results) -> str:
    """Training images per second as a multiple of a plain PyTorch loop's, from benchmarks/results."""
    rows = []
    root = results.root.parent
    for path in sorted((root / "benchmarks" / "results").glob("**/training.json")):
        measured = json.loads(path.read_text())
        rates: dict[tuple[str, str], dict[tuple[str, int], dict[int, float]]] = {}
        for row in measured["rows"]:
            if row["device"] == "cpu":
                key = (row["measure"].rpartition(".")[2], row["variant"])
                batches = rates.setdefault(key, {}).setdefault((row["task"], row["threads"]), {})
                batches[row["batch"]] = row["rate"]["median"]
        plain = rates.get(("plain", "as published"), {})
        for variant, precision in (("", "float32"), ("bfloat16", "bfloat16")):
            ours = rates.get(("native", variant), {})
            for threads in sorted({threads for _, threads in ours}):
                alone = {case: rate for case, rate in ours.items() if case[1] == threads and len(rate) == 1}
                ratios = [max(rate.values()) / max(plain[case].values()) for case, rate in alone.items()]
                if ratios:
                    hardware = measured["hardware"]
                    machine = [hardware["cpu"], str(threads), f"{hardware['load_average_before']:.1f}"]
                    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
                    rows.append([*machine, precision, spread, code(str(path.parent.relative_to(root)))])
    headings = ["processor", "threads", "load before", "precision", "times the plain loop's rate, by task"]
    return markdown_table([*headings, "measured in"], sorted(rows))


TABLES: dict[str, Callable[..., str]] = {
    "runs": runs,
    "changes": changes,
    "headline": headline,
    "published": published,
    "by-glimpse": by_glimpse,
    "number-of-glimpses": number_of_glimpses,
    "places": places,
    "probe": probe,
    "memory": memory,
    "training-speed": training_speed,
}
"""Functions that make tables, by name. Each takes the results, then the words after its name in the comment."""


def _read_published(results: Results) -> list[dict[str, Any]]:
    return json.loads((results.root / "published.json").read_text())


def _is_of(entry: dict[str, Any], task: str, env: GlimpseConfig) -> bool:
    """Whether a published error is for this task and composition."""
    return entry["task"] == task and entry["composition"] in (None, env.composition)


def _published_error(entries: Sequence[dict[str, Any]], who: str, glimpses: int) -> str:
    """The error that a publication reports for hard attention with this number of glimpses; "" if it has none."""
    matching = [e for e in entries if (e["who"], e["glimpses"], e["attention"]) == (who, glimpses, "hard")]
    return f"{matching[0]['error_percent']:.2f}" if matching else ""


def _describe(run: StoredRun) -> str:
    config = run.numbers.config
    env = config.env_config
    return f'{config.task}, "{env.composition}"' if env.num_clutter else config.task


def _scenes(seeds: Sequence[StoredRun]) -> str:
    """Number of training scenes; the smallest and the largest number if seeds differ."""
    counts = sorted({f"{run.numbers.scenes / 1e6:.1f} M" for run in seeds if run.numbers.scenes is not None})
    return " to ".join(counts[:: max(len(counts) - 1, 1)])
