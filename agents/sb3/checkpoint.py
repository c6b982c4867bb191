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
import math
import zipfile
from typing import Any

import torch
from torch import Tensor, nn

from ..training.files import open_file, replace_file
from ..training.run_folder import RunError, RunFolder

RUN_ENTRY, POLICY_ENTRY, OPTIMIZER_ENTRY = "run.json", "policy.pth", "policy.optimizer.pth"
BEST, LAST = "best_model.zip", "last_model.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run was when a checkpoint was written: what run.json holds.

    Raises:
        ValueError: a field is of another type or out of range.
    """

    epoch: int
    """Complete epochs."""
    seconds: float
    """Training time of these, without validation."""
    steps: int
    """Environment steps."""
    updates: int
    """Passes over rollouts, as Stable-Baselines3 counts them."""
    best_error: float | None
    """Lowest validation error, in percent; None before the first validation."""
    best_epoch: int
    """The epoch of that error; 0 before the first."""

    def __post_init__(self) -> None:
        for name, bound in {"epoch": None, "steps": None, "updates": None, "best_epoch": self.epoch}.items():
            value = getattr(self, name)
            if type(value) is not int or value < 0 or (bound is not None and value > bound):
                top = "" if bound is None else f" to {bound}"
                raise ValueError(f"{RUN_ENTRY}: {name} must be an int from 0{top or ' on'}, got {value!r}")
        if not _is_number(self.seconds, math.inf):
            raise ValueError(f"{RUN_ENTRY}: seconds must be finite and from 0 on, got {self.seconds!r}")
        if not (_is_number(self.best_error, 100) if self.best_epoch else self.best_error is None):
            raise ValueError(f"{RUN_ENTRY}: best_error must be a percentage, got {self.best_error!r}")


def _is_number(value: Any, bound: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= bound and math.isfinite(value)


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
        state = RunState(**fields)
    except FileNotFoundError:
        raise RunError(f"{folder.path} has no checkpoint {name} yet") from None
    except RunError:
        raise
    except Exception as error:  # zipfile, json and torch meet damaged files with whatever error they lead to
        raise RunError(f"{path} is damaged and cannot be read: {error}") from error
    try:
        _check_tensors("weights", held, weights)
        if optimizer is not None:
            _check_adam_state(held_state, optimizer)
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
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _check_tensors(what: str, held: Any, expected: dict[str, Tensor]) -> None:
    if not isinstance(held, dict) or held.keys() != expected.keys():
        names = sorted(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise ValueError(f"{what} must be {', '.join(sorted(expected))}, got {names}")
    for name, wanted in expected.items():
        value = held[name]
        form = f"{wanted.dtype} {tuple(wanted.shape)}"
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{what}: {name} must be a tensor {form}, got {type(value).__name__}")
        if value.dtype != wanted.dtype or value.shape != wanted.shape:
            raise ValueError(f"{what}: {name} must be {form}, got {value.dtype} {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{what}: {name} must be finite, got NaN or infinity")


def _check_adam_state(state: Any, optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(state, dict) or state.keys() != set(range(len(parameters))):
        raise ValueError(f"the optimizer must have a state for each of {len(parameters)} parameters")
    for number, parameter in enumerate(parameters):
        averages = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.detach())
        _check_tensors(f"optimizer state {number}", state[number], {"step": torch.zeros(()), **averages})
        if state[number]["step"] < 1 or state[number]["exp_avg_sq"].min() < 0:
            raise ValueError(f"optimizer state {number}: step must be 1 or more and exp_avg_sq 0 or more")
