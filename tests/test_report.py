"""The HTML report: what it says, that it needs nothing else, and which scenes it shows."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ram_gym import ComparisonTable, Dataset, Evaluation, GlimpseEnv, GlimpseVectorEnv, evaluate, plots, write_report
from ram_gym.plots import confusion_among, looks_percent, most_confused
from ram_gym.report import pick_scenes

OPTIONS: dict[str, Any] = {"output": "torch", "autoreset_mode": "Disabled"}
NAMES = ["a < b & 'c'", "_hidden $x$", "runs/three|3"]
VOID = {"meta", "img", "br", "hr", "input", "link", "base", "source"}


class Page(HTMLParser):
    """Checks that tags are closed in their order, and gathers what is in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


class Guess:
    """Answers the right label on scenes that `is_right` names; looks at corners in turn."""

    def __init__(self, env: GlimpseVectorEnv, name: str, is_right: Any, answers_early: bool = False) -> None:
        self.env, self.name, self.is_right, self.answers_early = env, name, is_right, answers_early

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        step = state or 0
        right = torch.tensor([self.is_right(index) for index in self.env._index.tolist()])
        label = torch.where(right, self.env.labels, (self.env.labels + 1) % self.env.num_classes)
        place = torch.tensor([(-0.5, 0.25), (0.5, 0.5)][step % 2]).expand_as(observation["location"])
        return {"location": place, "label": label}, step + 1


def played(env: GlimpseVectorEnv, task: str = "digits", episodes: int = 30) -> list[Evaluation]:
    rules = [lambda i: i % 2 == 0, lambda i: i % 3 == 0, lambda i: i % 5 > 0]
    policies = [Guess(env, name, rule, rule is rules[0]) for name, rule in zip(NAMES, rules, strict=True)]
    return [evaluate(policy, env, task=task, episodes=episodes) for policy in policies]


@pytest.fixture(scope="module")
def evaluations() -> list[Evaluation]:
    return played(GlimpseVectorEnv(30, dataset="digits", split="test", num_glimpses=3, num_scales=2, **OPTIONS))


@pytest.fixture(scope="module")
def text(evaluations: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(path, ComparisonTable(evaluations, NAMES[1]), command="python -m x --flag '<y>'")
    return path.read_text()


def test_the_report_needs_nothing_but_itself(text: str) -> None:
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[\w+/=]+", "", text))
    assert "script" not in {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "two plots share a name, so that one would be drawn with the other's parts"
    for _, attributes in page.tags:
        for key in ("href", "src", "xlink:href"):
            link = attributes.get(key, "#")
            assert link.startswith(("#", "data:image/png;base64,"))
            assert not link.startswith("#") or link == "#" or link[1:] in ids
    for link in re.findall(r"url\(#?([^)]*)\)", text):
        assert link in ids
    assert len(text) < 1_000_000


def test_it_shows_every_policy_number_and_plot(text: str, evaluations: list[Evaluation]) -> None:
    page = Page(text)
    for name in NAMES:
        # In tables, over pictures of looks and mistakes, in three legends, and in each of 24 scenes.
        assert page.text.count(name) >= 2 + 2 + 3 + 24
    for section in ComparisonTable(evaluations, NAMES[1]).sections("digits"):
        for cell in [cell for row in section.rows for cell in row]:
            assert cell in page.text
    for word in ("accuracy in %", "distance in canvas pixels", "error in %", "% of looks", "right label", "answer"):
        assert word in page.text
    for word in (
        "python -m x --flag '<y>'",
        "scene seed 2014",
        "protocol single",
        "ram_gym 0",
        "torch 2",
        "num_scales 2",
    ):
        assert word in page.text
    confusion = evaluations[0].confusion
    assert page.text.count(str(int(confusion.max()))) > 0
    assert "#010203" not in text, "all ink has the colour of the page's text"


def test_scenes_show_the_very_pictures_paths_and_answers(text: str, evaluations: list[Evaluation]) -> None:
    page, env = Page(text), GlimpseEnv(dataset="digits", split="test", num_glimpses=3, num_scales=2)
    shown = [int(number) for number in re.findall(r"Scene (\d+), right answer", page.text)]
    assert shown == pick_scenes(evaluations, 24)
    pictures = [attributes["href"] for tag, attributes in page.tags if tag == "image" and "picture" in str(attributes)]
    lines = [a["points"] for tag, a in page.tags if tag == "polyline" and a.get("class") == "path"]
    assert (len(pictures), len(lines)) == (24, 24 * 3)
    for number, (index, picture) in enumerate(zip(shown, pictures, strict=True)):
        env.reset(options={"index": index})
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
        np.testing.assert_array_equal(pixels, env.canvas[0])
        for line, evaluation in zip(lines[3 * number : 3 * number + 3], evaluations, strict=True):
            points = [[float(value) for value in pair.split(",")] for pair in line.split()]
            np.testing.assert_allclose(points, (evaluation.locations[index].numpy() + 1) * 14, atol=0.006)
            np.testing.assert_allclose(points[1:], [[7, 17.5], [21, 21]])
    verdicts = re.findall(r"([✓✗]) (\d), (right|wrong)", page.text)
    for number, (mark, answer, word) in enumerate(verdicts):
        evaluation, index = evaluations[number % 3], shown[number // 3]
        assert int(answer) == evaluation.predictions[index]
        assert (mark, word) == (("✓", "right") if evaluation.is_right[index] else ("✗", "wrong"))
    assert len(verdicts) == 24 * 3
    assert page.text.count("after each glimpse: ") == 24, "one policy answers early"


def test_hardest_scenes_come_first(evaluations: list[Evaluation]) -> None:
    wrong = [sum(int(not e.is_right[i]) for e in evaluations) for i in range(30)]
    assert {0, 1, 2, 3} == set(wrong)
    everything = pick_scenes(evaluations, 30)
    assert sorted(everything) == list(range(30))
    assert [wrong[i] for i in everything] == sorted(wrong, reverse=True)
    few = pick_scenes(evaluations, 4)
    assert [wrong[i] for i in few] == [3, 3, 2, 2] if wrong.count(3) > 1 else [3, 2, 2, 2]
    alone = pick_scenes(evaluations[:1], 20)
    assert [i % 2 for i in alone] == [1] * 15 + [0] * 5
    assert pick_scenes(evaluations, 0) == []


def test_two_tasks_colours_and_images_of_the_users_own(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    data = (images, np.arange(12) % 4)
    colour = GlimpseVectorEnv(5, dataset=data, split="test", canvas_size=9, patch_size=4, num_glimpses=1, **OPTIONS)
    digits = GlimpseVectorEnv(30, dataset="digits", split="test", **OPTIONS)
    table = ComparisonTable(played(colour, "mine", 12) + played(digits))
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match="envs must have an environment of 'mine'"):
        write_report(path, table)
    assert not path.exists()
    with pytest.raises(ValueError, match="envs must show the scenes that were played"):
        write_report(path, table, envs={"mine": digits})
    shuffled = GlimpseVectorEnv(
        5, dataset=(images, data[1][::-1]), split="test", canvas_size=9, patch_size=4, num_glimpses=1, **OPTIONS
    )
    with pytest.raises(ValueError, match="got other labels"):
        write_report(path, table, envs={"mine": shuffled})
    write_report(path, table, envs={"mine": colour}, max_scenes=3)
    page = Page(path.read_text())
    assert {"#task-0", "#task-1"} <= {attributes.get("href") for _, attributes in page.tags}
    picture = next(a["href"] for tag, a in page.tags if tag == "image" and "picture" in str(a))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
    index = pick_scenes(list(table.by_task["mine"].values()), 3)[0]
    env = GlimpseEnv(dataset=data, split="test", canvas_size=9, patch_size=4, num_glimpses=1)
    env.reset(options={"index": index})
    np.testing.assert_array_equal(pixels, np.moveaxis(env.canvas, 0, -1))
    assert len(re.findall(r"Scene \d+, right", page.text)) == 6


def test_classes_are_called_by_their_names(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 6, 6), dtype=np.uint8)
    names = ("ant", "bee & co", "cat", "<dog>")
    data = Dataset(images, np.arange(12) % 4, 4, names)
    env = GlimpseVectorEnv(5, dataset=data, split="test", canvas_size=9, patch_size=4, num_glimpses=2, **OPTIONS)
    table = ComparisonTable(played(env, "mine", 12))
    for evaluation in table.by_task["mine"].values():
        assert evaluation.class_names == names
    write_report(tmp_path / "report.html", table, envs={"mine": env}, max_scenes=4)
    page = Page((tmp_path / "report.html").read_text())
    right = re.findall(r"Scene (\d+), right answer (.*?):", page.text)
    assert len(right) == 4
    assert all(name == names[int(index) % 4] for index, name in right)
    first = next(iter(table.by_task["mine"].values()))
    given = [names[label] for label in first.answers[int(right[0][0])].tolist()]
    assert f"after each glimpse: {', '.join(given)}" in page.text
    for name in names:
        # Along both axes of three confusion matrices, and below the errors by class.
        ticks = [text for text in re.findall(r"\s*(.*?)\s*\n", page.text) if text == name]
        assert len(ticks) >= 2 * 3 + 1, name


def test_of_many_classes_the_most_confused_are_drawn(tmp_path: Path) -> None:
    # 65,536 classes: a matrix of them all would take 34 GB.
    labels = np.r_[np.arange(60_000, 60_200), 65_535]
    images = np.zeros((201, 6, 5), np.uint8)
    env = GlimpseVectorEnv(67, dataset=(images, labels), split="test", canvas_size=9, patch_size=4, **OPTIONS)
    # Wrong on 39 scenes, with the next class for an answer: 60,005, 60,010, ... and 60,006, 60,011, ...
    wrong = range(5, 200, 5)
    evaluation = evaluate(Guess(env, "p", lambda index: index not in wrong), env, task="many")
    assert evaluation.errors == 39
    errors = evaluation.class_error_percent
    assert (len(errors), errors[60_005], errors[60_006], errors[0]) == (65_536, 100, 0, None)
    classes = most_confused([evaluation])
    assert classes.tolist() == sorted({c for i in wrong[:25] for c in (60_000 + i, 60_001 + i)})
    confusion = confusion_among(evaluation, classes)
    assert confusion[:2, :2].tolist() == [[0, 1], [0, 1]]
    assert confusion.sum() == 50
    small = ComparisonTable(played(GlimpseVectorEnv(30, dataset="digits", split="test", **OPTIONS)))
    (first, *_) = small.by_task["digits"].values()
    np.testing.assert_array_equal(confusion_among(first, most_confused([first])), first.confusion)
    write_report(tmp_path / "report.html", ComparisonTable([evaluation]), envs={"many": env})
    text = (tmp_path / "report.html").read_text()
    assert text.count("; of 65536 classes, the 50 most often confused.") == 2
    assert len(text) < 1_000_000
    page = Page(text)
    assert {str(c) for c in classes[[0, 10, 20, 30, 40]]} <= set(re.findall(r"60\d\d\d", page.text))


def test_a_name_may_be_empty(evaluations: list[Evaluation]) -> None:
    assert "<svg" in plots.plot_accuracy([("", evaluations[0])])


def test_glimpses_are_counted_in_whole_numbers(evaluations: list[Evaluation]) -> None:
    drawn = plots.plot_accuracy([(NAMES[1], evaluations[1])])
    assert not evaluations[1].answers_early
    assert not re.search(r">\s*\d+\.\d+\s*<", drawn)


def test_density_is_where_it_looked(evaluations: list[Evaluation]) -> None:
    shares = looks_percent(evaluations[0])
    assert shares.shape == (28, 28)
    # Two places in equal parts: pixels (7, 17.5) and (21, 21); the random first ones are not counted.
    assert {(x, y): shares[y, x] for y, x in np.argwhere(shares)} == {(7, 17): 50, (21, 21): 50}


def test_without_its_libraries_the_report_says_what_to_install(
    evaluations: list[Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'ram_gym\[report\]'"):
        write_report(tmp_path / "x.html", ComparisonTable(evaluations))
