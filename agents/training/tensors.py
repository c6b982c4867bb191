"""Tensors of a checkpoint: encodes them with a digest, decodes them, checks names, shapes, dtypes and values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """SHA-256, in hexadecimal, of texts and of the names, dtypes, shapes and bytes of tensors."""
    sha256 = hashlib.sha256(json.dumps(texts).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        sha256.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        sha256.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def encode(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file, with metadata `about` as JSON and a digest of both in its header.

    The same content gives the same bytes.
    """
    on_cpu = {name: value.detach().to("cpu").clone().contiguous() for name, value in tensors.items()}
    text = json.dumps(about, allow_nan=False)
    data = save(on_cpu, {"about": text, "sha256": digest(on_cpu, text)})
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()  # safetensors' order is random
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def decode(data: bytes) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the metadata of bytes that `encode` returned.

    Raises:
        ValueError: the bytes are not from `encode`, or were changed.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        entries = header.get("__metadata__", {})
        text = entries.get("about", "{}")
        about = json.loads(text)
    except Exception as error:  # safetensors and json raise many types of error on damaged files
        raise ValueError(f"is damaged and cannot be read: {error}") from error
    if "sha256" not in entries:
        raise ValueError("is of an older version: its SHA-256 is missing")
    if digest(tensors, text) != entries["sha256"]:
        raise ValueError("is damaged: its SHA-256 is not that of its content")
    return tensors, about


def check_tensors(
    what: str, tensors: Any, expected: Mapping[str, Tensor], *, stored_as: torch.dtype | None = None
) -> None:
    """Checks that tensors have the expected names, shapes and dtypes and are finite.

    Args:
        what: what the tensors are, for the message.
        tensors: the value to check: it must be a dict of tensors on the CPU.
        expected: tensors with the names, shapes and dtypes that `tensors` must have.
        stored_as: a second dtype in which float32 tensors may be stored.

    Raises:
        ValueError: a name, shape or dtype differs, or a number is NaN or infinite.
    """
    if not isinstance(tensors, dict) or tensors.keys() != expected.keys():
        names = ", ".join(sorted(map(str, tensors))) if isinstance(tensors, dict) else type(tensors).__name__
        raise ValueError(f"{what} must be {', '.join(sorted(expected))}, got {names or 'none'}")
    for name, target in expected.items():
        value = tensors[name]
        form = f"{target.dtype} {tuple(target.shape)}"
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{what}: {name} must be a tensor {form}, got {type(value).__name__}")
        dtypes = {target.dtype} | ({stored_as} if target.dtype == torch.float32 else set())
        if value.dtype not in dtypes or value.shape != target.shape:
            raise ValueError(f"{what}: {name} must be {form}, got {value.dtype} {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{what}: {name} must be finite, got NaN or infinity")


def check_adam_state(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Checks that a state of Adam is complete: a step and two moving averages for each trained parameter.

    Args:
        state: state by number of the parameter, as in the optimizer's `state_dict`.
        optimizer: the optimizer that is to load the state.

    Raises:
        ValueError: a parameter's state is missing, superfluous, of another form, or impossible for Adam.
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
