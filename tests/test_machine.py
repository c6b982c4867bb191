"""How many threads training computes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.ram.config import preset
from agents.ram.training import train
from agents.training.machine import FEW_LANES, chosen_threads
from agents.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_small_updates_take_one_thread_and_large_ones_all() -> None:
    for lanes, threads in ((64, 1), (FEW_LANES, 3), (FEW_LANES - 1, 1), (1, 1), (4096, 3)):
        with chosen_threads(lanes):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_variable_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    with chosen_threads(1):
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("batch_size", "rollouts", "threads"), [(64, 1, 1), (64, FEW_LANES // 64, 3)])
def test_training_chooses_by_the_episodes_of_an_update(
    batch_size: int, rollouts: int, threads: int, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    train(replace(preset("digits"), hidden_size=8, epochs=1, batch_size=batch_size, rollouts=rollouts), folder)
    assert folder.read_about()["hardware"]["threads"] == threads
    assert torch.get_num_threads() == 3
