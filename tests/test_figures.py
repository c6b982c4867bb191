"""`python -m agents figures`: what is drawn is what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agents.analysis.curves import ErrorAt, Glimpses, draw_curves, draw_errors, draw_glimpses, read_curve
from agents.analysis.figures import Played, draw_scenes, mistakes, name_runs, play
from agents.cli import main
from agents.ram.config import RamConfig
from agents.registry import load_run
from agents.sb3.config import Sb3Config
from agents.training.environment import make_env
from agents.training.fingerprint import describe_data
from agents.training.run_folder import RunError, RunFolder
from ram_gym import GlimpseConfig, GlimpseEnv, evaluate, load_dataset

DATA = describe_data(GlimpseConfig(dataset="digits"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short run on the digits, which errs often."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    sizes = ["--hidden-size", "16", "--glimpse-hidden-size", "8"]
    main(["train", "ram", "--task", "digits", *sizes, "--epochs", "4", "--out", str(path)])
    return RunFolder(path)


@pytest.fixture(scope="module")
def played(run: RunFolder) -> Played:
    return play(run, "digits", "validation")


def test_the_mistakes_are_those_that_an_evaluation_finds_the_surest_first(run: RunFolder, played: Played) -> None:
    trained = load_run(run)
    env = make_env(trained.config.env_config.replace(split="validation"), "cpu", 100)  # does not divide the split
    alone = evaluate(trained.make_policy(env, None, "alone"), env)
    found = mistakes(played)
    assert set(found.tolist()) == set((alone.predictions != alone.labels).nonzero().flatten().tolist())
    assert 0 < len(found) == alone.errors
    assert played.evaluation.error_percent == run.read_json("results.json")["validation"]["error_percent"]
    # Each mistake played again, alone.
    single = make_env(env.config, "cpu", 1)
    policy, sure = trained.make_policy(single, None, "again"), []
    for scene in found.tolist()[:20]:
        observation, _ = single.reset(options={"index": torch.tensor([scene])})
        state = None
        with torch.inference_mode():
            for _ in range(single.config.num_glimpses):
                action, state = policy.act(observation, state)
                logs = action.pop("log_probabilities")
                observation, _, _, _, info = single.step(action)
        assert int(info["prediction"]) == int(alone.predictions[scene])
        sure.append(float(logs.exp().max()))
    answers = played.evaluation.predictions[found]
    np.testing.assert_allclose(played.probabilities[found, answers][:20], sure, rtol=1e-4)
    assert sure == sorted(sure, reverse=True)


def test_a_sheet_shows_canvas_path_patches_and_answer(played: Played) -> None:
    index = mistakes(played)[:7]
    figure = draw_scenes(played, index, "seven")
    sheet = [axes for axes in figure.axes if axes.images]
    assert len(sheet) == 2 * 7
    evaluation, env = played.evaluation, GlimpseEnv(played.evaluation.env_config)
    for axes, beside, scene in zip(sheet[::2], sheet[1::2], index.tolist(), strict=True):
        env.reset(options={"index": scene})
        np.testing.assert_allclose(np.asarray(beside.images[0].get_array())[..., 0], env.canvas[0] / 255)
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[..., 0], env.canvas[0] * 0.6 / 255)
        pixels = (evaluation.locations[scene].numpy() + 1) * 14
        np.testing.assert_allclose(axes.lines[0].get_xydata(), pixels, rtol=1e-6)
        assert [text.get_text() for text in axes.texts] == [*"123456", f"scene {scene}"]
        for square, point in zip(axes.patches, pixels, strict=True):
            x, y = np.round(point) - 4  # a patch of 8 pixels
            assert (*square.get_xy(), square.get_width(), square.get_height()) == (x, y, 8, 8)
        answer = int(evaluation.predictions[scene])
        probability = float(played.probabilities[scene, answer])
        assert axes.get_title() == f"{int(evaluation.labels[scene])} → {answer} ({probability:.2f})"


def test_the_digit_stands_beside_its_canvas_without_the_path(played: Played) -> None:
    env_config = played.evaluation.env_config.replace(canvas_size=41)
    images = load_dataset("digits", env_config.split).images
    moved = played._replace(evaluation=dataclasses.replace(played.evaluation, env_config=env_config))
    sheet = [axes for axes in draw_scenes(moved, torch.arange(9), "nine").axes if axes.images]
    for axes, image in zip(sheet[1::2], images[:9], strict=True):
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[..., 0], image[0] / 255)


def test_curves_are_those_of_the_metrics(tmp_path: Path) -> None:
    ram, ppo = RunFolder(tmp_path / "ram"), RunFolder(tmp_path / "ppo")
    ram.create("ram", RamConfig(), DATA)
    for epoch, error in ((1, 50.0), (2, None), (3, 5.0), (4, 0.0)):
        error_there = {} if error is None else {"validation_error_percent": error}
        ram.append_metrics({"epoch": epoch, "scenes": epoch * 1000, **error_there})
    ppo.create("sb3-ppo", Sb3Config(algorithm="sb3-ppo", env_config=GlimpseConfig(num_glimpses=4)), DATA)
    ppo.append_metrics({"epoch": 1, "steps": 400_000, "validation_error_percent": 80.0})
    curves = {"ram": read_curve(ram), "_ppo": read_curve(ppo)}
    assert curves["ram"].tolist() == [[1000, 50], [3000, 5], [4000, 0]]
    assert curves["_ppo"].tolist() == [[100_000, 80]]
    figure = draw_curves(curves)
    (axes,) = figure.axes
    lines = axes.lines[::2]  # beside each, the dot where it is best
    assert [line.get_xydata().tolist() for line in lines] == [curves["_ppo"].tolist(), curves["ram"].tolist()]
    assert axes.lines[3].get_xydata().tolist() == [[4000, 0]]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.split()[-1] for text in legend] == ["_ppo", "ram"]
    assert (axes.get_yscale(), axes.get_xscale()) == ("log", "log")  # one run is 25 times as long
    figure.savefig(tmp_path / "curves.png")


def test_glimpses_are_drawn_as_error_and_distance(tmp_path: Path) -> None:
    figure = draw_glimpses({"_early": Glimpses([20.0, 90.0], [25.0, 6.5]), "late": Glimpses(None, [25.0, 24.0])})
    answers, looks = figure.axes
    assert [line.get_xydata().tolist() for line in answers.lines] == [[[1, 80], [2, 10]]]
    assert [line.get_xydata().tolist() for line in looks.lines] == [[[1, 25], [2, 6.5]], [[1, 25], [2, 24]]]
    assert answers.lines[0].get_color() == looks.lines[0].get_color() != looks.lines[1].get_color()
    figure.savefig(tmp_path / "glimpses.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["\u20076.5  _early", "24.0  late"]


def test_errors_are_drawn_with_their_intervals() -> None:
    errors = {
        "learned": [ErrorAt(0, 1.0, (0.5, 2.0)), ErrorAt(2, 4.0, (3.0, 5.0))],
        "_none": [ErrorAt(2, 8.0, (6.0, 9.0))],
    }
    for joined in (True, False):
        figure = draw_errors(errors, {0: "0 to 25", 2: "from 50"}, "axis", "title", joined)
        (axes,) = figure.axes
        first, second = axes.containers
        assert first.lines[0].get_linestyle() == ("-" if joined else "None")
        beside = 0 if joined else 0.04
        np.testing.assert_allclose(first.lines[0].get_xydata(), [[-beside, 1], [2 - beside, 4]])
        np.testing.assert_allclose(first.lines[2][0].get_segments()[0][:, 1], [0.5, 2.0])
        np.testing.assert_allclose(second.lines[0].get_xydata(), [[2 + beside, 8]])
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0 to 25", "from 50"]
        assert (axes.get_yscale(), axes.get_title()) == ("log", "title")
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["learned", "_none"]


def test_glimpses_are_of_the_split_with_and_without_weights(
    run: RunFolder, played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = RunFolder(tmp_path / "bare")
    bare.create("ram", RamConfig(task="digits"))
    found = {"accuracy_by_glimpse_percent": [10.0, 30.0], "distance_by_glimpse_pixels": [9.0, 4.0]}
    bare.write_json(
        "results.json", {"validation single": found, "test single": {**found, "accuracy_by_glimpse_percent": None}}
    )
    drawn: list[dict[str, Glimpses]] = []
    monkeypatch.setattr("agents.analysis.figures.draw_glimpses", lambda runs: drawn.append(runs) or draw_glimpses(runs))
    for split in ("validation", "test"):
        main(["figures", str(run.path), str(bare.path), "--out", str(tmp_path / "out"), "--split", split])
    evaluation = played.evaluation
    mine = Glimpses(evaluation.accuracy_by_glimpse_percent, evaluation.distance_by_glimpse_pixels)
    assert drawn[0] == {"digits": mine, "bare": Glimpses([10.0, 30.0], [9.0, 4.0])}
    assert drawn[1]["bare"] == Glimpses(None, [9.0, 4.0])
    assert drawn[1]["digits"] != mine


def test_the_command_writes_the_same_files_each_time(run: RunFolder, tmp_path: Path, capsys: Any) -> None:
    bare = RunFolder(tmp_path / "bare")
    bare.create("ram", RamConfig(task="digits"))
    bare.append_metrics({"epoch": 1, "scenes": 1000, "validation_error_percent": 50.0})
    names = ["digits-mistakes.png", "digits-paths.png", "glimpses.png", "learning-curves.png"]
    for out in ("one", "two"):
        main(["figures", str(run.path), str(bare.path), "--out", str(tmp_path / "new" / out), "--split", "test"])
        assert "bare: no weights, so its paths and mistakes are not drawn" in capsys.readouterr().err
    for name in names:
        first, second = (tmp_path / "new" / out / name for out in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size < 200_000
        with Image.open(first) as image:
            assert image.width >= 900
    assert sorted(path.name for path in (tmp_path / "new" / "one").iterdir()) == names


def test_runs_get_names_of_their_own(tmp_path: Path, capsys: Any) -> None:
    folders = []
    for name in ("x/a", "y/a", "y/b"):
        folders.append(RunFolder(tmp_path / name))
        folders[-1].create("ram", RamConfig(), DATA)
    assert list(name_runs(folders[1:])) == ["a", "b"]
    assert list(name_runs(folders)) == ["x-a", "y-a", "y-b"]
    assert list(name_runs(folders[:2])) == ["x", "y"]
    assert list(name_runs(folders[:1])) == ["a"]
    seeds = [RunFolder(tmp_path / name) for name in ("main/preset/seed-0", "main/wide/seed-0", "main/wide/seed-1")]
    for folder in seeds:
        folder.create("ram", RamConfig(), DATA)
    assert list(name_runs(seeds[:2])) == ["preset", "wide"]
    assert list(name_runs(seeds[1:])) == ["wide-seed-0", "wide-seed-1"]
    assert list(name_runs(seeds[:1])) == ["preset-seed-0"]
    with pytest.raises(ValueError, match="given once"):
        name_runs([folders[0], folders[0]])
    with pytest.raises(RunError, match="holds no run"):
        name_runs([RunFolder(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main(["figures", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
