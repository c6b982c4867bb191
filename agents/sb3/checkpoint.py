"""Checkpoints: Stable-Baselines3's zip with run.json in it, read without running code that it may hold.

Stable-Baselines3's own loader reads every entry of a zip, and unpickles some of them. Here three entries are read and
all others are ignored: run.json, policy.pth and, to resume, policy.optimizer.pth. The last two go through
`torch.load(weights_only=True)`, which builds tensors and refuses everything else. What comes of it is taken only if it
is finite and has the names, shapes and dtypes of the model that config.json describes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import nn

from ..training.files import open_file, replace_file
from ..training.fingerprint import SHA256
from ..training.run_folder import RunError, RunFolder
from ..training.schema import NotNegative, Percent, Whole, check_fields, check_stored
from ..training.tensors import check_adam_state, check_tensors

RUN_ENTRY, POLICY_ENTRY, OPTIMIZER_ENTRY = "run.json", "policy.pth", "policy.optimizer.pth"
BEST, LAST = "best_model.zip", "last_model.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run was when a checkpoint was written: what run.json holds.

    Raises:
        ValueError: a field is of another type or out of range.
    """

    epoch: Whole
    """Complete epochs."""
    seconds: NotNegative
    """Training time of these, without validation."""
    steps: Annotated[int, Interval(ge=0, le=2**63 - 1)]
    """Environment steps."""
    updates: Annotated[int, Interval(ge=0, le=2**63 - 1)]
    """Passes over rollouts, as Stable-Baselines3 counts them."""
    best_error: Percent | None
    """Lowest validation error, in percent; None before the first validation."""
    best_epoch: Whole
    """The epoch of that error; 0 before the first."""
    fingerprint: SHA256
    """That of config.json, of the data that the run learns from."""

    def __post_init__(self) -> None:
        check_fields(RunState, vars(self))
        if self.best_epoch > self.epoch:
            raise ValueError(f"best_epoch must be 0 to {self.epoch}, got {self.best_epoch}")
        if (self.best_error is None) != (self.best_epoch == 0):
            raise ValueError(f"best_error must be a number after best_epoch alone, got {self.best_error}")


def save_checkpoint(model: Any, folder: RunFolder, name: str, state: RunState) -> None:
    """Writes a model as Stable-Baselines3 does, with run.json in the zip, whole or not at all."""
    buffer = io.BytesIO()
    model.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(RUN_ENTRY, json.dumps(dataclasses.asdict(state), allow_nan=False))
    replace_file(folder.path / name, buffer.getvalue())


def load_checkpoint(
    folder: RunFolder, name: str, policy: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> RunState:
    """Puts a checkpoint's weights into a policy, and the state of Adam into its optimizer if one is given.

    Returns:
        How far the run was.

    Raises:
        RunError: the file is missing, damaged, no regular file, or holds other tensors than the policy
            and the optimizer have. Both are then as they were.
    """
    path = folder.path / name
    weights = policy.state_dict()
    # Twice the tensors, and room for the names: what is larger does not fit.
    limit = 2 * sum(value.numel() * value.element_size() for value in weights.values()) + 2**20
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            fields = json.loads(_read_entry(archive, RUN_ENTRY, 2**16))
            held = _read_tensors(archive, POLICY_ENTRY, limit)
            held_state = _read_tensors(archive, OPTIMIZER_ENTRY, 2 * limit)["state"] if optimizer is not None else {}
        state = RunState(**check_stored(RunState, fields))
    except FileNotFoundError:
        raise RunError(f"{folder.path} has no checkpoint {name} yet") from None
    except RunError:
        raise
    except Exception as error:  # zipfile, json and torch meet damaged files with whatever error they lead to
        raise RunError(f"{path} is damaged and cannot be read: {error}") from error
    if state.fingerprint != folder.read_about()["fingerprint"]:
        raise RunError(f"{path} is of a run on other data than {folder.path}/config.json says")
    try:
        check_tensors("weights", held, weights)
        if optimizer is not None:
            check_adam_state(held_state, optimizer)
    except ValueError as error:
        raise RunError(f"{path} does not fit its config.json: {error}") from error
    policy.load_state_dict(held)
    if optimizer is not None:
        # Learning rate and the like are the run's configuration, not the file's.
        optimizer.load_state_dict({**optimizer.state_dict(), "state": held_state})
    return state


def _read_entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as entry:
        data = entry.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} must have at most {limit} bytes")
    return data


def _read_tensors(archive: zipfile.ZipFile, name: str, limit: int) -> Any:
    """What `torch.save` wrote: tensors, on the CPU, in containers of Python's own."""
    data = _read_entry(archive, name, limit)
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        # torch.save compresses nothing, so that what is unpacked is no larger than what was read.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in inner.infolist()):
            raise ValueError(f"{name} must not be compressed")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose message, of many lines, advises to trust the file
        raise ValueError(f"{name} must hold tensors and nothing else") from error
