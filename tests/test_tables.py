"""Tables of several policies on several tasks."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import os
import re
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt

from ram_gym import ComparisonTable, Evaluation, GlimpseVectorEnv, compare, evaluate, evaluate_all
from ram_gym.files import printable

OPTIONS: dict[str, Any] = {"patch_size": 4, "split": "test", "output": "torch", "autoreset_mode": "Disabled"}


class UpTo:
    """Right on the scenes before `count`; answers early where the count is even."""

    def __init__(self, env: GlimpseVectorEnv, count: int, name: str | None = None) -> None:
        self.env, self.count, self.name = env, count, name or f"{count} | right"
        self.answers_early = count % 2 == 0

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        label = torch.where(self.env._index < self.count, self.env.labels, (self.env.labels + 1) % 5)
        return {"location": torch.zeros_like(observation["location"]), "label": label}, 1


@pytest.fixture
def envs(small_images: tuple) -> dict[str, GlimpseVectorEnv]:
    return {
        "small": GlimpseVectorEnv(8, dataset=small_images, canvas_size=12, num_glimpses=2, **OPTIONS),
        "large": GlimpseVectorEnv(8, dataset=small_images, canvas_size=40, num_glimpses=4, **OPTIONS),
    }


def test_what_cannot_be_compared_is_refused_before_anything_is_played(envs: dict[str, GlimpseVectorEnv]) -> None:
    def refusal(policies: Any, envs: Any, **options: Any) -> str:
        with pytest.raises(ValueError) as refused:
            evaluate_all(policies, envs, on_batch=lambda *_: pytest.fail("played"), **options)
        return str(refused.value)

    makers = [lambda env: UpTo(env, 3), lambda env: UpTo(env, 3)]
    assert refusal(makers, envs) == "policies must have names of their own, got '3 | right' twice on small"
    assert refusal(makers[:1], envs, reference="4") == "reference must be one of 3 | right, got '4'"
    assert refusal([], envs) == "policies must hold at least one, got none"
    assert "envs must map tasks' names" in refusal(makers[:1], envs["small"])
    assert "envs must map tasks' names" in refusal(makers[:1], {})
    assert "got 3" in refusal([3], envs)
    with pytest.raises(TypeError) as failed:
        evaluate_all([lambda observation: observation["location"]], envs)  # type: ignore[index,list-item]
    assert "as_policy makes a policy of a function that acts" in failed.value.__notes__[0]


@pytest.fixture
def table(envs: dict[str, GlimpseVectorEnv]) -> ComparisonTable:
    makers = [lambda env, count=count: UpTo(env, count) for count in (20, 13, 8)]
    return evaluate_all(makers, envs, reference="13 | right")


def test_rows_are_what_evaluate_and_compare_say(table: ComparisonTable, envs: dict[str, GlimpseVectorEnv]) -> None:
    rows = table.rows()
    assert [(row["task"], row["policy"]) for row in rows] == [
        (task, f"{count} | right") for task in envs for count in (20, 13, 8)
    ]
    alone = {count: evaluate(UpTo(envs["large"], count), envs["large"], task="large") for count in (20, 13, 8)}
    for row, count in zip(rows[3:], alone, strict=True):
        assert alone[count].to_dict().items() <= row.items()
        assert row["accuracy_percent"] == 5 * count
        assert row["reference"] == "13 | right"
        assert row["scenes_per_second"] > 0
        if count == 13:
            assert "p_value" not in row
            continue
        difference = compare(alone[count], alone[13])
        assert row["accuracy_difference_percent"] == 5 * (count - 13) == -row["difference_percent"]
        assert row["p_value"] == difference.p_value == 2 * 0.5 ** abs(count - 13)
        assert row["difference_interval_percent"] == list(difference.interval_percent)
        assert row["accuracy_difference_interval_percent"] == list(difference.accuracy_interval_percent)


def test_json_and_csv_hold_the_rows(table: ComparisonTable) -> None:
    rows = table.rows()
    assert json.loads(table.to_json()) == rows
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line["policy"] == row["policy"]
        assert float(line["accuracy_percent"]) == row["accuracy_percent"]
        assert [float(line[f"interval_percent_{end}"]) for end in ("low", "high")] == row["interval_percent"]
        distances = [line[f"distance_by_glimpse_pixels_{n}"] for n in range(1, 5)]
        assert [float(value) for value in distances if value] == row["distance_by_glimpse_pixels"]
        assert bool(line["accuracy_by_glimpse_percent_1"]) == (row["policy"] != "13 | right")
        assert bool(line["p_value"]) == ("p_value" in row)


def test_text_and_markdown_show_every_policy_and_task(table: ComparisonTable) -> None:
    text, markdown = table.to_text(), table.to_markdown()
    assert "100.00 (83.89 to 100.00)" in text
    assert "+35.00 (+" in text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in lines if "accuracy" in line or "right" in line}
    assert widths == {6, 4}  # of results, of two glimpses; and of four glimpses, which is six again
    for count in (20, 13, 8):
        # Results and distances on either task, and answers by glimpse where they are early.
        assert markdown.count(f"| {count} \\| right |") == text.count(f"{count} | right") - (count == 13) * 2
    for name in ("small", "large"):
        assert f"## {name}, test split, single protocol, 20 scenes" in markdown
    block = text[text.index("accuracy % after each glimpse") :].splitlines()
    assert block[4].split() == ["20", "|", "right", "100.00", "100.00"]


def test_labels_and_the_reference_if_none_is_named(table: ComparisonTable, envs: dict[str, GlimpseVectorEnv]) -> None:
    evaluations = list(table.by_task["small"].values())
    shown = ComparisonTable(evaluations, labels={"8 | right": "short"}).to_text()
    assert "short" in shown
    assert "8 | right" not in shown
    assert ComparisonTable(evaluations).reference("small") == "20 | right"


def test_p_values_too_small_for_a_number_are_bounds(table: ComparisonTable) -> None:
    names = ("labels", "predictions", "answers", "locations", "digit_locations")
    many = torch.arange(600) % 20
    played = list(table.by_task["small"].values())[::2]  # right on all, and on 8 of 20: 360 of 600 differ
    played = [dataclasses.replace(one, **{name: getattr(one, name)[many] for name in names}) for one in played]
    shown = ComparisonTable(played)
    assert shown.comparison("small", "8 | right").p_value == pytest.approx(2.0**-359)
    assert "<1e-99 |" in shown.to_markdown()
    few = ComparisonTable([one.subset(torch.arange(600) < 20) for one in played]).to_markdown()
    assert f"| {2.0**-11:.2g} |" in few


NAMES = [
    "<lambda>",
    "<script>alert(1)</script>",
    "two\nlines",
    "a | b \\| c",
    "**bold** _it_ `code` ~~gone~~",
    "[link](javascript:1) ![x](y)",
    "&lt;&amp;",
    "$x$",
    "=1+1",
    "-5",
    " @sum",
    "\x1b]0;title\x07",
    os.fsdecode(b"run-\xff"),
]


@pytest.fixture
def named(table: ComparisonTable) -> ComparisonTable:
    first = next(iter(table.by_task["small"].values()))
    return ComparisonTable([dataclasses.replace(first, policy=name) for name in NAMES], note="* <b>a</b>\n\n# b")


def test_markdown_shows_every_name_and_note_unchanged(named: ComparisonTable) -> None:
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(named.to_markdown())
    rows = re.findall(r"<tr>\n<td>(.*?)</td>", page)
    assert [html.unescape(cell) for cell in rows[: len(NAMES)]] == [printable(name).strip() for name in NAMES]
    assert set(re.findall(r"<(\w+)", page)) == {"h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert "; * &lt;b&gt;a&lt;/b&gt;  # b.</p>" in page


def test_a_spreadsheet_computes_no_name(named: ComparisonTable) -> None:
    text = named.to_csv()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["policy"] for line in lines[8:11]] == ["'=1+1", "'-5", "' @sum"]
    assert [line["policy"] for line in lines[:8]] == [printable(name) for name in NAMES[:8]]
    assert "\x1b" not in text
    # Negative numbers are numbers.
    assert float(lines[1]["difference_interval_percent_low"]) < 0
    assert [row["policy"] for row in json.loads(named.to_json())] == NAMES, "JSON holds names as they are"


def test_text_holds_nothing_that_steers_a_terminal_or_cannot_be_written(named: ComparisonTable) -> None:
    for text in (named.to_text(), named.to_markdown(), named.to_csv()):
        assert all(character.isprintable() or character == "\n" for character in text)
        text.encode()


def test_tasks_can_be_called_by_other_names(table: ComparisonTable) -> None:
    evaluations = [evaluation for by_policy in table.by_task.values() for evaluation in by_policy.values()]
    shown = ComparisonTable(evaluations, task_labels={"small": "small, overwrite"})
    assert [line for line in shown.to_text().splitlines() if "scenes," in line or "test split" in line] == [
        "small, overwrite, test split, single protocol, 20 scenes",
        "large, test split, single protocol, 20 scenes",
    ]
    assert {row["task"] for row in shown.rows()} == {"small", "large"}


def test_a_reference_that_did_not_play_gives_no_difference(envs: dict[str, GlimpseVectorEnv]) -> None:
    small, large = envs["small"], envs["large"]
    evaluations = [
        evaluate(UpTo(small, 9, "a"), small, task="small"),
        evaluate(UpTo(small, 7, "b"), small, task="small"),
        evaluate(UpTo(large, 9, "c"), large, task="large"),
    ]
    table = ComparisonTable(evaluations, "b")
    assert [table.reference(task) for task in envs] == ["b", None]
    assert table.comparison("large", "c") is None
    assert table.rows()[2]["reference"] is None
    assert "-10.00 (" not in table.to_text()
    assert "+10.00 (" in table.to_text()


def test_what_cannot_be_compared_is_refused(envs: dict[str, GlimpseVectorEnv]) -> None:
    env = envs["small"]

    def play(name: str, env: GlimpseVectorEnv = env, **options: Any) -> Evaluation:
        return evaluate(UpTo(env, 9, name), env, task="t", **options)

    with pytest.raises(ValueError, match="at least one"):
        ComparisonTable([])
    with pytest.raises(ValueError, match="'a' twice"):
        ComparisonTable([play("a"), play("a")])
    with pytest.raises(ValueError, match="one of a, b, got 'c'"):
        ComparisonTable([play("a"), play("b")], "c")
    with pytest.raises(ValueError, match="same scenes"):
        ComparisonTable([play("a"), play("b", envs["large"])])
    with pytest.raises(ValueError, match="same scenes"):
        ComparisonTable([play("a"), play("b", episodes=5)])
