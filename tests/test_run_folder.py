"""Run folders: files that are links, pipes or devices, one writer a run, and resuming where something is missing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents.cli import main
from agents.full_image.config import FullImageConfig
from agents.ram.config import RamConfig, preset
from agents.ram.training import train
from agents.registry import load_run
from agents.training import files, ranks
from agents.training.environment import find_data_root
from agents.training.files import HOLDER, LOCK, open_file
from agents.training.loop import Trainer
from agents.training.run_folder import RunError, RunFolder
from ram_gym import GlimpseConfig, has_dataset

TINY: dict[str, Any] = {
    "validate_every": 1,
    "hidden_size": 16,
    "glimpse_hidden_size": 8,
    "locator_hidden_size": 8,
    "learning_rate_schedule": "constant",
    "final_location_std": None,
}
FILES = ("config.json", "metrics.jsonl", "results.json", "last.safetensors", "best.safetensors")


def digits(**fields: Any) -> RamConfig:
    return dataclasses.replace(preset("digits"), **{**TINY, "epochs": 2, **fields})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run", ["begin"])
    train(digits(), folder)
    return folder.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, for a test to damage."""
    for file in FILES:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / file).write_bytes((trained / file).read_bytes())
    return tmp_path / "run"


def contents(path: Path) -> dict[str, bytes]:
    """The files of a run, but for those that locks leave."""
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith((".", "events"))}


def rows(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "train_seconds"} for row in RunFolder(path).read_metrics()
    ]


def fork(work: Callable[[], None]) -> int:
    """A child process that does some work, without a package being imported again. Its status is 1 for an error."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def status(pid: int) -> int:
    """How a child ended: its status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(path: Path) -> tuple[int, int]:
    """A child that trains in a folder until it is killed, and a pipe that ends with it."""
    read, write = os.pipe()

    def work() -> None:
        os.close(read)
        with RunFolder(path).training():
            os.write(write, b"!")
            time.sleep(600)

    pid = fork(work)
    os.close(write)
    assert os.read(read, 1) == b"!"
    return pid, read


# Links, pipes and devices


def reads(folder: RunFolder, name: str) -> Any:
    if name == "metrics.jsonl":
        return folder.read_metrics()
    return folder.read_tensors(name) if name.endswith("safetensors") else folder.read_json(name)


def writes(folder: RunFolder, name: str) -> None:
    if name == "metrics.jsonl":
        folder.append_metrics({"epoch": 3})
    elif name.endswith("safetensors"):
        folder.write_tensors(name, {"a": torch.zeros(1)}, {})
    else:
        folder.write_json(name, {})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "device"])
def test_what_is_no_regular_file_is_neither_read_nor_written(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    victim = tmp_path / "victim"
    (run / name).replace(victim)
    before = victim.read_bytes()
    if kind == "link":
        (run / name).symlink_to(victim)
    elif kind == "dangling":
        (run / name).symlink_to(tmp_path / "new")
    elif kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    elif os.getuid() == 0:
        os.mknod(run / name, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    else:
        pytest.skip("only root makes devices")
    word = {"dangling": "link"}.get(kind, kind)
    for use in (reads, writes):
        with pytest.raises(RunError, match=f"{name} must be a regular file, got a {word}"):
            use(RunFolder(run), name)
    assert victim.read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_pipe_that_takes_a_files_place_in_the_last_moment_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr(files, "require_regular", lambda path: None)
    for mode in ("rb", "ab"):
        for name in ("pipe", "link"):
            with pytest.raises((RunError, OSError)):
                open_file(tmp_path / name, mode)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    "name", [".results.json.tmp", ".results.json.lock", ".last.safetensors.tmp", ".metrics.jsonl.tmp", LOCK, HOLDER]
)
def test_a_planted_link_overwrites_nothing(run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / name).symlink_to(victim)
    for command in (["evaluate", str(run)], ["train", "ram", "--resume", str(run), "--epochs", "3"]):
        with suppress(SystemExit):
            main(command)
    assert victim.read_text() == "precious"


def test_files_are_as_readable_as_the_user_wants_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        writes(RunFolder(tmp_path), "config.json")
        writes(RunFolder(tmp_path), "metrics.jsonl")
        writes(RunFolder(tmp_path), "last.safetensors")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}


# One writer a run


def test_a_second_writer_is_refused_by_name_and_the_first_ones_death_lets_it_in(run: Path) -> None:
    before = contents(run)
    holder, pipe = hold(run)
    with pytest.raises(RunError, match=f"run is being trained by process {holder} on .+ since 20") as refused:
        train(digits(epochs=3), RunFolder(run), resume=True)
    assert "\n" not in str(refused.value)
    assert contents(run) == before
    os.kill(holder, signal.SIGKILL)
    assert os.read(pipe, 1) == b""
    assert status(holder) == -signal.SIGKILL
    os.close(pipe)
    train(digits(epochs=3), RunFolder(run), resume=True)
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3]
    assert not (run / HOLDER).exists()


def test_a_holder_that_has_not_written_its_name_is_still_a_holder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).training():
        (tmp_path / HOLDER).write_text("[]")
        with pytest.raises(RunError, match="is being trained by another process"), RunFolder(tmp_path).training():
            pytest.fail("two writers")
        with pytest.raises(RunError, match="is being trained by"):
            train(digits(), RunFolder(tmp_path))
    assert not (tmp_path / "config.json").exists()


def test_of_eight_starts_in_one_folder_one_wins(tmp_path: Path) -> None:
    go, start = os.pipe()
    folder = tmp_path / "new" / "run"

    def begin(number: int) -> None:
        os.close(start)
        os.read(go, 1)  # until all are there
        with RunFolder(folder, [str(number)]).training():
            RunFolder(folder, [str(number)]).create("ram", digits(seed=number))

    for _ in range(5):
        pids = [fork(lambda number=number: begin(number)) for number in range(8)]  # type: ignore[misc]
        os.close(start)
        codes = [status(pid) for pid in pids]
        os.close(go)
        assert sorted(codes) == [0] + [1] * 7
        about = RunFolder(folder).read_about()
        assert about["config"]["seed"] == codes.index(0)
        assert about["command"] == [str(codes.index(0))]
        (folder / "config.json").unlink()
        go, start = os.pipe()
    os.close(go)
    os.close(start)


def test_what_a_kill_left_half_written_is_cleared(run: Path) -> None:
    (run / ".ram_gym-0123456789abcdef.tmp").write_bytes(b"half")
    with RunFolder(run).training():
        assert not list(run.glob("*.tmp"))


def test_workers_end_with_their_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE_SECONDS", 0.2)
    for reaction in (signal.SIG_DFL, signal.SIG_IGN):
        read, write = os.pipe()

        def work() -> None:
            signal.signal(signal.SIGTERM, reaction)  # noqa: B023
            ranks._end_with_launcher()
            os.write(write, b"!")  # noqa: B023
            time.sleep(600)

        def launch() -> None:
            fork(work)
            time.sleep(600)

        launcher = fork(launch)
        os.close(write)
        assert os.read(read, 1) == b"!"
        os.kill(launcher, signal.SIGKILL)
        status(launcher)
        assert os.read(read, 1) == b"", "the worker's end of the pipe is closed by its end"
        os.close(read)


# Resuming where something is missing


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: (run / "last.safetensors").unlink(),
            "cannot be resumed: last.safetensors is missing; --like .+ --init",
        ),
        (lambda run: (run / "best.safetensors").unlink(), "has no checkpoint best.safetensors"),
        (lambda run: (run / "best.safetensors").write_bytes(b"half"), "best.safetensors is damaged"),
        (
            lambda run: change_about(run, "last.safetensors", best_epoch=9),
            "best.safetensors is of epoch [12], and the best so far was epoch 9",
        ),
        (
            lambda run: change_about(run, "last.safetensors", epoch=9),
            "is of update 0 after epoch 9, and the run has 3 e",
        ),
        (
            lambda run: change_about(run, "last.safetensors", epoch=1.5),
            "last.safetensors: epoch must be a valid integer, got 1.5",
        ),
        (lambda run: change_about(run, "last.safetensors", update_in_epoch=99), "is of update 99 after epoch 2"),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"epoch": 1}\nx\n{"epoch": 2}\n'),
            "damaged: line 2 is not the row",
        ),
        (lambda run: (run / "metrics.jsonl").write_text('{"epoch": "1"}\n'), "damaged: line 1 is not the row"),
    ],
)
def test_a_run_that_lost_something_is_refused(run: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(run)
    before = contents(run)
    with pytest.raises(RunError, match=message):
        train(digits(epochs=3), RunFolder(run), resume=True)
    assert contents(run) == before


def change_about(run: Path, name: str, **changes: Any) -> None:
    tensors, about = RunFolder(run).read_tensors(name)
    RunFolder(run).write_tensors(name, tensors, {**about, **changes})


def test_lost_rows_are_told_and_a_last_one_cut_short_is_not_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"epoch": 3, "tr')
    assert len(RunFolder(run).read_metrics()) == 2
    (run / "metrics.jsonl").write_text(whole.splitlines()[1] + "\n")
    train(digits(epochs=3), RunFolder(run), resume=True)
    assert "has no rows of 1 of 2 epochs, 1 to 1: these numbers are lost" in " ".join(capsys.readouterr().err.split())
    assert [row["epoch"] for row in rows(run)] == [2, 3]


def test_a_run_has_a_checkpoint_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")

    def kill(trainer: Trainer) -> None:
        raise MemoryError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", kill)
        with pytest.raises(MemoryError):
            train(digits(), folder)
    assert folder.read_tensors("last.safetensors")[1]["epoch"] == 0
    train(digits(), folder, resume=True)
    train(digits(), RunFolder(tmp_path / "unbroken"))
    assert rows(folder.path) == rows(tmp_path / "unbroken")


def test_a_failed_start_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        train(digits(batch_size=10**6), RunFolder(tmp_path / "run"))
    with pytest.raises(RunError, match="holds no run"):
        train(digits(), RunFolder(tmp_path / "run"), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(RunError, match=r"name that is utf-8 text, got '.+\\udcff'"):
        train(digits(), RunFolder(path))
    assert not path.exists()


# Going on longer, and from other weights


def test_a_finished_run_goes_on_longer_as_if_it_had_been_begun_so(run: Path, tmp_path: Path, capsys: Any) -> None:
    main(["train", "ram", "--resume", str(run), "--epochs", "3"])
    options = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    main(["train", "ram", "--task", "digits", *options, "--epochs", "3", "--out", str(tmp_path / "whole")])
    assert rows(run) == rows(tmp_path / "whole")
    ours, theirs = (load_file(path / "last.safetensors") for path in (run, tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    about = RunFolder(run).read_about()
    assert about["config"] == {**RunFolder(tmp_path / "whole").read_about()["config"]}
    assert RunFolder(run).read_json("results.json")["validation"]["epochs"] == 3
    main(["train", "ram", "--resume", str(run)])  # it is complete, and stays as it is
    assert RunFolder(run).read_about() == about
    with pytest.raises(SystemExit):
        main(["train", "ram", "--resume", str(run), "--epochs", "2"])
    assert "is of update 0 after epoch 3, and the run has 2 epochs" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("fields", "which"),
    [
        ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule was planned"),
        ({"final_location_std": 0.01, "location_std": 0.2}, "final_location_std was planned"),
        ({"learning_rate_schedule": "one-cycle", "final_location_std": 0.01}, "final_location_std were planned"),
    ],
)
def test_a_run_that_was_planned_for_its_length_names_the_command_that_trains_on(
    tmp_path: Path, fields: dict[str, Any], which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path / "run").create("ram", digits(**fields))
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ram", "--resume", str(tmp_path / "run"), "--epochs", "4"])
    assert stopped.value.code == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert which in shown
    assert f"Begin a new run: python -m agents train ram --like {tmp_path}/run --init {tmp_path}/run" in shown


def test_what_an_epoch_depends_on() -> None:
    assert digits().planned_fields() == []
    assert digits(location_std=0.2, final_location_std=0.2).planned_fields() == []
    assert FullImageConfig(task="digits").planned_fields() == ["learning_rate_schedule"]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_init_begins_with_another_runs_best_weights(trained: Path, tmp_path: Path, average: float) -> None:
    config = digits(learning_rate=1e-30, weight_average=average, epochs=1)
    train(config, RunFolder(tmp_path / "run"), init=RunFolder(trained))
    theirs = load_file(trained / "best.safetensors")
    ours = load_file(tmp_path / "run" / "best.safetensors")
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-6)
    validation = RunFolder(trained).read_json("results.json")["validation"]
    assert RunFolder(tmp_path / "run").read_metrics()[0]["validation_error_percent"] == validation["error_percent"]


def test_init_that_does_not_fit_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    for arguments, message in (
        (["ram", "--task", "digits", "--hidden-size", "17", "--init", str(trained)], "does not fit this configuration"),
        (["cnn", "--task", "digits", "--init", str(trained)], "is a run of 'ram', not of 'cnn'"),
        (["ram", "--task", "digits", "--init", str(tmp_path)], "holds no run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *arguments, *out])
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


# Where a run was trained


def test_where_and_by_what_a_run_goes_on_is_stored(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    about = json.loads((run / "config.json").read_text())
    about["hardware"] = {**about["hardware"], "cpu": "Imaginary 9000", "threads": 77}
    (run / "config.json").write_text(json.dumps(about))
    train(digits(epochs=3), RunFolder(run, ["on"]), resume=True)
    found = RunFolder(run).read_about()
    assert {key: found[key] for key in ("command", "versions", "hardware")} == {
        key: about[key] for key in ("command", "versions", "hardware")
    }
    (resumed,) = found["resumed"]
    assert (resumed["epoch"], resumed["command"], resumed["hardware"]["ranks"]) == (2, ["on"], 1)
    assert resumed["hardware"]["threads"] == 1  # its updates are small
    assert resumed["versions"]["torch"] == torch.__version__.partition("+")[0]
    shown = " ".join(capsys.readouterr().err.split())
    assert "numbers may differ" in shown
    assert "threads 1, not 77" in shown
    assert ", not Imaginary 9000" in shown
    train(digits(epochs=4), RunFolder(run, ["on"]), resume=True)
    assert len(RunFolder(run).read_about()["resumed"]) == 2
    assert "numbers may differ" not in capsys.readouterr().err


def test_nothing_is_made_in_the_data_folder_of_a_strangers_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger, own = tmp_path / "stranger", tmp_path / "own"
    monkeypatch.setenv("RAM_GYM_DATA", str(own))
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: pytest.fail(f"downloaded to {self.root}"))
    config = GlimpseConfig(dataset="mnist", data_root=str(stranger))
    assert find_data_root(config, None) is None
    assert f"The run's data folder, {stranger}, has no mnist here" in " ".join(capsys.readouterr().err.split())
    assert find_data_root(config, "given") == "given"
    assert find_data_root(config.replace(dataset="digits"), None) == str(stranger)
    assert find_data_root(config.replace(data_root=None), None) is None
    assert not stranger.exists()
    about = json.loads((run / "config.json").read_text())
    about["config"]["env_config"] |= {"data_root": str(stranger), "dataset": "mnist"}
    (run / "config.json").write_text(json.dumps(about))
    (tmp_path / "gif").mkdir()
    for command in (
        ["evaluate", str(run)],
        ["compare", str(run)],
        ["watch", str(run), "--gif", str(tmp_path / "gif" / "a.gif")],
        ["train", "ram", "--resume", str(run), "--epochs", "3"],
    ):
        with pytest.raises((SystemExit, pytest.fail.Exception)):
            main(command)
        assert not stranger.exists(), command


@pytest.mark.mnist
def test_the_data_folder_of_a_run_is_used_where_it_has_the_data(
    mnist_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAM_GYM_DATA", str(tmp_path))
    assert has_dataset("mnist", mnist_root)
    assert not has_dataset("mnist")
    assert not has_dataset("kmnist", tmp_path)
    assert has_dataset("digits")
    assert find_data_root(GlimpseConfig(dataset="mnist", data_root=mnist_root), None) == mnist_root


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2).to(torch.bfloat16)}
    folder = RunFolder(tmp_path)
    folder.create("ram", digits())
    header = {"epoch": 3, "fingerprint": folder.read_about()["fingerprint"]}
    folder.write_tensors("best.safetensors", tensors, header)
    found, about = folder.read_tensors("best.safetensors")
    assert about == header
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in tensors.items())
    with pytest.raises(RunError, match="weights must be baseline"):
        load_run(folder)


@pytest.mark.parametrize("value", ["null", '"x"', "true", "NaN", "Infinity", "[]", "-1e400"])
def test_rows_and_results_hold_numbers(run: Path, value: str) -> None:
    folder = RunFolder(run)
    whole = (run / "metrics.jsonl").read_text()
    for field in ("epoch", "scenes", "train_seconds", "validation_error_percent", "classification_loss"):
        (run / "metrics.jsonl").write_text(f'{whole}{{"epoch": 3, "{field}": {value}}}\n')
        with pytest.raises(RunError) as refused:
            folder.read_metrics()
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"{run}/metrics.jsonl is damaged: line 3 is not the row of an epoch: {field} must be ")
    for field in ("epoch", "error_percent", "interval_percent", "other_data"):
        if (field, value) in (("interval_percent", "[]"), ("other_data", "true")):
            continue
        (run / "results.json").write_text(f'{{"test single": {{"{field}": {value}}}}}')
        with pytest.raises(RunError) as refused:
            folder.read_results()
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"{run}/results.json: test single: {field} must be ")
    (run / "results.json").write_text('{"test single": {"colour": 1}}')
    with pytest.raises(RunError, match="test single: colour is no field of this version, got 1"):
        folder.read_results()
