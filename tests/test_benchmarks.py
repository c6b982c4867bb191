"""The benchmarks work, and count right. What they measure is read from benchmarks/results, not tested.

Longer than other files here: most of it reads the results of one quick run.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cases import Case, Plan, run_case, run_cases
from benchmarks.cli import main
from benchmarks.peers import ArrayDataset, PictureDataset, PlainTraining, compose, crop_loop
from benchmarks.plots import plot_growth
from benchmarks.report import number
from benchmarks.timing import Settings, meminfo
from ram_gym import TASKS, GlimpseConfig, load_dataset, take_glimpses

QUICK = ["--quick", "--in-process", "--device", "cpu"]


def run(folder: Path, command: str, *arguments: str) -> dict[str, Any]:
    main([command, *QUICK, *arguments, "--out", str(folder)])
    return json.loads((folder / f"{command}.json").read_text())


def check_rate(row: dict[str, Any], work_of_pass: float) -> None:
    seconds, rate = row["seconds"], row["rate"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert seconds["median"] == np.median(seconds["all"])
    assert row["work"] == work_of_pass * row["passes"]
    for kind, of in (("median", "median"), ("min", "max"), ("max", "min")):
        assert rate[kind] == pytest.approx(work_of_pass * row["passes"] / seconds[of])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ap_gym", None)  # importing it now fails, installed or not
        return folder, {name: run(folder, name) for name in ("stepping", "training", "growth", "profile")}


def test_results_say_what_they_were_measured_on(results: tuple[Path, dict[str, Any]]) -> None:
    for result in results[1].values():
        machine = result["hardware"]
        assert machine["cpu"]
        assert machine["cores"] >= 1
        assert machine["threads"] == torch.get_num_threads()
        assert machine["memory_gb"] > 0.5
        assert machine["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert machine["versions"]["numpy"] == np.__version__
        assert {"python", "gymnasium"} <= set(machine["versions"])
        assert machine["environment"]["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]
        assert len(machine["gpus"]) == torch.cuda.device_count()
        assert all(row["torch_threads"] == torch.get_num_threads() for row in result["rows"] if "rate" in row)


def test_stepping_counts_lane_steps(results: tuple[Path, dict[str, Any]]) -> None:
    rows = [row for row in results[1]["stepping"]["rows"] if "skipped" not in row]
    # digits: 6 glimpses; NEXT_STEP takes a seventh call of step to begin the next episode.
    steps = {
        "stepping.vector": 7,
        "stepping.single": 6,
        "stepping.sensor": 6,
        "stepping.scenes": 1,
        "stepping.limit": 6,
        "peers.crops": 6,
        "peers.gymnasium_vector": 7,
    }
    seen = set()
    for row in rows:
        same_step = row["variant"].startswith("SameStep")
        check_rate(row, row["batch"] * (6 if same_step else steps[row["measure"]]))
        seen.add((row["measure"], row["batch"]))
    wanted = {(name, batch) for name in steps for batch in (1, 16)} - {("stepping.single", 16)}
    assert seen == wanted
    limit = next(row for row in rows if row["measure"] == "stepping.limit")
    # Read: 2 floats, an int64, 64 pixels. Write: 64 floats, 2 floats, a reward, 2 flags.
    assert limit["bytes_of_step"] == (8 + 8 + 64) + (256 + 8 + 4 + 2)


def test_a_missing_ap_gym_is_told_and_not_fatal(results: tuple[Path, dict[str, Any]]) -> None:
    result = results[1]["stepping"]
    skipped = [row for row in result["rows"] if "skipped" in row]
    assert {row["measure"] for row in skipped} == {"peers.ap_gym_single", "peers.ap_gym_vector"}
    assert all("ap_gym cannot be imported" in row["skipped"] for row in skipped)
    notes = [note for note in result["notes"] if note.startswith("SKIPPED")]
    assert len(notes) == len(skipped)
    assert all(note in (results[0] / "table.md").read_text() for note in notes)


def operations_of_update(batch: int, steps: int) -> int:
    """Multiplications and additions in the matrix products of an update on digits, by the sizes of the layers."""
    what, where, combine, recurrent, hidden, mean = 64 * 128, 2 * 128, 256 * 256, 256 * 256, 256 * 128, 128 * 2
    glimpse, core, locator = what + where + combine, combine + recurrent, hidden + mean
    answer, baseline = 256 * 10, 256
    forward = steps * (glimpse + core) + (steps - 1) * (locator + baseline) + answer
    # Into what enters a layer: not into images, nor from the locator or the baseline into the core.
    into_inputs = steps * (combine + combine) + (steps - 1) * (recurrent + mean) + answer
    into_weights = forward
    return 2 * batch * (forward + into_inputs + into_weights)


def test_training_counts_images(results: tuple[Path, dict[str, Any]]) -> None:
    native, rounded, *limits = results[1]["training"]["rows"][:4]
    plain = results[1]["training"]["rows"][4:]
    check_rate(native, 64)
    check_rate(rounded, 64)
    assert rounded["variant"] == "bfloat16"
    assert [row["variant"] for row in limits] == ["", "bfloat16"]
    for row in limits:
        assert row["operations_of_update"] == operations_of_update(64, steps=6)
        # A pass multiplies two squares of 2,048 and counts as the images whose products are as much work.
        check_rate(row, 64 * 2 * row["side"] ** 3 / row["operations_of_update"])
    assert {row["variant"] for row in plain} == {"as published", "quicker"}
    for row in plain:
        check_rate(row, 32)


def test_growth_has_each_sweep_and_a_plot_of_it(results: tuple[Path, dict[str, Any]]) -> None:
    folder, rows = results[0], results[1]["growth"]["rows"]
    assert {row["sweep"] for row in rows} == {"batch", "canvas_size", "num_clutter", "num_scales"}
    for row in rows:
        changed = row["batch"] if row["sweep"] == "batch" else row["overrides"][row["sweep"]]
        assert row["value"] == changed
        assert row["rate"]["median"] > 0
    if importlib.util.find_spec("matplotlib"):
        assert len(list(folder.glob("growth-*.png"))) == 4


def test_page_faults_are_drawn_only_beside_a_cpu(results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    growth = results[1]["growth"]
    on_gpu = {**growth, "rows": [{**row, "device": "cuda"} for row in growth["rows"]]}
    heights = []
    for result in (growth, on_gpu):
        heights.append({Image.open(file).height for file in plot_growth(result, tmp_path)})
    assert heights == [{660}, {495}]


def test_a_profile_goes_through_as_many_passes_as_it_needs(tmp_path: Path) -> None:
    # digits: 1,080 training images, two updates a pass.
    (row,) = run(tmp_path, "profile", "--batch", "512")["rows"]
    assert row["updates"] == 5
    assert sum(operation["share"] for operation in row["operations"]) > 0.9


def test_profile_names_the_operations(results: tuple[Path, dict[str, Any]]) -> None:
    (row,) = results[1]["profile"]["rows"]
    shares = [operation["share"] for operation in row["operations"]]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1
    assert any("mm" in operation["name"] for operation in row["operations"])


def test_the_table_has_every_benchmark(results: tuple[Path, dict[str, Any]]) -> None:
    text = (results[0] / "table.md").read_text()
    for name, result in results[1].items():
        assert f"## {name}" in text
        for row in result["rows"]:
            if "rate" in row:
                assert number(row["rate"]["median"]) in text


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--batch", "4096", "--out", str(tmp_path)]
    main(["memory", *arguments])
    (row,) = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert row["torch_threads"] == 1
    # At least the canvases, a byte a pixel, and two copies of the glimpses; at most a hundred times that.
    least = 4096 * (28 * 28 + 2 * 4 * 64)
    assert least < row["peak_bytes"] < 100 * least
    assert row["peak_bytes"] < row["process_peak_bytes"]
    free = meminfo("/proc/meminfo", "MemTotal")
    assert free is not None
    assert row["process_peak_bytes"] < free


def test_what_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: Case, plan: Plan) -> dict[str, Any]:
        return {"found": torch.empty(2**60)}

    monkeypatch.setattr("benchmarks.stepping.vector", refuse)
    assert "does not fit in memory" in run_case(Case("stepping.vector", "digits"), Plan())["skipped"]

    def crash(case: Case, plan: Plan) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("benchmarks.stepping.vector", crash)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_case(Case("stepping.vector", "digits"), Plan())


def worker(monkeypatch: pytest.MonkeyPatch, end: str) -> list[Case]:
    """Workers that make one row and then end in some way; cases for them."""
    row = "print(json.dumps({**json.load(sys.stdin)['cases'][0], 'threads_there': os.environ['OMP_NUM_THREADS']}))"
    monkeypatch.setattr("benchmarks.cases.WORKER", f"import json, os, signal, sys; {row}; sys.stdout.flush(); {end}")
    return [Case("a.b", "digits", batch, threads) for threads in (1, 2) for batch in (1, 2, 3)]


def test_a_killed_process_loses_one_case_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = worker(monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    rows = run_cases("test", cases, Plan())
    assert [(row["threads"], row["batch"]) for row in rows] == [(case.threads, case.batch) for case in cases]
    assert ["skipped" in row for row in rows] == [False, True, False] * 2
    assert run_cases("test", cases, Plan(rounds=2)) == rows
    assert [row["threads_there"] for row in rows if "skipped" not in row] == ["1", "1", "2", "2"]


def test_a_process_that_fails_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a benchmark failed, see above: b digits x1 1 thread"):
        run_cases("test", worker(monkeypatch, "sys.exit(1)"), Plan())


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in ((["--task", "chess"], "task must be among"), (["--batch", "0"], "at least 1")):
        with pytest.raises(SystemExit) as stopped:
            main(["stepping", *arguments])
        assert stopped.value.code == 2
        shown = capsys.readouterr()
        assert text in shown.out + shown.err


# --------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("python_bounds", [False, True])
@pytest.mark.parametrize(
    "sensor",
    [
        *({key: task.overrides[key] for key in task.overrides if key != "dataset"} for task in TASKS.values()),
        {"patch_size": 5, "num_scales": 3, "canvas_size": 33, "scale_factor": 3},
    ],
    ids=[*TASKS, "odd"],
)
def test_crop_loop_gives_the_glimpses_of_take_glimpses(sensor: dict[str, Any], python_bounds: bool) -> None:
    config = GlimpseConfig(**sensor)
    rng = np.random.default_rng(0)
    canvases = torch.tensor(rng.integers(0, 256, (40, 2, config.canvas_size, config.canvas_size), dtype=np.uint8))
    locations = torch.tensor(rng.uniform(-1, 1, (40, 2)).astype(np.float32))
    locations[:4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
    found = crop_loop(canvases.float() / 255, locations, config, python_bounds=python_bounds)
    np.testing.assert_allclose(found, take_glimpses(canvases, locations, config), rtol=0, atol=1e-6)


@pytest.mark.parametrize("as_lists", [False, True])
def test_plain_scenes_show_the_image_and_its_clutter(as_lists: bool) -> None:
    data = load_dataset("digits", "train")
    config = GlimpseConfig(dataset="digits", canvas_size=60)
    images = ArrayDataset(data.images, data.labels)
    batch = [images[number] for number in (3, 5, 8)]
    bare, labels = compose(batch, config, as_lists=as_lists)
    assert labels.tolist() == data.labels[[3, 5, 8]].tolist()
    assert bare.shape == (3, 1, 60, 60)
    for scene, (image, _) in zip(bare, batch, strict=True):
        found = scene[scene > 0].sort().values  # the same pixels, elsewhere
        assert torch.equal(found, image[image > 0].sort().values)
    cluttered, _ = compose(batch, config.replace(num_clutter=16), as_lists=as_lists)
    assert (cluttered.sum((1, 2, 3)) > bare.sum((1, 2, 3))).all()
    whole, _ = compose(batch, config.replace(canvas_size=28), as_lists=as_lists)
    assert torch.equal(whole, torch.stack([image for image, _ in batch]))


def test_pictures_are_the_arrays_normalised() -> None:
    data = load_dataset("digits", "train")
    pictures, arrays = PictureDataset(data.images, data.labels), ArrayDataset(data.images, data.labels)
    image, label = pictures[7]
    plain = (arrays[7][0] - data.images.mean() / 255) / (data.images.std() / 255)
    torch.testing.assert_close(image, plain.float())
    assert label == data.labels[7]


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_plain_training_loop_learns(is_quick: bool) -> None:
    config = GlimpseConfig(dataset="digits", patch_size=28, num_glimpses=2)
    training = PlainTraining(config, "cpu", 32, is_quick)
    losses = [training.update()[0] for _ in range(300)]
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-30:]) < 0.85 * np.mean(losses[:30])


@pytest.mark.skipif(importlib.util.find_spec("ap_gym") is None, reason="NEEDS ap_gym: pip install -e '.[bench]'")
def test_ap_gym_sees_our_images_through_its_own_sensor() -> None:
    from benchmarks.peers import AP_GYM_STEPS, _ap_gym_config

    plan = Plan(Settings(2, 0.0, 0.0))
    ap_gym, config = _ap_gym_config(Case("peers.ap_gym_vector", "digits", 3), plan)
    envs = ap_gym.make_vec("MNIST-v0", num_envs=3, image_perception_config=config)
    observation, info = envs.reset(seed=0)
    assert observation["glimpse"].shape == (3, 8, 8, 1)
    images = load_dataset("digits", "train").images[info["index"]]
    np.testing.assert_array_equal(envs.unwrapped.image_perception_module.current_images[..., 0] * 255, images[:, 0])
    ended = []
    for _ in range(AP_GYM_STEPS + 1):
        action = {"action": np.zeros((3, 2), np.float32), "prediction": np.zeros((3, 10), np.float32)}
        ended.append(bool(envs.step(action)[2].any()))
    assert ended == [False] * (AP_GYM_STEPS - 1) + [True, False]
    envs.close()
    row = run_case(Case("peers.ap_gym_vector", "digits", 3), plan)
    check_rate(row, 3 * (AP_GYM_STEPS + 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU: the benchmarks on cuda")
@pytest.mark.parametrize(
    ("measure", "variant"),
    [
        ("stepping.vector", "NextStep torch"),
        ("stepping.sensor", "prepared"),
        ("stepping.sensor", "fresh"),
        ("stepping.scenes", ""),
        ("stepping.limit", ""),
        ("peers.crops", "tensor bounds"),
        ("memory.peak", ""),
        ("training.native", ""),
        ("training.limit", "bfloat16"),
        ("training.plain", "as published"),
        ("training.profile", ""),
    ],
)
def test_cases_run_on_a_gpu(measure: str, variant: str) -> None:
    row = run_case(Case(measure, "digits", 64, 1, "cuda", variant), Plan(Settings(2, 0.0, 0.0)))
    assert "skipped" not in row
    if "rate" in row:
        assert row["rate"]["min"] > 0
        if measure == "training.limit":
            assert row["operations_of_update"] == operations_of_update(64, steps=6)
    elif "peak_bytes" in row:
        assert row["peak_bytes"] >= 64 * 28 * 28
    else:
        assert row["operations"]
