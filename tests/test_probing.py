"""`python -m agents probe`: how the error depends on the scenes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.analysis.probe import overlaps, positions, varied_env
from agents.cli import main
from agents.scripted import ScriptedPolicy
from agents.training.environment import make_env
from ram_gym import GlimpseConfig, GlimpseEnv, evaluate, load_dataset

SETTING = GlimpseConfig(dataset="digits", canvas_size=40, num_clutter=3, split="validation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A short run on the digits."""
    path = str(tmp_path_factory.mktemp("runs") / "digits")
    main(["train", "ram", "--task", "digits", "--epochs", "2", "--hidden-size", "16", "--out", path])
    return path


def test_positions_and_overlaps_equal_a_loop_over_single_environments() -> None:
    env = make_env(SETTING, "cpu", 100)  # does not divide the split
    found_positions, found_overlaps = positions(env), overlaps(env)
    assert found_positions.shape == found_overlaps.shape == (env.num_images,)
    single, plain = GlimpseEnv(SETTING), GlimpseEnv(SETTING.replace(num_clutter=0))
    distances, shares = [], []
    for index in range(0, env.num_images, 7):
        for each in (single, plain):
            each.reset(options={"index": index})
        x, y = (round((value + 1) * 20 - 14) for value in single.digit_location)
        box = (slice(None), slice(y, y + 28), slice(x, x + 28))
        shares.append(100 * float((single.canvas[box] != plain.canvas[box]).mean()))
        distances.append(np.hypot(x + 14 - 20, y + 14 - 20))
    np.testing.assert_allclose(found_overlaps[::7], shares, rtol=1e-5)
    farthest = max(distances)
    np.testing.assert_allclose(found_positions[::7], np.array(distances) * 100 / farthest, rtol=1e-4)
    assert max(shares) > 5


def test_digits_are_resized_and_all_else_stays() -> None:
    setting = SETTING.replace(num_clutter=0)
    env = varied_env(setting, "digit", 14, "cpu")
    images = load_dataset("digits", "validation").images
    env.reset(options={"index": torch.arange(5).repeat(env.num_envs // 5 + 1)[: env.num_envs]})
    for lane in range(5):
        lit = env.canvases[lane, 0].float()
        assert lit.ne(0).any(0).sum() <= 14
        assert lit.ne(0).any(1).sum() <= 14
        # Half as wide and as high: a quarter of the ink, but for the filter's rounding.
        assert float(lit.sum()) == pytest.approx(images[lane].sum(dtype=np.int64) / 4, rel=0.05)
    assert env.config.replace(dataset="digits") == setting


def test_composition_is_the_only_thing_that_changes() -> None:
    """Scenes of both compositions are equal but for the digit's box, where "overwrite" shows the digit alone."""
    add, overwrite = (varied_env(SETTING, "composition", name, "cpu") for name in ("add", "overwrite"))
    assert overwrite.config == add.config.replace(composition="overwrite") == SETTING.replace(composition="overwrite")
    for each in (add, overwrite):
        each.reset(options={"index": torch.arange(5).repeat(each.num_envs // 5 + 1)[: each.num_envs]})
    images, changed = load_dataset("digits", "validation").images, 0
    for lane in range(5):
        x, y = (round((value + 1) * 20 - 14) for value in overwrite.digit_locations[lane].tolist())
        np.testing.assert_array_equal(overwrite.canvases[lane, 0, y : y + 28, x : x + 28], images[lane, 0])
        differs = overwrite.canvases[lane] != add.canvases[lane]
        changed += int(differs.sum())
        differs[:, y : y + 28, x : x + 28] = False
        assert not differs.any()
    assert changed > 100


def test_the_table_holds_what_evaluations_find(run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    capsys.readouterr()
    plot = tmp_path / "new" / "curve.svg"
    main(["probe", run, "centre", "--by", "clutter", "--values", "0", "5", "--split", "validation", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["policy"], row["value"]) for row in rows] == [(name, v) for name in (run, "centre") for v in (0, 5)]
    main(["compare", run, "centre", "--split", "validation", "--json"])
    plain = [row["errors"] for row in json.loads(capsys.readouterr().out)]
    assert [row["errors"] for row in rows if row["value"] == 0] == plain
    main(["probe", run, "--by", "position", "--split", "validation", "--json", "--plot", str(plot)])
    groups = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [group["episodes"] for group in groups] == [359, 0, 0, 0]  # digits fill their canvas: all at its centre
    assert groups[0]["errors"] == plain[0]
    assert plot.read_text().startswith("<?xml")
    main(["probe", run, "--by", "position", "--split", "validation"])
    assert "no scenes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "clutter", "--values", "3", "1"], "values must be at least 0 and rise, got 3 1"),
        (["--by", "canvas", "--values", "20"], "canvas_size"),
        (["--by", "digit", "--values", "29"], "values of digit must lie in 8 .* to 28"),
        (["--by", "overlap", "--values", "5"], "must begin with 0, got 5"),
        (["--by", "clutter", "--values", "many"], "values must be at least 0 and rise, got many"),
        (["--by", "composition", "--values", "under"], "composition must be .*overwrite"),
        (["--by", "clutter", "--plot", "curve.txt"], "ends in .png, .svg or .pdf"),
    ],
)
def test_bad_values_are_refused(
    run: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as error:
        main(["probe", run, *words])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_runs_are_needed_and_must_be_of_one_task(run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["probe", "random", "--by", "clutter"])
    assert "policies must name a run folder" in capsys.readouterr().err
    other = str(tmp_path / "five")
    words = ["--task", "digits", "--epochs", "1", "--hidden-size", "16", "--num-glimpses", "5"]
    main(["train", "ram", *words, "--out", other])
    with pytest.raises(SystemExit):
        main(["probe", run, other, "--by", "clutter"])
    assert "was trained on other scenes than" in capsys.readouterr().err


def test_a_subset_of_an_evaluation_is_the_evaluation_of_its_scenes() -> None:
    env = make_env(SETTING, "cpu", 50)
    evaluation = evaluate(ScriptedPolicy("random", env), env)
    is_in = evaluation.labels % 3 == 1
    part = evaluation.subset(is_in)
    wrong = (evaluation.predictions != evaluation.labels) & is_in
    assert (part.episodes, part.errors) == (int(is_in.sum()), int(wrong.sum()))
    assert part.seconds == pytest.approx(evaluation.seconds * part.episodes / evaluation.episodes)
    distances = (evaluation.locations - evaluation.digit_locations[:, None]).norm(dim=-1)[is_in].mean(0) * 20
    np.testing.assert_allclose(part.distance_by_glimpse_pixels, distances, rtol=1e-5)
    for bad in (is_in[1:], is_in.long(), is_in & False):
        with pytest.raises(ValueError, match="is_in must be bool"):
            evaluation.subset(bad)
