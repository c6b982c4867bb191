"""last.safetensors, the checkpoint from which a run resumes bit-exactly: writing and loading it."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .fingerprint import fingerprint
from .run_folder import RunError, RunFolder
from .tensors import check_adam_state, check_tensors

if TYPE_CHECKING:
    from .loop import Trainer

PARTS = ("model", "average", "optimizer")
"""First parts of the tensors' names in last.safetensors, such as "model" in "model.core.weight_ih"."""


def save_checkpoint(trainer: Trainer) -> None:
    """Writes last.safetensors. Training resumes from it with any number of ranks, bit-exactly with the same number."""
    assert trainer.folder is not None
    sums = trainer.ranks.mean(trainer.sums)
    if trainer.ranks.rank > 0:
        return
    tensors = {f"model.{key}": value for key, value in trainer.model.state_dict().items()}
    if trainer.average is not None:
        tensors |= {f"average.{key}": value for key, value in trainer.average.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    tensors |= {"generator": trainer.generator.get_state(), "sums": sums}
    error, epoch = trainer.best
    header: dict[str, Any] = {
        "epoch": trainer.epoch,
        "update_in_epoch": trainer.update_in_epoch,
        "seconds": trainer.seconds,
        "best_error": error if epoch else None,
        "best_epoch": epoch,
        "fingerprint": fingerprint(trainer.data),
    }
    trainer.folder.write_tensors("last.safetensors", tensors, header)


def load_checkpoint(trainer: Trainer) -> None:
    """Restores the trainer's state from last.safetensors.

    Raises:
        RunError: last.safetensors is missing, damaged, or of another configuration; or best.safetensors is missing,
            damaged or older than the best epoch. The trainer is unchanged.
    """
    folder = trainer.folder
    assert folder is not None
    path = folder.path / "last.safetensors"
    if not os.path.lexists(path):
        new_run = f"--like {folder.path} --init {folder.path} begins another run with its best weights"
        raise RunError(f"{folder.path} cannot be resumed: last.safetensors is missing; {new_run}")
    tensors, header = folder.read_tensors("last.safetensors")
    parts, optimizer_state, other_tensors = _sort(tensors)
    try:
        check_tensors("weights", parts["model"], trainer.model.state_dict())
        check_tensors("average", parts["average"], {} if trainer.average is None else trainer.average.state_dict())
        check_tensors(
            "other tensors", other_tensors, {"generator": trainer.generator.get_state(), "sums": trainer.sums}
        )
        if header["epoch"] or header["update_in_epoch"] or optimizer_state:  # Adam has no state before the first update
            check_adam_state(optimizer_state, trainer.optimizer)
    except ValueError as error:
        raise RunError(f"{path} does not fit its config.json: {error}") from error
    _check_position(trainer, folder, header)
    trainer.forget_graph()
    trainer.model.load_state_dict(parts["model"])
    if trainer.average is not None:
        trainer.average.load_state_dict(parts["average"])
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": optimizer_state})
    trainer.generator.set_state(other_tensors["generator"])
    trainer.sums.copy_(other_tensors["sums"])
    trainer.epoch, trainer.update_in_epoch = header["epoch"], header["update_in_epoch"]
    trainer.seconds = header["seconds"]
    is_measured = header["best_error"] is not None
    trainer.best = (header["best_error"], header["best_epoch"]) if is_measured else (math.inf, 0)


def init_model(model: nn.Module, agent: str, other: RunFolder) -> None:
    """Loads the best weights of another run of the same agent into a network.

    Raises:
        RunError: the weights are missing, damaged, or do not fit the network.
    """
    other.read_config(agent)
    other.load_best(model, torch.bfloat16)


def _sort(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[int, dict[str, Tensor]], dict[str, Tensor]]:
    """Groups the tensors of last.safetensors.

    Returns:
        The tensors of model and average by name, Adam's state by number of the parameter, and the other tensors.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = value
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    for key, value in parts.pop("optimizer").items():
        number, _, name = key.partition(".")
        optimizer_state.setdefault(int(number) if number.isdecimal() else -1, {})[name] = value
    other_tensors = {key: value for key, value in tensors.items() if key.partition(".")[0] not in PARTS}
    return parts, optimizer_state, other_tensors


def _check_position(trainer: Trainer, folder: RunFolder, header: dict[str, Any]) -> None:
    """Raises RunError if the run has no such epoch or update, or best.safetensors is older than the best epoch."""
    if not (header["epoch"] <= trainer.config.epochs and header["update_in_epoch"] < trainer.updates_per_epoch):
        position = f"update {header['update_in_epoch']} after epoch {header['epoch']}"
        length = f"{trainer.config.epochs} epochs of {trainer.updates_per_epoch} updates"
        raise RunError(f"{folder.path}/last.safetensors is of {position}, and the run has {length}")
    if header["best_epoch"]:
        epoch = folder.read_tensors("best.safetensors")[1]["epoch"]
        if epoch < header["best_epoch"]:  # newer is fine: the process was killed before it wrote last.safetensors
            epochs = f"of epoch {epoch}, and the best so far was epoch {header['best_epoch']}"
            raise RunError(f"{folder.path}/best.safetensors is {epochs}: put the file of that epoch back")
