"""Several policies on several tasks: evaluated on the same scenes, and written as tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from ram_gym.evaluation import Evaluation, Policy, ProtocolName, compare, evaluate
from ram_gym.files import escape_csv, escape_markdown, printable
from ram_gym.statistics import Comparison
from ram_gym.vector_env import GlimpseVectorEnv


def evaluate_all(
    policies: Iterable[Policy | Callable[[GlimpseVectorEnv], Policy]],
    envs: Mapping[str, GlimpseVectorEnv],
    *,
    reference: str | None = None,
    protocol: ProtocolName = "single",
    episodes: int | None = None,
    on_batch: Callable[[str, str, int], None] | None = None,
) -> ComparisonTable:
    """Evaluates every policy on every task.

    Args:
        policies: policies, or functions that make a policy for an environment.
        envs: environments by task name; see `evaluate`.
        reference: name of the policy that the others are compared with; default: the first one.
        protocol: see `evaluate`.
        episodes: number of scenes of each task; None: all of the split.
        on_batch: called with task, policy and number of scenes played so far, after each batch.

    Raises:
        ValueError: before anything is played: no policy, no environment, two policies of one name, or no policy of the
            reference's name; later: see `evaluate` and `ComparisonTable`.
    """
    makers = list(policies)
    if not makers:
        raise ValueError("policies must hold at least one, got none")
    if not isinstance(envs, Mapping) or not envs:
        raise ValueError(f"envs must map tasks' names to environments, at least one, got {envs!r}")
    players = {task: [_make(maker, env) for maker in makers] for task, env in envs.items()}
    for task, made in players.items():
        names = [getattr(policy, "name", "") for policy in made]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"policies must have names of their own, got {min(twice)!r} twice on {task}")
        if reference is not None and reference not in names:
            raise ValueError(f"reference must be one of {', '.join(names)}, got {reference!r}")
    evaluations = []
    for task, env in envs.items():
        for policy in players[task]:

            def report(done: int, task: str = task, name: str = getattr(policy, "name", "")) -> None:
                if on_batch is not None:
                    on_batch(task, name, done)

            evaluations.append(evaluate(policy, env, task=task, protocol=protocol, episodes=episodes, on_batch=report))
    return ComparisonTable(evaluations, reference)


def _make(maker: Policy | Callable[[GlimpseVectorEnv], Policy], env: GlimpseVectorEnv) -> Policy:
    if hasattr(maker, "act") and not isinstance(maker, type):
        return cast(Policy, maker)
    if not callable(maker):
        raise ValueError(f"policies must be policies or functions that make one for an environment, got {maker!r}")
    try:
        return maker(env)
    except Exception as error:
        error.add_note(
            "(functions must make a policy for an environment; as_policy makes a policy of a function that acts)"
        )
        raise


class Section(NamedTuple):
    """One table for readers: a title, a note on what it shows, headings, and rows of as many cells."""

    title: str
    note: str
    headings: list[str]
    rows: list[list[str]]


class ComparisonTable:
    """Evaluations of several policies on one or more tasks, and their paired differences to a reference.

    Args:
        evaluations: at least one, in the order of the rows.
        reference: name of the policy that the others are compared with; default: the first one of each task. A task
            without an evaluation of it has no differences.
        labels: what tables call the policies, by name; default: their names.
        note: added to the note of every table of results.
        task_labels: what tables call the tasks, by name; default: their names.

    Raises:
        ValueError: there is no evaluation; two have the same task and policy; those of a task differ in scenes,
            protocol or number of glimpses; or no policy has the reference's name.
    """

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        reference: str | None = None,
        labels: Mapping[str, str] | None = None,
        note: str = "",
        task_labels: Mapping[str, str] | None = None,
    ) -> None:
        if not evaluations:
            raise ValueError("evaluations must hold at least one, got none")
        names = list(dict.fromkeys(evaluation.policy for evaluation in evaluations))
        if reference is not None and reference not in names:
            raise ValueError(f"reference must be one of {', '.join(names)}, got {reference!r}")
        self.by_task: dict[str, dict[str, Evaluation]] = {}
        self.labels = {name: printable((labels or {}).get(name, name)) for name in names}
        for evaluation in evaluations:
            by_policy = self.by_task.setdefault(evaluation.task, {})
            if evaluation.policy in by_policy:
                raise ValueError(f"policies must have names of their own, got {evaluation.policy!r} twice")
            by_policy[evaluation.policy] = evaluation
        tasks = dict.fromkeys(evaluation.task for evaluation in evaluations)
        self.task_labels = {task: printable((task_labels or {}).get(task, task)) or "results" for task in tasks}
        self._reference, self._note = reference, f"; {printable(note)}" if note else ""
        self._comparisons: dict[tuple[str, str], Comparison] = {}
        for task, by_policy in self.by_task.items():
            first = next(iter(by_policy.values()))
            for evaluation in by_policy.values():
                if evaluation.protocol != first.protocol:
                    raise ValueError(
                        f"evaluations on {task!r} must be of one protocol, got {first.protocol!r} for "
                        f"{first.policy!r} and {evaluation.protocol!r} for {evaluation.policy!r}"
                    )
                compare(evaluation, first)  # refuses other scenes
                ours, theirs = evaluation.env_config.num_glimpses, first.env_config.num_glimpses
                if ours != theirs:
                    raise ValueError(
                        f"evaluations on {task!r} must be of one number of glimpses, got {theirs} for {first.policy!r} "
                        f"and {ours} for {evaluation.policy!r}: give them different tasks' names, or use compare"
                    )
            base = self.reference(task)
            for name, evaluation in by_policy.items():
                if base is not None and name != base:
                    self._comparisons[task, name] = compare(evaluation, by_policy[base])

    def reference(self, task: str) -> str | None:
        """Name of the policy that the others are compared with on a task; None if the task has no evaluation of it."""
        by_policy = self.by_task[task]
        if self._reference is None:
            return next(iter(by_policy))
        return self._reference if self._reference in by_policy else None

    def comparison(self, task: str, policy: str) -> Comparison | None:
        """A policy's paired difference to the reference; None for the reference itself and without a reference."""
        return self._comparisons.get((task, policy))

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each evaluation, as in JSON and CSV.

        It has the entries of `Evaluation.to_dict`, `scenes_per_second` and `reference`. All policies but the reference
        also have their paired differences to it, of errors and of accuracies, in percentage points, and McNemar's
        exact p.
        """
        rows = []
        for task, by_policy in self.by_task.items():
            for name, evaluation in by_policy.items():
                row = {**evaluation.to_dict(), "scenes_per_second": evaluation.scenes_per_second}
                row["reference"] = self.reference(task)
                difference = self.comparison(task, name)
                if difference is not None:
                    row["difference_percent"] = difference.difference_percent
                    row["difference_interval_percent"] = list(difference.interval_percent)
                    row["accuracy_difference_percent"] = difference.accuracy_difference_percent
                    row["accuracy_difference_interval_percent"] = list(difference.accuracy_interval_percent)
                    row["p_value"] = difference.p_value
                rows.append(row)
        return rows

    def sections(self, task: str) -> list[Section]:
        """The tables of a task: results; accuracy and distance (where known) and spread by glimpse."""
        evaluations = list(self.by_task[task].values())
        first, reference = evaluations[0], self.reference(task)
        against = f"paired difference to {self.labels[reference]}" if reference is not None else "difference"
        results = Section(
            f"{self.task_labels[task]}, {first.split} split, {first.protocol} protocol, {first.episodes} scenes",
            f"accuracy with Wilson's interval; {against} in points, with Tango's interval; p: McNemar's exact test"
            f"{self._note}",
            ["policy", "accuracy % (95% interval)", "difference (95% interval)", "p", "scenes/s"],
            [self._result_cells(task, evaluation) for evaluation in evaluations],
        )
        headings = ["policy", *(str(number + 1) for number in range(first.env_config.num_glimpses))]

        def cells(form: str, of: Callable[[Evaluation], Sequence[float] | None]) -> list[list[str]]:
            rows = [(self.labels[evaluation.policy], of(evaluation)) for evaluation in evaluations]
            return [[label, *map(form.format, values)] for label, values in rows if values is not None]

        whose = "" if first.protocol == "single" else "; first rollout alone"
        chosen = f"the environment chose the first location{whose}"
        early = Section(
            "accuracy % after each glimpse",
            f"of policies that can answer early{whose}",
            headings,
            cells("{:.2f}", lambda evaluation: evaluation.accuracy_by_glimpse_percent),
        )
        distance = Section(
            "pixels from the image's centre at each glimpse",
            f"mean over scenes; {chosen}",
            headings,
            cells("{:.1f}", lambda evaluation: evaluation.distance_by_glimpse_pixels),
        )
        spread = Section(
            "pixels from each glimpse's mean location",
            f"root mean square; 0: the same location in every scene; {chosen}",
            headings,
            cells("{:.1f}", lambda evaluation: evaluation.spread_by_glimpse_pixels),
        )
        return [results, *(section for section in (early, distance) if section.rows), spread]

    def _result_cells(self, task: str, evaluation: Evaluation) -> list[str]:
        difference = self.comparison(task, evaluation.policy)
        cells = [
            self.labels[evaluation.policy],
            format_interval("{:.2f}", evaluation.accuracy_percent, evaluation.accuracy_interval_percent),
            "",
            "",
            f"{evaluation.scenes_per_second:,.0f}",
        ]
        if difference is not None:
            value, interval = difference.accuracy_difference_percent, difference.accuracy_interval_percent
            p_value = f"{difference.p_value:.2g}" if difference.p_value > 1e-99 else "<1e-99"
            cells[2:4] = [format_interval("{:+.2f}", value, interval), p_value]
        return cells

    def to_text(self) -> str:
        """Plain text in columns, for a terminal."""
        parts = []
        for task in self.by_task:
            for section in self.sections(task):
                table = [section.headings, *section.rows]
                widths = [max(map(len, column)) for column in zip(*table, strict=True)]
                lines = [
                    "  ".join(cell.rjust(w) if n else cell.ljust(w) for n, (cell, w) in enumerate(cells)).rstrip()
                    for cells in (list(zip(row, widths, strict=True)) for row in table)
                ]
                rule = "  ".join("-" * width for width in widths)
                parts.append("\n".join([section.title, f"({section.note})", lines[0], rule, *lines[1:]]))
        return "\n\n".join(parts) + "\n"

    def to_markdown(self) -> str:
        """Markdown: a heading and tables for each task."""
        parts = []
        for task in self.by_task:
            for level, section in enumerate(self.sections(task)):
                lines = [section.headings, ["---", *["---:"] * (len(section.headings) - 1)], *section.rows]
                table = ["| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines]
                title = escape_markdown(section.title)
                heading = f"## {title}" if level == 0 else f"**{title}**"
                parts.append("\n".join([heading, "", f"{escape_markdown(section.note)}.", "", *table]))
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """CSV: one line for each evaluation. Intervals and lists by glimpse have a column for each number.

        Names that a spreadsheet would take for formulas, since they begin with =, +, - or @, get a ' in front.
        """
        flat = [_flatten(row) for row in self.rows()]
        columns = list(dict.fromkeys(key for row in flat for key in row))
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return file.getvalue()

    def to_json(self) -> str:
        """A JSON array of `rows()`."""
        return json.dumps(self.rows(), allow_nan=False)


def format_interval(form: str, value: float, interval: tuple[float, float]) -> str:
    """A number and its interval, each in the given form: "1.0 (0.5 to 1.5)"."""
    low, high = interval
    return f"{form.format(value)} ({form.format(low)} to {form.format(high)})"


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("interval_percent"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value
        elif isinstance(value, list):
            flat |= {f"{key}_{number}": entry for number, entry in enumerate(value, 1)}
        elif value is not None:
            flat[key] = escape_csv(value) if isinstance(value, str) else value
    return flat
