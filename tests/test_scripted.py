"""Scripted policies look where their script says, in every step of an episode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.scripted import ScriptedPolicy, scan_path
from ram_gym import GlimpseVectorEnv, evaluate


def make_env(num_glimpses: int) -> GlimpseVectorEnv:
    return GlimpseVectorEnv(
        100,
        dataset="digits",
        split="validation",
        num_glimpses=num_glimpses,
        canvas_size=40,
        output="torch",
        autoreset_mode="Disabled",
    )


@pytest.mark.parametrize("num_glimpses", [1, 2, 6])
def test_scan_walks_its_whole_path_from_its_first_place(num_glimpses: int) -> None:
    env = make_env(num_glimpses)
    looked = evaluate(ScriptedPolicy("scan", env), env).locations[:, 1:]  # the environment chose the first location
    number = np.arange(num_glimpses - 1)  # the path by hand: a spiral of golden angles, outwards
    radius, angle = 0.8 * np.sqrt((number + 0.5) / max(num_glimpses - 1, 1)), number * np.pi * (3 - np.sqrt(5))
    path = np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1)
    np.testing.assert_allclose(scan_path(num_glimpses - 1), path, atol=1e-6)
    np.testing.assert_allclose(looked, np.broadcast_to(path, looked.shape), atol=1e-6)


def test_centre_and_oracle_stay_and_random_moves() -> None:
    env = make_env(4)
    looked = {name: evaluate(ScriptedPolicy(name, env), env) for name in ("centre", "oracle", "random")}
    assert looked["centre"].locations[:, 1:].abs().max() == 0
    oracle = looked["oracle"]
    assert torch.equal(oracle.locations[:, 1:], oracle.digit_locations[:, None].expand(-1, 3, 2))
    moved = looked["random"].locations[:, 1:].diff(dim=1).norm(dim=-1)
    assert (moved > 0).all()
