"""How many threads training computes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from agents.ram.config import preset
from agents.ram.training import RamLearner
from agents.training import machine
from agents.training.loop import Trainer
from agents.training.machine import FEW_LANES, choose_threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch as it is where three threads are its own choice."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_threads", "_most_threads"):
        monkeypatch.setattr(machine, name, 3)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_small_updates_take_one_thread_and_large_ones_all() -> None:
    for lanes, threads in ((64, 1), (FEW_LANES, 3), (FEW_LANES - 1, 1), (1, 1), (4096, 3)):
        choose_threads(lanes)
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_variable_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    choose_threads(1)
    assert torch.get_num_threads() == 3


def test_the_users_call_stays() -> None:
    torch.set_num_threads(2)
    for lanes in (1, 4096):
        choose_threads(lanes)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("batch_size", "rollouts", "threads"), [(64, 1, 1), (64, FEW_LANES // 64, 3)])
def test_training_chooses_by_the_episodes_of_an_update(batch_size: int, rollouts: int, threads: int) -> None:
    fields: dict[str, Any] = {"batch_size": batch_size, "rollouts": rollouts}
    Trainer(RamLearner, replace(preset("digits"), hidden_size=8, **fields))
    assert torch.get_num_threads() == threads
    assert machine.circumstances()["hardware"]["threads"] == threads
