"""Tables: Markdown tables of a results folder, by kind. A page names one in a comment, see pages.py."""

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
    """Runs by name, their seeds in one line: what differs from the preset, errors, scenes, minutes, hardware."""
    rows = []
    for name, seeds in results.select(*patterns).items():
        errors = [format_errors([getattr(run.numbers, field) for run in seeds]) for field in _ERRORS]
        if len(seeds) == 1:
            errors[1] = format_interval(seeds[0].measured.get("test single"))
        options = as_options(seeds[0].differs)
        minutes = [format_number(run.numbers.minutes, ".1f") for run in seeds]
        where = ", ".join(dict.fromkeys(run.hardware for run in seeds))
        rows.append([code(name), code(options), *errors, _scenes(seeds), ", ".join(minutes), where])
    headings = ["run", "differs from the preset", "validation", "test, single", "test, average-10"]
    return markdown_table([*headings, "scenes", "minutes", "on"], rows, left=2)


_ERRORS = ("validation_percent", "test_percent", "average_percent")


def changes(results: Results, base: str, *patterns: str) -> str:
    """Runs of one seed beside one of them, `base`: what each changes in it, where it looks, errors."""
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
    """Everything in published.json."""
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
    """Error after each glimpse, and where it lies: means over the seeds of each run."""
    rows = []
    for name, seeds in results.select(*names).items():
        found = [run.measured["test single"] for run in seeds]
        errors = [f"{100 - accuracy:.2f}" for accuracy in _means(found, "accuracy_by_glimpse_percent")]
        distances = [f"{distance:.1f}" for distance in _means(found, "distance_by_glimpse_pixels")]
        last = ", ".join(f"{test['distance_by_glimpse_pixels'][-1]:.1f}" for test in found)
        rows += [[code(name), "error in %", "", *errors], ["", "distance", last, *distances]]
        if all("spread_by_glimpse_pixels" in test for test in found):
            spreads = [f"{spread:.1f}" for spread in _means(found, "spread_by_glimpse_pixels")]
            rows.append(["", "varies by", "", *spreads])
    most = max(map(len, rows))
    rows = [[*row, *[""] * (most - len(row))] for row in rows]
    headings = ["run", "after glimpse", "last, each seed", *map(str, range(1, most - 2))]
    return markdown_table(headings, rows, left=2)


def _means(found: Sequence[dict[str, Any]], field: str) -> list[float]:
    """Means, over seeds, of a list that each measurement has."""
    return [statistics.mean(values) for values in zip(*(test[field] for test in found), strict=True)]


def number_of_glimpses(results: Results, *names: str) -> str:
    """Error by number of glimpses: the named runs stopped early, runs trained for that number, and the paper."""
    rows = []
    for seeds in results.select(*names).values():
        run = seeds[0]
        task, env = run.numbers.config.task, run.numbers.config.env_config
        entries = [entry for entry in _read_published(results) if _is_of(entry, task, env)]
        found = [each.measured["test single"] for each in seeds]
        stopped = [100 - accuracy for accuracy in _means(found, "accuracy_by_glimpse_percent")]
        trained = {
            each.numbers.config.env_config.num_glimpses: each
            for each in results.runs
            if each.id.startswith(f"glimpses/{task}/")
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
    """What a network errs when it looks at other places than its own, from compare/NAME.json."""
    rows = []
    for name in names:
        own, *others = json.loads((results.root / "compare" / f"{name}.json").read_text())
        by_policy = {other["policy"]: other for other in others}
        rows.append(
            [code(own["policy"]), *(_error_and_distances(each) for each in (own, *map(by_policy.get, SCRIPTS)))]
        )
    return markdown_table(["network", "its own places", *SCRIPTS.values()], rows)


def _error_and_distances(found: dict[str, Any]) -> str:
    distances = found["distance_by_glimpse_pixels"]
    return f"{found['error_percent']:.2f} ({distances[1]:.0f}, {distances[-1]:.0f})"


def probe(results: Results, by: str) -> str:
    """Error by a property of the scenes, from probes/*-PROPERTY.jsonl."""
    rows: list[list[str]] = []
    values: list[str] = []
    for path in sorted((results.root / "probes").glob(f"*-{by}.jsonl")):
        points = [json.loads(line) for line in path.read_text().splitlines()]
        policies = list(dict.fromkeys(point["policy"] for point in points))
        for policy in policies:
            found = [point for point in points if point["policy"] == policy]
            values = [str(point["value"]) for point in found]
            errors = [f"{point['error_percent']:.2f}" if point["episodes"] else "none" for point in found]
            rows.append(
                [code(policy) if policy.startswith("pretrained:") else f"{policy} places, its network", *errors]
            )
            if policy == policies[0] and by in ("clutter", "canvas"):
                last = [f"{point['distance_by_glimpse_pixels'][-1]:.1f}" for point in found]
                rows.append(["distance of its last glimpse", *last])
            if policy == policies[0] and by in ("position", "overlap"):
                rows.append(["scenes", *(f"{point['episodes']:,}" for point in found)])
    return markdown_table(["", *values], rows)


def memory(results: Results) -> str:
    """Stable-Baselines3's agents side by side, and what each had reached when the one without a memory was done."""
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
    """Images a second in training, as a multiple of plain PyTorch code's, from benchmarks/results."""
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
                    where = [hardware["cpu"], str(threads), f"{hardware['load_average_before']:.1f}"]
                    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
                    rows.append([*where, precision, spread, code(str(path.parent.relative_to(root)))])
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
"""Kinds of tables. Each takes the results, then the words that follow its name in the comment."""


def _read_published(results: Results) -> list[dict[str, Any]]:
    return json.loads((results.root / "published.json").read_text())


def _is_of(entry: dict[str, Any], task: str, env: GlimpseConfig) -> bool:
    """Whether a published figure is of a task with this composition."""
    return entry["task"] == task and entry["composition"] in (None, env.composition)


def _published_error(entries: Sequence[dict[str, Any]], who: str, glimpses: int) -> str:
    """What a work reports of hard attention with so many glimpses."""
    found = [e for e in entries if (e["who"], e["glimpses"], e["attention"]) == (who, glimpses, "hard")]
    return f"{found[0]['error_percent']:.2f}" if found else ""


def _describe(run: StoredRun) -> str:
    config = run.numbers.config
    env = config.env_config
    return f'{config.task}, "{env.composition}"' if env.num_clutter else config.task


def _scenes(seeds: Sequence[StoredRun]) -> str:
    """Training scenes; of seeds that differ in them, the fewest and the most."""
    counts = sorted({f"{run.numbers.scenes / 1e6:.1f} M" for run in seeds if run.numbers.scenes is not None})
    return " to ".join(counts[:: max(len(counts) - 1, 1)])
