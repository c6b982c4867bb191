"""A rollout for learning against the same episodes played again, glimpse by glimpse, with the network's own methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents.networks import GlimpseShape
from agents.ram.config import RamConfig
from agents.ram.network import RecurrentAttentionModel
from agents.ram.rollout import play
from ram_gym import GlimpseVectorEnv

STD, NUM_GLIMPSES = 0.3, 5
OPTIONS = {"index": torch.arange(20), "scene_seed": 1}


@pytest.mark.parametrize("backpropagation", ["autograd", "batched"])
@pytest.mark.parametrize("core", ["rnn", "lstm"])
@pytest.mark.parametrize("locator_hidden_size", [0, 8])
def test_each_step_is_the_networks_own(
    small_images: tuple, backpropagation: Any, core: Any, locator_hidden_size: int
) -> None:
    config = RamConfig(
        hidden_size=12,
        glimpse_hidden_size=6,
        locator_hidden_size=locator_hidden_size,
        core=core,
        backpropagation=backpropagation,
        early_weight=1.0,
    )
    env = GlimpseVectorEnv(
        20,
        dataset=small_images,
        canvas_size=12,
        patch_size=4,
        num_glimpses=NUM_GLIMPSES,
        output="torch",
        autoreset_mode="Disabled",
    )
    torch.manual_seed(0)
    model = RecurrentAttentionModel(GlimpseShape(1, 1, 4), 5, config)
    rollout = play(model, env, OPTIONS, STD, torch.Generator().manual_seed(2))
    assert rollout.location_means.shape == rollout.locations.shape == (20, NUM_GLIMPSES - 1, 2)
    assert rollout.baselines.shape == (20, NUM_GLIMPSES - 1)

    generator = torch.Generator().manual_seed(2)
    observation, _ = env.reset(options=OPTIONS)
    state = model.initial_state(20)
    for step in range(NUM_GLIMPSES):
        state = model.look(observation, state)
        hidden, logits = state[0], model.classify(state[0])
        if step == NUM_GLIMPSES - 1:
            break
        mean = model.locate(hidden)
        assert_close(rollout.location_means[:, step], mean)
        assert_close(rollout.locations[:, step], mean + STD * torch.randn(mean.shape, generator=generator))
        assert_close(rollout.baselines[:, step], model.estimate(hidden))
        assert_close(rollout.early_logits[:, step], logits)
        location = rollout.locations[:, step]
        observation, *_ = env.step({"location": location, "label": torch.zeros(20, dtype=torch.int64)})
    assert_close(rollout.logits, logits)
    _, reward, _, _, info = env.step({"location": observation["location"], "label": logits.argmax(1)})
    assert torch.equal(rollout.rewards, reward)
    assert torch.equal(rollout.labels, info["label"])
    for values in (rollout.location_means, rollout.baselines):  # no two steps are alike
        assert (values.diff(dim=1).abs() > 1e-3).any(0).all()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
