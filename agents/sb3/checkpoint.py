"""Checkpoints: Stable-Baselines3's zip files with run.json added, read without executing code in them.

Stable-Baselines3's own loader unpickles entries of the zip, which can execute code. This loader reads three entries:
run.json, policy.pth and, to resume, policy.optimizer.pth. It reads the last two by `torch.load(weights_only=True)`,
which accepts tensors only, and checks that they are finite and have the names, shapes and dtypes of the model that
config.json describes.
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
    """Content of run.json: how far training had come when the checkpoint was written.

    Raises:
        ValueError: a field has a wrong type or is out of range.
    """

    epoch: Whole
    """Number of complete epochs."""
    seconds: NotNegative
    """Training time of these epochs in seconds, without validation."""
    steps: Annotated[int, Interval(ge=0, le=2**63 - 1)]
    """Number of environment steps."""
    updates: Annotated[int, Interval(ge=0, le=2**63 - 1)]
    """Number of passes over rollouts, as Stable-Baselines3 counts them."""
    best_error: Percent | None
    """Lowest validation error, in percent; None before the first validation."""
    best_epoch: Whole
    """Epoch of that error; 0 before the first validation."""
    fingerprint: SHA256
    """Fingerprint in config.json, of the data that the run learns from."""

    def __post_init__(self) -> None:
        check_fields(RunState, vars(self))
        if self.best_epoch > self.epoch:
            raise ValueError(f"best_epoch must be 0 to {self.epoch}, got {self.best_epoch}")
        if (self.best_error is None) != (self.best_epoch == 0):
            raise ValueError(f"best_error must be a number after best_epoch alone, got {self.best_error}")


def save_checkpoint(model: Any, folder: RunFolder, name: str, state: RunState) -> None:
    """Writes a model as Stable-Baselines3 does, with run.json added to the zip. The write is atomic."""
    buffer = io.BytesIO()
    model.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(RUN_ENTRY, json.dumps(dataclasses.asdict(state), allow_nan=False))
    replace_file(folder.path / name, buffer.getvalue())


def load_checkpoint(
    folder: RunFolder, name: str, policy: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> RunState:
    """Loads a checkpoint's weights into a policy and, if an optimizer is given, Adam's state into it.

    Returns:
        The content of run.json.

    Raises:
        RunError: the file is missing, damaged or not a regular file, or its tensors do not fit the policy or the
            optimizer. Both are then unchanged.
    """
    path = folder.path / name
    weights = policy.state_dict()
    # A larger file cannot fit: twice the size of the tensors, and room for their names.
    limit = 2 * sum(value.numel() * value.element_size() for value in weights.values()) + 2**20
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            fields = json.loads(_read_entry(archive, RUN_ENTRY, 2**16))
            stored_weights = _read_tensors(archive, POLICY_ENTRY, limit)
            adam_state = _read_tensors(archive, OPTIMIZER_ENTRY, 2 * limit)["state"] if optimizer is not None else {}
        state = RunState(**check_stored(RunState, fields))
    except FileNotFoundError:
        raise RunError(f"{folder.path} has no checkpoint {name} yet") from None
    except RunError:
        raise
    except Exception as error:  # zipfile, json and torch raise many types of error on damaged files
        raise RunError(f"{path} is damaged and cannot be read: {error}") from error
    if state.fingerprint != folder.read_about()["fingerprint"]:
        raise RunError(f"{path} is of a run on other data than {folder.path}/config.json says")
    try:
        check_tensors("weights", stored_weights, weights)
        if optimizer is not None:
            check_adam_state(adam_state, optimizer)
    except ValueError as error:
        raise RunError(f"{path} does not fit its config.json: {error}") from error
    policy.load_state_dict(stored_weights)
    if optimizer is not None:
        # The learning rate and other hyperparameters come from the training config, not from the file.
        optimizer.load_state_dict({**optimizer.state_dict(), "state": adam_state})
    return state


def _read_entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as entry:
        data = entry.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} must have at most {limit} bytes")
    return data


def _read_tensors(archive: zipfile.ZipFile, name: str, limit: int) -> Any:
    """An entry that `torch.save` wrote: tensors, on the CPU, in dicts and lists."""
    data = _read_entry(archive, name, limit)
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        # torch.save does not compress, so a compressed entry is not its own and could unpack to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in inner.infolist()):
            raise ValueError(f"{name} must not be compressed")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its long message advises to trust the file
        raise ValueError(f"{name} must hold tensors and nothing else") from error
