"""Tensors of a checkpoint: their digest, and whether they are what a network and its optimizer take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """SHA-256 over some texts and over names, dtypes, shapes and bytes of tensors, in hexadecimal digits."""
    found = hashlib.sha256(json.dumps(texts).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def encode(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A safetensors file, with JSON in its header and the digest of it all; the same bytes for the same content."""
    on_cpu = {name: value.detach().to("cpu").clone().contiguous() for name, value in tensors.items()}
    text = json.dumps(about, allow_nan=False)
    data = save(on_cpu, {"about": text, "sha256": digest(on_cpu, text)})
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()  # safetensors' order is random
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def decode(data: bytes) -> tuple[dict[str, Tensor], Any]:
    """What `encode` was given.

    Raises:
        ValueError: it is no such file, or something in it has changed since.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        entries = header.get("__metadata__", {})
        text = entries.get("about", "{}")
        about = json.loads(text)
    except Exception as error:  # safetensors and json meet damaged files with whatever error they lead to
        raise ValueError(f"is damaged and cannot be read: {error}") from error
    if "sha256" not in entries:
        raise ValueError("is of an older version: its SHA-256 is missing")
    if digest(tensors, text) != entries["sha256"]:
        raise ValueError("is damaged: its SHA-256 is not that of what it holds")
    return tensors, about


def check_tensors(
    what: str, held: Any, expected: Mapping[str, Tensor], *, stored_as: torch.dtype | None = None
) -> None:
    """Refuses tensors that are not those that are expected, or not finite.

    Args:
        what: they are, for the message.
        held: a dict of tensors on the CPU, if all is well.
        expected: tensors with the names, shapes and dtypes that `held` must have.
        stored_as: a dtype that a float32 tensor may be stored as.

    Raises:
        ValueError: a name, shape or dtype is another one, or a number is NaN or infinite.
    """
    if not isinstance(held, dict) or held.keys() != expected.keys():
        names = ", ".join(sorted(map(str, held))) if isinstance(held, dict) else type(held).__name__
        raise ValueError(f"{what} must be {', '.join(sorted(expected))}, got {names or 'none'}")
    for name, wanted in expected.items():
        value = held[name]
        form = f"{wanted.dtype} {tuple(wanted.shape)}"
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{what}: {name} must be a tensor {form}, got {type(value).__name__}")
        dtypes = {wanted.dtype} | ({stored_as} if wanted.dtype == torch.float32 else set())
        if value.dtype not in dtypes or value.shape != wanted.shape:
            raise ValueError(f"{what}: {name} must be {form}, got {value.dtype} {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{what}: {name} must be finite, got NaN or infinity")


def check_adam_state(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuses a state of Adam that is not whole: for each parameter that is trained a step and two averages.

    Args:
        state: by number of the parameter, as the optimizer's `state_dict` has it.
        optimizer: the one that is to have it.

    Raises:
        ValueError: a parameter's state is missing, too much, or has another form or numbers that Adam cannot have.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = {number: parameter for number, parameter in enumerate(parameters) if parameter.requires_grad}
    if not isinstance(state, dict) or state.keys() != trained.keys():
        count = len(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"the optimizer must have a state for each of {len(trained)} parameters, got {count}")
    for number, parameter in trained.items():
        averages = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.detach())
        check_tensors(f"optimizer state {number}", state[number], {"step": torch.zeros(()), **averages})
        if state[number]["step"] < 1 or state[number]["exp_avg_sq"].min() < 0:
            raise ValueError(f"optimizer state {number}: step must be 1 or more and exp_avg_sq 0 or more")
