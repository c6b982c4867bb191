"""Safetensors of a run: whatever happened to them is refused in one line, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from agents.cli import main
from agents.full_image.config import FullImageConfig
from agents.full_image.training import train as train_full_image
from agents.ram.config import RamConfig
from agents.ram.training import RamLearner
from agents.registry import load_run
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from agents.training.loop import Trainer
from agents.training.pretrained import PRETRAINED_FOLDER
from agents.training.run_folder import RunError, RunFolder
from agents.training.tensors import decode, digest, encode

CONFIG = RamConfig(task="digits", epochs=2, batch_size=512, hidden_size=8, glimpse_hidden_size=4, locator_hidden_size=4)
BEST, LAST = "best.safetensors", "last.safetensors"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.create("ram", CONFIG)
    trainer = Trainer(RamLearner, CONFIG, folder)
    for _ in range(trainer.updates_per_epoch):
        trainer.update()
    trainer.end_epoch()
    trainer.update()
    save_checkpoint(trainer)
    return folder.path


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(stopped, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def entries(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def change(path: Path, edit: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    """Writes a file whose digest is right, with what `edit` makes of its tensors and of its header."""
    tensors, metadata = entries(path)
    about = json.loads(metadata["about"])
    edit(tensors, about)
    text = json.dumps(about)
    save_file(tensors, path, {"about": text, "sha256": digest(tensors, text)})


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(RunError) as refused:
        action()
    (line,) = str(refused.value).splitlines()
    return line


def set_nan(tensors: dict[str, Tensor], _: Any) -> None:
    name = next(name for name in tensors if name.endswith("classifier.bias"))
    tensors[name][3] = torch.nan


def test_the_digest_is_of_names_dtypes_shapes_and_bytes() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0), "c": torch.ones(2, dtype=torch.bfloat16)}
    right = digest(tensors, "text")
    assert right == digest(dict(reversed(tensors.items())), "text") == digest({**tensors}, "text")
    assert re.fullmatch("[0-9a-f]{64}", right)
    a = tensors["a"]
    others = [
        {**tensors, "a": a.reshape(3, 2)},
        {**tensors, "a": a.view(torch.int32)},
        {**tensors, "a": -a},
        {"d": a, "b": tensors["b"], "c": tensors["c"]},
        {"a": a, "b": tensors["b"]},
        {**tensors, "c": tensors["c"].view(torch.float16)},
    ]
    found = {right, digest(tensors, "other"), digest(tensors), *(digest(other, "text") for other in others)}
    assert len(found) == 9
    assert digest({"a": a.T.contiguous().T}, "") == digest({"a": a}, "")


def test_the_same_content_gives_the_same_bytes() -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.int64), "ä": torch.zeros(())}
    about = {"epoch": 3, "name": "ü"}
    (data,) = {encode(tensors, about) for _ in range(20)}
    found, read = decode(data)
    assert read == about
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", [BEST, LAST])
def test_a_flipped_bit_is_one_line(run: RunFolder, name: str) -> None:
    """In the header every byte is tried, among the tensors some: all are refused, or change nothing that is read."""
    data = (run.path / name).read_bytes()
    size = 8 + struct.unpack("<Q", data[:8])[0]
    rng = np.random.default_rng(0)
    places = [*range(size), *rng.integers(size, len(data), 60).tolist()]
    sound, about = run.read_tensors(name)
    taken = []
    for place in places:
        bit = 1 << int(rng.integers(8))
        (run.path / name).write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            tensors, header = run.read_tensors(name)
        except RunError as error:
            (line,) = str(error).splitlines()
            assert line.startswith(f"{run.path}/{name}"), line
        else:
            assert digest(tensors) == digest(sound)
            assert header == about
            taken.append(place)
    assert all(place < size for place in taken)
    assert len(taken) < 0.05 * size, "spaces that are read as other white space at most"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_nan, "weights: classifier.bias must be finite, got NaN or infinity"),
        (
            lambda tensors, _: tensors.update({"baseline.bias": torch.zeros(1, dtype=torch.int64)}),
            "weights: baseline.bias must be torch.float32 (1,), got torch.int64 (1,)",
        ),
        (
            lambda tensors, _: tensors.update({"baseline.bias": torch.zeros(1, dtype=torch.bfloat16)}),
            "weights: baseline.bias must be torch.float32 (1,), got torch.bfloat16 (1,)",
        ),
        (
            lambda tensors, _: tensors.update({"baseline.bias": torch.zeros(2)}),
            "weights: baseline.bias must be torch.float32 (1,), got torch.float32 (2,)",
        ),
        (lambda tensors, _: tensors.pop("baseline.bias"), "weights must be baseline.bias, baseline.weight, "),
        (lambda _, about: about.pop("epoch"), "epoch is missing; python -m agents migrate"),
        (lambda _, about: about.update(epoch=1.5), "epoch must be a valid integer, got 1.5"),
        (lambda _, about: about.update(epoch=None), "epoch must be a valid integer, got None"),
        (lambda _, about: about.update(colour=1), "colour is no field of this version, got 1"),
        (lambda _, about: about.update(fingerprint="0" * 64), "is of a run on other data than"),
    ],
)
def test_wrong_weights_are_one_line(run: RunFolder, edit: Any, message: str, capsys: Any) -> None:
    change(run.path / BEST, edit)
    line = refusal(lambda: load_run(run))
    assert line.startswith(f"{run.path}/{BEST}")
    assert message in line
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(run.path)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def drop(start: str) -> Any:
    """An edit that removes the tensors whose names begin so."""

    def edit(tensors: dict[str, Tensor], _: Any) -> None:
        for name in [name for name in tensors if name.startswith(start)]:
            del tensors[name]

    return edit


SEED = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("optimizer."), "the optimizer must have a state for each of 18 parameters, got 0"),
        (lambda tensors, _: tensors.pop("optimizer.3.exp_avg"), "optimizer state 3 must be exp_avg, exp_avg_sq, step"),
        (drop("optimizer.3."), "the optimizer must have a state for each of 18 parameters, got 17"),
        (lambda tensors, _: tensors.update({"optimizer.x.step": torch.ones(())}), "each of 18 parameters, got 19"),
        (lambda tensors, _: tensors["optimizer.2.exp_avg_sq"].fill_(-1), "exp_avg_sq 0 or more"),
        (
            lambda tensors, _: tensors["optimizer.2.exp_avg"].fill_(torch.inf),
            "optimizer state 2: exp_avg must be finite",
        ),
        (set_nan, "weights: classifier.bias must be finite"),
        (lambda tensors, _: tensors.pop("sums"), "other tensors must be generator, sums, got generator"),
        (
            lambda tensors, _: tensors.update(generator=SEED),
            "generator must be torch.uint8",
        ),
        (lambda _, about: about.update(update_in_epoch=-1), "update_in_epoch must be greater than or equal to 0"),
        (lambda _, about: about.update(best_error="low"), "best_error must be a valid number, got 'low'"),
        (lambda _, about: about.update(best_error=101), "best_error must be less than or equal to 100, got 101"),
        (lambda _, about: about.pop("seconds"), "seconds is missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_and_changes_nothing(run: RunFolder, edit: Any, message: str) -> None:
    change(run.path / LAST, edit)
    trainer = Trainer(RamLearner, CONFIG, run)
    trainer.update()
    before = digest(trainer.model.state_dict())
    line = refusal(lambda: load_checkpoint(trainer))
    assert line.startswith(f"{run.path}/{LAST}")
    assert message in line
    assert digest(trainer.model.state_dict()) == before
    assert (trainer.epoch, trainer.update_in_epoch) == (0, 1)


def test_a_checkpoint_from_before_the_first_update_has_no_optimizer_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("ram", CONFIG)
    first, again = Trainer(RamLearner, CONFIG, folder), Trainer(RamLearner, CONFIG, folder)
    save_checkpoint(first)
    load_checkpoint(again)
    assert digest(first.model.state_dict()) == digest(again.model.state_dict())
    change(tmp_path / LAST, lambda _, about: about.update(update_in_epoch=1))
    assert "the optimizer must have a state for each of" in refusal(lambda: load_checkpoint(again))


def test_odd_headers_are_one_line(run: RunFolder) -> None:
    tensors, metadata = entries(run.path / BEST)
    texts = ["", "{", "[]", "3", "null", '"x"', "[" * 5000, '{"epoch": NaN}', '{"epoch": 1e999}', "\ud800"[:0] + "\x00"]
    for text in texts:
        for odd in ({"about": text, "sha256": digest(tensors, text)}, {"about": text}, {"sha256": "x"}, {}, None):
            save_file(tensors, run.path / BEST, odd)
            assert refusal(lambda: load_run(run)).startswith(f"{run.path}/{BEST}")
    save_file(tensors, run.path / BEST, {**metadata, "sha256": metadata["sha256"][::-1]})
    assert refusal(lambda: load_run(run)) == f"{run.path}/{BEST} is damaged: its SHA-256 is not that of its content"
    (run.path / BEST).write_bytes(b"")
    assert "is damaged and cannot be read" in refusal(lambda: load_run(run))


def test_networks_on_whole_canvases_are_checked_alike(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = FullImageConfig(task="digits", epochs=1, batch_size=512, channels=(2, 3))
    train_full_image(config, folder)
    assert load_run(folder).epoch == 1
    change(tmp_path / BEST, lambda tensors, _: tensors["normalizations.0.running_var"].fill_(torch.nan))
    assert "normalizations.0.running_var must be finite" in refusal(lambda: load_run(folder))


@pytest.mark.parametrize("path", sorted(PRETRAINED_FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_published_weight_that_changed_is_refused(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    tensors, _ = copy.read_tensors(BEST)
    data = bytearray((copy.path / BEST).read_bytes())
    data[-2] ^= 64  # an exponent's bit
    (copy.path / BEST).write_bytes(data)
    assert "its SHA-256 is not that of its content" in refusal(lambda: copy.read_tensors(BEST))
    assert all(value.dtype in (torch.float32, torch.bfloat16) for value in tensors.values())
