"""A stranger's Stable-Baselines3 run: nothing in its zips is run, and what does not fit is refused."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.save_util import json_to_data

from agents.cli import main
from agents.registry import load_run
from agents.sb3.checkpoint import BEST, LAST, RunState, load_checkpoint, save_checkpoint
from agents.sb3.config import Sb3Config
from agents.sb3.policy import make_env, make_model
from agents.sb3.training import train
from agents.training.run_folder import RunError, RunFolder

CONFIG = Sb3Config(n_envs=8, hidden_size=16, glimpse_hidden_size=8, total_timesteps=96, evaluate_every=48, n_epochs=1)


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after the first of its two epochs."""
    folder = RunFolder(tmp_path_factory.mktemp("sb3") / "run")

    def stop(progress: object) -> None:
        if folder.read_metrics():
            raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        train(CONFIG, folder, on_progress=stop)
    assert len(folder.read_metrics()) == 1
    return folder.path


@pytest.fixture
def run(half_a_run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(half_a_run, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def change(path: Path, changes: dict[str, Callable[[bytes], bytes]]) -> None:
    """Writes a zip anew, with some entries changed or added."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name in entries | changes:
            data = entries.get(name, b"")
            archive.writestr(name, changes[name](data) if name in changes else data)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def change_tensors(path: Path, entry: str, edit: Callable[[Any], Any]) -> None:
    """What `edit` gives, if it is a dict or a list, else what it has edited."""

    def edited(data: bytes) -> bytes:
        value = torch.load(io.BytesIO(data), weights_only=True)
        new = edit(value)
        return saved(new if isinstance(new, dict | list) else value)

    change(path, {entry: edited})


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def arm(path: Path, mark: Path, *, policy: bool) -> None:
    """Puts code into a checkpoint wherever a loader may unpickle it: in entries of its own, or in the policy's."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    pickled = pickle.dumps(Touch(mark))
    data["harmless"] = {":type:": "x", ":serialized:": base64.b64encode(pickled).decode()}
    changes = {
        "data": json.dumps(data).encode(),
        "extra.pth": saved(Touch(mark)),
        "old.pth": pickled,
        "pytorch_variables.pth": saved({"x": Touch(mark)}),
        "policy/extra.pth": pickled,
    }
    if policy:
        changes |= {"policy.pth": saved({"what": Touch(mark)}), "policy.optimizer.pth": saved(Touch(mark))}
    change(path, {name: lambda _, value=value: value for name, value in changes.items()})  # type: ignore[misc]


def test_code_in_other_entries_is_not_run(run: RunFolder, tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    arm(run.path / BEST, mark, policy=False)
    arm(run.path / LAST, mark, policy=False)
    assert load_run(run).epoch == 1
    assert train(CONFIG, run, resume=True).is_complete
    assert not mark.exists()


def test_code_in_the_policy_is_not_run(run: RunFolder, tmp_path: Path, capsys: Any) -> None:
    mark, path = tmp_path / "touched", str(run.path)
    arm(run.path / BEST, mark, policy=True)
    arm(run.path / LAST, mark, policy=True)
    before = {file.name: file.read_bytes() for file in run.path.iterdir()}
    for command in (["evaluate", path], ["train", CONFIG.algorithm, "--resume", path]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert said.endswith("is damaged and cannot be read: policy.pth must hold tensors and nothing else\n")
        assert said.count("\n") == 1
    assert not mark.exists()
    assert {file.name: file.read_bytes() for file in run.path.iterdir()} == before


@pytest.mark.parametrize("entry", ["data", "extra.pth", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"])
def test_the_code_runs_in_whoever_trusts_it(run: RunFolder, tmp_path: Path, entry: str) -> None:
    """So that the tests above show something."""
    mark = tmp_path / "touched"
    arm(run.path / BEST, mark, policy=True)
    with zipfile.ZipFile(run.path / BEST) as archive:
        if entry == "data":
            json_to_data(archive.read(entry).decode())
        else:
            torch.load(io.BytesIO(archive.read(entry)), weights_only=False)
    assert mark.exists()


def fail_to_load(run: RunFolder, name: str, message: str) -> None:
    """Loading fails with this message, and the model stays as it was."""
    model = make_model(CONFIG, make_env(CONFIG, CONFIG.env_config, CONFIG.n_envs))
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    with pytest.raises(RunError, match=message):
        load_checkpoint(run, name, model.policy, model.policy.optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.policy.state_dict().items())
    assert not model.policy.optimizer.state_dict()["state"]


def edit_policy(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: change_tensors(path, "policy.pth", edit)


def edit_optimizer(edit: Callable[[dict[int, dict[str, Any]]], Any]) -> Callable[[Path], None]:
    return lambda path: change_tensors(path, "policy.optimizer.pth", lambda value: str(edit(value["state"])))


def packed(data: bytes) -> bytes:
    """The zip compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


BIAS = "action_net.bias"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: change(path, {"policy.pth": lambda data: data[: len(data) // 2]}), "damaged"),
        (lambda path: change(path, {"policy.pth": lambda data: data + bytes(2**22)}), "policy.pth must have at most"),
        (lambda path: change(path, {"policy.pth": packed}), "policy.pth must not be compressed"),
        (lambda path: change(path, {"run.json": lambda _: b"[" * 9999}), "damaged"),
        (lambda path: change(path, {"run.json": lambda _: b" " * 2**17}), "run.json must have at most"),
        (edit_policy(lambda held: held[BIAS].fill_(torch.nan)), f"{BIAS} must be finite"),
        (edit_policy(lambda held: {**held, BIAS: held[BIAS].long()}), f"{BIAS} must be torch.float32 .*int64"),
        (edit_policy(lambda held: {**held, BIAS: held[BIAS].double()}), f"{BIAS} must be torch.float32 .*float64"),
        (edit_policy(lambda held: {**held, BIAS: held[BIAS][:1]}), f"{BIAS} must be .*24.*got .*1,"),
        (edit_policy(lambda held: {**held, BIAS: held[BIAS].to("meta")}), f"{BIAS} must be a tensor"),
        (edit_policy(lambda held: {**held, BIAS: 3}), f"{BIAS} must be a tensor .*int"),
        (edit_policy(lambda held: {**held, "more": held[BIAS]}), "weights must be"),
        (edit_policy(lambda held: [held[BIAS]]), "weights must be .*got list"),
        (edit_optimizer(lambda state: state.pop(3)), "a state for each of"),
        (edit_optimizer(lambda state: state.clear()), "a state for each of"),
        (edit_optimizer(lambda state: state[2].pop("exp_avg")), "optimizer state 2 must be"),
        (edit_optimizer(lambda state: state[2]["exp_avg"].fill_(torch.inf)), "exp_avg must be finite"),
        (edit_optimizer(lambda state: state[2]["exp_avg_sq"].fill_(-1.0)), "exp_avg_sq 0 or more"),
        (edit_optimizer(lambda state: state[2]["step"].fill_(0)), "step must be 1 or more"),
    ],
)
def test_what_is_damaged_or_does_not_fit_is_refused(run: RunFolder, harm: Callable[[Path], None], message: str) -> None:
    harm(run.path / LAST)
    fail_to_load(run, LAST, message)


def test_the_optimizers_settings_are_the_configs(run: RunFolder) -> None:
    def edit(held: dict[str, Any]) -> None:
        held["param_groups"][0].update(betas=(0.0, 0.0), eps=9.0, maximize=True)

    change_tensors(run.path / LAST, "policy.optimizer.pth", edit)
    model = make_model(CONFIG, make_env(CONFIG, CONFIG.env_config, CONFIG.n_envs))
    before = model.policy.optimizer.state_dict()["param_groups"]
    load_checkpoint(run, LAST, model.policy, model.policy.optimizer)
    assert model.policy.optimizer.state_dict()["param_groups"] == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_are_read(run: RunFolder, kind: str) -> None:
    path = run.path / LAST
    path.rename(run.path / "elsewhere.zip")
    if kind == "link":
        path.symlink_to(run.path / "elsewhere.zip")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    fail_to_load(run, LAST, "must be a regular file")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 1.5}, "epoch must be a valid integer, got 1.5"),
        ({"epoch": True}, "epoch must be a valid integer, got True"),
        ({"epoch": None}, "epoch must be a valid integer, got None"),
        ({"steps": "48"}, "steps must be a valid integer, got '48'"),
        ({"updates": -1}, "updates must be greater than or equal to 0, got -1"),
        ({"best_epoch": 2}, "best_epoch must be 0 to 1, got 2"),
        ({"best_error": None}, "best_error must be a number"),
        ({"fingerprint": "0" * 64}, "is of a run on other data than"),
        ({"fingerprint": None}, "fingerprint must be a valid string, got None"),
        ({"best_error": 101.0}, "best_error must be"),
        ({"seconds": "1"}, "seconds must be"),
        ({"epoch": 3}, "epoch must be in 1 to 2"),
        ({"steps": 47}, "steps 48, got 1 and 47"),
        ({"more": 1}, "more"),
    ],
)
def test_a_run_state_of_another_run_is_refused(run: RunFolder, fields: dict[str, Any], message: str) -> None:
    change(run.path / LAST, {"run.json": lambda data: json.dumps({**json.loads(data), **fields}).encode()})
    with pytest.raises(RunError, match=message):
        train(CONFIG, run, resume=True)


def test_a_checkpoint_is_written_through_no_link(run: RunFolder, tmp_path: Path) -> None:
    shutil.copy(run.path / LAST, tmp_path / "theirs")
    before = (tmp_path / "theirs").read_bytes()
    (run.path / LAST).unlink()
    (run.path / LAST).symlink_to(tmp_path / "theirs")
    model = make_model(CONFIG, make_env(CONFIG, CONFIG.env_config, CONFIG.n_envs))
    state = RunState(epoch=1, seconds=1.0, steps=48, updates=1, best_error=50.0, best_epoch=1, fingerprint="0" * 64)
    with pytest.raises(RunError, match="must be a regular file, got a link"):
        save_checkpoint(model, run, LAST, state)
    assert (tmp_path / "theirs").read_bytes() == before


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (lambda run: (run / BEST).unlink(), f"has no checkpoint {BEST}"),
        (lambda run: (run / BEST).write_bytes(b"half"), f"{BEST} is damaged"),
        (lambda run: change(run / BEST, {"run.json": lambda data: data.replace(b'_epoch": 1', b'_epoch": 0')}), BEST),
        (lambda run: (run / "metrics.jsonl").write_text("x\n"), "line 1 is not the row"),
        (lambda run: ((run / "metrics.jsonl").write_text('{"epoch":1}\n{"epoch":2}\n'), (run / LAST).unlink()), LAST),
    ],
)
def test_a_run_that_lost_something_is_refused(run: RunFolder, lose: Callable[[Path], Any], message: str) -> None:
    lose(run.path)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.suffix in (".zip", ".json", ".jsonl")}
    with pytest.raises(RunError, match=message):
        train(CONFIG, run, resume=True)
    for name, content in before.items():
        assert (run.path / name).read_bytes() == content


def test_a_run_without_a_complete_epoch_begins_again_and_says_so(run: RunFolder, capsys: Any) -> None:
    (run.path / LAST).unlink()  # as if it was killed before its first one was whole
    train(CONFIG, run, resume=True)
    assert "has no complete epoch: training starts again" in " ".join(capsys.readouterr().err.split())
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    (resumed,) = run.read_about()["resumed"]
    assert resumed["epoch"] == 0
    assert {"stable-baselines3", "sb3-contrib", "torch"} <= set(resumed["versions"])


def test_two_do_not_train_in_one_folder(run: RunFolder, tmp_path: Path) -> None:
    with run.training(), pytest.raises(RunError, match="is being trained by process"):
        train(CONFIG, run, resume=True)
    with RunFolder(tmp_path / "new").training(), pytest.raises(RunError, match="is being trained by process"):
        train(CONFIG, RunFolder(tmp_path / "new"))
