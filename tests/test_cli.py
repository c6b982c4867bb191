"""The command line as a user meets it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.cli import main
from agents.training.run_folder import RunError, RunFolder
from ram_gym.files import escape_markdown
from tests.test_files import full_disk

ROOT = Path(__file__).parents[1]
SMALL = [
    "--task",
    "digits",
    "--validate-every",
    "1",
    "--hidden-size",
    "16",
    "--glimpse-hidden-size",
    "8",
    "--locator-hidden-size",
    "8",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    main(["train", "ram", *SMALL, "--epochs", "2", "--out", str(path)])
    return path


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    main(list(arguments))
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.out + shown.err


@pytest.mark.parametrize("protocol", ["single", "average-10"])
def test_evaluate_prints_the_object_it_promises(run: Path, capsys: Any, protocol: str) -> None:
    found = json.loads(output(capsys, "evaluate", str(run), "--protocol", protocol, "--json"))
    assert {"task", "policy", "protocol", "episodes", "errors", "error_percent", "interval_percent"} <= set(found)
    assert (found["task"], found["protocol"], found["episodes"]) == ("digits", protocol, 358)
    assert found["error_percent"] == 100 * found["errors"] / 358
    low, high = found["interval_percent"]
    assert low < found["error_percent"] < high
    assert RunFolder(run).read_json("results.json")[f"test {protocol}"] == found
    assert found["epoch"] == RunFolder(run).read_json("results.json")["validation"]["epoch"]
    text = output(capsys, "evaluate", str(run), "--protocol", protocol)
    assert f"error {found['error_percent']:.2f}% ({found['errors']} of 358)" in text


def test_compare_scores_all_policies_on_the_same_scenes(run: Path, capsys: Any) -> None:
    names = ["random", "centre", "scan", "oracle"]
    rows = json.loads(output(capsys, "compare", str(run), *names, "--task", "digits", "--json"))
    assert [row["policy"] for row in rows] == [str(run), *(f"{name}*" for name in names)]
    alone = json.loads(output(capsys, "evaluate", str(run), "--json"))
    assert {key: value for key, value in rows[0].items() if key in alone}.items() <= alone.items()
    assert set(alone) - set(rows[0]) == {"epoch"}
    for row in rows[1:]:
        assert row["difference_percent"] == pytest.approx(row["error_percent"] - alone["error_percent"])
        low, high = row["difference_interval_percent"]
        assert low <= row["difference_percent"] <= high
        assert 0 <= row["p_value"] <= 1
    table = output(capsys, "compare", str(run), "random")
    assert "accuracy %" in table
    assert "random*" in table
    assert "after each glimpse" in table
    guessing = json.loads(output(capsys, "compare", "random", "--task", "digits", "--json"))
    assert 80 < guessing[0]["error_percent"] < 97


def test_compare_writes_files_and_takes_several_tasks_and_a_reference(run: Path, capsys: Any, tmp_path: Path) -> None:
    files = {kind: tmp_path / "new" / f"table.{kind}" for kind in ("report", "markdown", "csv")}
    arguments = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    setting = ["--task", "digits", "--reference", "scan", "--split", "validation"]
    rows = json.loads(output(capsys, "compare", str(run), "random", "scan", *setting, *arguments, "--json"))
    assert [row["reference"] for row in rows] == ["scan*"] * 3
    assert ["p_value" in row for row in rows] == [True, True, False]
    assert all(row["accuracy_by_glimpse_percent"][-1] == row["accuracy_percent"] for row in rows)
    page, markdown = files["report"].read_text(), files["markdown"].read_text()
    for name in (run.name, "random*", "scan*"):
        assert name in page
        assert f"| {escape_markdown(name)} | " in markdown
    assert "* locations as named" in page
    assert "\\* locations as named" in markdown
    assert f"compare {run} random scan --task digits" in page
    assert files["csv"].read_text().count("\n") == 4
    message = refusal(capsys, "compare", str(run), "scan", "--reference", "centre")
    assert "--reference must be one of the policies" in message


@pytest.mark.mnist
def test_runs_play_their_own_of_several_tasks(run: Path, capsys: Any, mnist_root: str) -> None:
    tasks = ["--task", "digits", "--task", "mnist-28", "--data-root", mnist_root]
    rows = json.loads(output(capsys, "compare", str(run), "centre", *tasks, "--json"))
    assert [(row["task"], row["policy"]) for row in rows] == [
        ("digits", str(run)),
        ("digits", "centre*"),
        ("mnist-28", "centre, guessing"),
    ]
    assert [row["episodes"] for row in rows] == [358, 358, 10_000]


def test_watch_draws_every_episode(run: Path, capsys: Any, tmp_path: Path) -> None:
    output(capsys, "watch", str(run), "--gif", str(tmp_path / "new" / "a.gif"), "--episodes", "3")
    with Image.open(tmp_path / "new" / "a.gif") as image:
        assert image.n_frames > 3 * 6
        assert image.width > 400


def test_evaluate_says_what_differs_from_the_task(tmp_path: Path, capsys: Any) -> None:
    run = str(tmp_path / "run")
    main(["train", "ram", *SMALL, "--epochs", "1", "--num-glimpses", "1", "--composition", "overwrite", "--out", run])
    text = output(capsys, "evaluate", run)
    assert text.startswith("digits, overwrite, 1 glimpse, test split, single protocol: error ")
    title = output(capsys, "compare", run, "--markdown", str(tmp_path / "table.md")).splitlines()[0]
    assert title == "digits, overwrite, 1 glimpse, test split, single protocol, 358 scenes"
    assert (tmp_path / "table.md").read_text().startswith(f"## {title}\n")
    assert output(capsys, "watch", run, "--gif", str(tmp_path / "a.gif"), "--episodes", "1").endswith(": 1 episode\n")


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_files_are_written_before_what_nobody_reads(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """`python -m agents ... | head` ends quietly, and only after its files are complete."""
    copy, files = tmp_path / "copy", {kind: tmp_path / f"table.{kind}" for kind in ("report", "markdown", "csv")}
    shutil.copytree(run, copy)
    (copy / "results.json").unlink()
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    plot = tmp_path / "plot.svg"
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    for arguments in (
        ["evaluate", str(copy)],
        ["compare", str(copy), *options],
        ["probe", str(copy), "--by", "glimpses", "--values", "2", "--plot", str(plot)],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 141
    assert RunFolder(copy).read_json("results.json")["test single"]["episodes"] == 358
    assert files["report"].read_text().rstrip().endswith("</html>")
    assert files["csv"].read_text().count("\n") == 2
    assert "accuracy" in files["markdown"].read_text()
    assert "</svg>" in plot.read_text()


def test_a_closed_pipe_and_a_full_disk_end_the_process_cleanly() -> None:
    command = [sys.executable, "-m", "agents", "compare", "random", "--task", "digits"]
    reader, writer = os.pipe()
    os.close(reader)
    ends = [
        subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
        for stdout in (writer, os.open("/dev/full", os.O_WRONLY))
    ]
    os.close(writer)
    lines = [[line for line in end.stderr.splitlines() if not line.startswith("evaluating")] for end in ends]
    assert (ends[0].returncode, lines[0]) == (141, [])
    assert (ends[1].returncode, lines[1]) == (2, ["error: [Errno 28] No space left on device"])


@pytest.mark.parametrize(
    ("option", "name"), [("--report", "a.html"), ("--markdown", "a.md"), ("--csv", "a.csv"), ("--plot", "a.png")]
)
def test_a_full_disk_is_named_and_keeps_the_old_file(
    run: Path, tmp_path: Path, capsys: Any, option: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text("old")
    probe = ["probe", str(run), "--by", "glimpses", "--values", "2"]
    with full_disk(200):
        text = refusal(capsys, *(probe if option == "--plot" else ["compare", str(run)]), option, str(path))
    assert f"so the file is not written: '{path}'" in text
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_mistakes_are_one_clear_line(run: Path, capsys: Any, tmp_path: Path) -> None:
    assert "holds no run" in refusal(capsys, "evaluate", str(tmp_path))
    assert "already" in refusal(capsys, "train", "ram", *SMALL, "--out", str(run))
    assert "task must be one of" in refusal(capsys, "train", "ram", "--task", "imagenet")
    assert "cannot train longer" in refusal(capsys, "train", "ram", "--resume", str(run), "--epochs", "9")
    for option in (["--task", "mnist-28"], ["--seed", "0"], ["--out", "x"]):
        assert "Unrecognized" in refusal(capsys, "train", "ram", "--resume", str(run), *option)
    assert "'warp' cannot be used" in refusal(capsys, "evaluate", str(run), "--device", "warp")
    assert "cannot be used" in refusal(capsys, "train", "ram", *SMALL, "--device", "warp", "--out", str(tmp_path))
    assert "milliseconds must lie" in refusal(capsys, "watch", str(run), "--gif", "x.gif", "--milliseconds", "-5")
    assert "ends in .gif" in refusal(capsys, "watch", str(run), "--gif", "x.mp4")
    assert "learning_rate must be a finite number" in refusal(capsys, "train", "ram", *SMALL, "--learning-rate", "inf")
    assert "seed must be less than" in refusal(capsys, "train", "ram", *SMALL, "--seed", "99999999999999999999")
    assert "holds no run" in refusal(capsys, "train", "ram", "--resume", str(tmp_path / "nothing"))
    assert "is a run on digits" in refusal(capsys, "compare", str(run), "--task", "mnist-28")
    assert "--task is missing: give a task or a run" in refusal(capsys, "compare", "random")
    assert "POLICY" in refusal(capsys, "compare") or "policies" in refusal(capsys, "compare")
    assert "first must lie" in refusal(capsys, "watch", str(run), "--gif", str(tmp_path / "x.gif"), "--first", "358")
    where = str(tmp_path)
    missing = refusal(capsys, "train", "ram", "--task", "mnist-28", "--data-root", where, "--out", where)
    assert "digits" in missing
    assert not (tmp_path / "config.json").exists()


def test_a_run_is_made_again_like_another(run: Path, tmp_path: Path, capsys: Any) -> None:
    def trained(name: str, *arguments: str) -> RunFolder:
        main(["train", "ram", *arguments, "--out", str(tmp_path / name)])
        return RunFolder(tmp_path / name)

    first, again = RunFolder(run), trained("again", "--like", str(run))
    assert again.read_config("ram") == first.read_config("ram")
    for ours, theirs in zip(again.read_metrics(), first.read_metrics(), strict=True):
        assert {**ours, "train_seconds": 0} == {**theirs, "train_seconds": 0}
    other = trained("other", "--seed", "1", "--like", str(again.path), "--hidden-size", "8")
    assert other.read_config("ram") == {**first.read_config("ram"), "seed": 1, "hidden_size": 8}
    out = ["--out", str(tmp_path / "none")]
    assert "give one of them" in refusal(capsys, "train", "ram", "--like", str(run), "--resume", str(run))
    copies = ["--like", str(run), "--distorted-copies", "1", "--device", "warp"]
    assert "'warp' cannot be used here" in refusal(capsys, "train", "ram", *copies, *out)
    assert "holds no run" in refusal(capsys, "train", "ram", "--like", str(tmp_path), *out)
    assert "ram" in refusal(capsys, "train", "cnn", "--like", str(run), *out)
    assert "pretrained:mnist-28" in refusal(capsys, "train", "ram", "--like", "pretrained:none", *out)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("locator", ["learned", "random", "centre", "scan"])
def test_a_run_is_evaluated_with_the_locator_it_was_trained_with(tmp_path: Path, capsys: Any, locator: str) -> None:
    run = str(tmp_path / "run")
    main(["train", "ram", *SMALL, "--epochs", "3", "--locator", locator, "--out", run])
    validation = RunFolder(run).read_json("results.json")["validation"]
    found = json.loads(output(capsys, "evaluate", run, "--split", "validation", "--json"))
    assert found["error_percent"] == validation["error_percent"]
    assert found["epoch"] == validation["epoch"]
    alone = json.loads(output(capsys, "evaluate", run, "--json"))
    compared = json.loads(output(capsys, "compare", run, "centre", "--json"))
    assert compared[0]["errors"] == alone["errors"]
    if locator == "centre":
        assert compared[1]["errors"] == alone["errors"]


def test_where_the_files_lie_does_not_keep_runs_from_being_compared(run: Path, tmp_path: Path, capsys: Any) -> None:
    other = str(tmp_path / "other")
    main(["train", "ram", *SMALL, "--epochs", "1", "--data-root", str(tmp_path), "--out", other])
    assert len(json.loads(output(capsys, "compare", str(run), other, "--json"))) == 2
    main(["train", "ram", *SMALL, "--epochs", "1", "--num-glimpses", "3", "--out", str(tmp_path / "short")])
    assert "3 glimpses" in refusal(capsys, "compare", str(run), str(tmp_path / "short"))


def test_what_cannot_be_compared_is_refused_before_anything_is_played(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(*arguments: Any, **more: Any) -> None:
        raise AssertionError("something was played")

    monkeypatch.setattr("agents.analysis.compare.evaluate", play)
    tasks = ["--task", "digits", "--task", "imagenet"]
    assert "task must be one of" in refusal(capsys, "compare", "random", *tasks)


def test_an_error_says_whose_policy_raised_it(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any) -> None:
        error = ValueError("action must be finite")
        error.add_note("raised by policy 'runs/x'")
        raise error

    monkeypatch.setattr("agents.analysis.evaluate.load_run", load)
    assert "action must be finite; raised by policy 'runs/x'" in refusal(capsys, "evaluate", "runs/x")


def test_the_folder_one_is_in_has_a_name_too(run: Path, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(run)
    output(capsys, "compare", ".", "--markdown", str(tmp_path / "table.md"))
    assert "| . | " in (tmp_path / "table.md").read_text()


def test_damaged_runs_are_one_clear_line(run: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    for content in ("[]", '{"agent": "ram"}', '{"agent": "ram", "config": {"epochs": "two"}}', "{"):
        shutil.copytree(run, copy, dirs_exist_ok=True)
        (copy / "config.json").write_text(content)
        assert "copy" in refusal(capsys, "evaluate", str(copy))
        assert "copy" in refusal(capsys, "train", "ram", "--resume", str(copy))
    shutil.copytree(run, copy, dirs_exist_ok=True)
    (copy / "results.json").write_text("[]")
    found = output(capsys, "evaluate", str(copy), "--json")
    assert json.loads(found)["episodes"] == 358, "what was measured is shown though it cannot be kept"
    (copy / "metrics.jsonl").write_text("12\n")
    with pytest.raises(RunError, match="line 1 is not the row of an epoch"):
        RunFolder(copy).read_metrics()
    mode = (copy / "config.json").stat().st_mode
    assert (copy / "best.safetensors").stat().st_mode == (copy / "last.safetensors").stat().st_mode == mode


@pytest.mark.parametrize(("package", "extras"), [("stable_baselines3", "agents,sb3"), ("tyro", "agents")])
def test_a_missing_package_is_named_with_what_installs_it(package: str, extras: str) -> None:
    code = f"import runpy, sys; sys.modules['{package}'] = None; sys.argv[1:] = ['train', 'sb3-ppo']; "
    command = [sys.executable, "-c", code + "runpy.run_module('agents', run_name='__main__')"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert package in ended.stderr
    assert f"install it with pip install -c constraints.txt -e '.[{extras}]'" in ended.stderr


def test_help_reads_well(capsys: Any) -> None:
    for arguments, words in (
        (["--help"], ["train", "evaluate", "compare", "watch"]),
        (["train", "--help"], ["ram", "Recurrent Attention Model"]),
        (["train", "ram", "--help"], ["--task", "--epochs", "--location-std", "--resume", "Passes over the training"]),
        (["train", "ram", "--task", "digits", "--help"], ["default: 64"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        for word in words:
            assert word in shown


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agents", "train", "ram", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_epochs(folder: Path, epochs: int) -> None:
    end = time.monotonic() + 600
    while len(RunFolder(folder).read_metrics()) < epochs:
        assert time.monotonic() < end, "training did not get that far in ten minutes"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_numbers_of_an_unbroken_one(tmp_path: Path, how: signal.Signals) -> None:
    arguments = [*SMALL, "--epochs", "40", "--checkpoint-minutes", "0.001"]
    broken = start(*arguments, "--out", str(tmp_path / "broken"))
    wait_for_epochs(tmp_path / "broken", 2)
    broken.send_signal(how)
    _, errors = broken.communicate(timeout=60)
    assert broken.returncode == (130 if how == signal.SIGINT else -how), errors
    if how == signal.SIGINT:
        assert f"saved. To resume: python -m agents train ram --resume {tmp_path / 'broken'}" in errors
    assert len(RunFolder(tmp_path / "broken").read_metrics()) < 40, "it was over before it was stopped"
    for process in (
        start("--resume", str(tmp_path / "broken")),
        start(*arguments, "--out", str(tmp_path / "unbroken")),
    ):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    broken_rows, unbroken_rows = (
        [{k: v for k, v in row.items() if k != "train_seconds"} for row in RunFolder(tmp_path / name).read_metrics()]
        for name in ("broken", "unbroken")
    )
    assert broken_rows == unbroken_rows
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("broken", "unbroken")]
    assert weights[0] == weights[1]
    events = EventAccumulator(str(tmp_path / "broken"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("validation_error_percent")]
    expected = [(row["epoch"], row["validation_error_percent"]) for row in unbroken_rows]
    np.testing.assert_allclose(scalars, expected, rtol=1e-6)
