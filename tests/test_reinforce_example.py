"""examples/reinforce.py and agents/ram are the same algorithm: same losses, same gradients on the same episodes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.networks import GlimpseShape
from agents.ram.config import RamConfig
from agents.ram.losses import Rollout, rollout_losses, total_loss
from agents.ram.network import RecurrentAttentionModel
from agents.ram.rollout import play
from examples import reinforce
from ram_gym import GlimpseVectorEnv

STD, REINFORCE_WEIGHT, BASELINE_WEIGHT = 0.2, 1.0, 0.5
NUM_CLASSES, GLIMPSE_VALUES = 5, 2 * 6 * 6
PARTS = ("what", "where")

Weights = dict[str, Tensor]


def make_env(num_envs: int = 40) -> GlimpseVectorEnv:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 1, 20, 20), dtype=np.uint8)
    return GlimpseVectorEnv(
        num_envs,
        dataset=(images, np.arange(40) % NUM_CLASSES),
        canvas_size=24,
        patch_size=6,
        num_scales=2,
        num_glimpses=5,
        split="test",
        output="torch",
        autoreset_mode="Disabled",
    )


def in_agents_form(example: Weights) -> Weights:
    """The example's weights under the names of agents/ram's network, whose Linear(what) + Linear(where) is one matrix.

    One matrix has one bias, which stands for the sum of the example's two.
    """
    weights = dict(example)
    combined = {
        "glimpse_network.combine.weight": torch.cat([weights.pop(f"{part}_out.weight") for part in PARTS], 1),
        "glimpse_network.combine.bias": torch.stack([weights.pop(f"{part}_out.bias") for part in PARTS]).sum(0),
    }
    modules = {"what": "glimpse_network.what", "where": "glimpse_network.where", "locator": "locator.0"}
    for name, weight in weights.items():
        module, kind = name.rsplit(".", 1)
        combined[f"{modules.get(module, module)}.{kind}"] = weight
    return combined


def gradients_in_agents_form(model: reinforce.RecurrentAttentionModel) -> Weights:
    """As `in_agents_form`, of gradients: that of a sum's bias is that of either of the two."""
    gradients = {name: gradient(weight) for name, weight in model.named_parameters()}
    what, where = (gradients[f"{part}_out.bias"] for part in PARTS)
    assert torch.equal(what, where)
    gradients["where_out.bias"] = torch.zeros_like(where)
    return in_agents_form(gradients)


def gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


class Learned(NamedTuple):
    """What one update computes: the terms of the loss, the loss, and each weight's gradient."""

    terms: dict[str, Tensor]
    gradients: Weights


def learn_both(
    change: Callable[[Rollout], Rollout] = lambda rollout: rollout, **fields: Any
) -> tuple[Learned, Learned]:
    """The same episodes by the example and by agents/ram, whose rollout goes through `change` before the losses."""
    env = make_env()
    options = {"index": torch.arange(40), "scene_seed": 1}
    torch.manual_seed(0)
    example = reinforce.RecurrentAttentionModel(GLIMPSE_VALUES, NUM_CLASSES, size=24, glimpse_size=12)
    config = RamConfig(hidden_size=24, glimpse_hidden_size=12, locator_hidden_size=0, **fields)
    model = RecurrentAttentionModel(GlimpseShape(2, 1, 6), NUM_CLASSES, config)
    model.load_state_dict(in_agents_form(example.state_dict()))

    torch.manual_seed(2)  # the example draws from PyTorch's own generator, agents/ram from one that it is given
    expected = reinforce.play(example, env, options, STD)
    terms = reinforce.rollout_losses(expected, STD)
    loss = terms.classification + REINFORCE_WEIGHT * terms.reinforce + BASELINE_WEIGHT * terms.baseline
    loss.backward()
    ours = Learned({**terms._asdict(), "loss": loss}, gradients_in_agents_form(example))

    rollout = play(model, env, options, STD, torch.Generator().manual_seed(2))
    torch.testing.assert_close(rollout.locations, expected.locations, rtol=0, atol=1e-6)
    assert torch.equal(rollout.labels, expected.labels)
    assert torch.equal(rollout.rewards, expected.rewards)
    assert 0 < rollout.rewards.mean() < 1
    losses = rollout_losses(change(rollout), STD, 1, use_leave_one_out=False)
    loss = total_loss(losses, REINFORCE_WEIGHT, BASELINE_WEIGHT)
    loss.backward()
    theirs = {name: getattr(losses, name) for name in terms._asdict()}
    gradients = {name: gradient(weight) for name, weight in model.named_parameters()}
    return ours, Learned({**theirs, "loss": loss}, gradients)


def assert_same(ours: Learned, theirs: Learned) -> None:
    """Terms and gradients agree to 1e-5, relative to their size."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert (value - other[name]).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("backpropagation", ["autograd", "batched"])
def test_terms_and_gradients_are_those_of_the_example(backpropagation: str) -> None:
    ours, theirs = learn_both(backpropagation=backpropagation)
    assert len(ours.gradients) == 16
    assert all(value.norm() > 1e-3 for value in (*ours.gradients.values(), *ours.terms.values()))
    assert_same(ours, theirs)


@pytest.mark.parametrize("field", ["baselines", "location_means", "locations"])
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shift_by_one_glimpse_is_detected(field: str, shift: int) -> None:
    def change(rollout: Rollout) -> Rollout:
        return rollout._replace(**{field: getattr(rollout, field).roll(shift, 1)})

    with pytest.raises(AssertionError, match="reinforce"):
        assert_same(*learn_both(change))


def test_a_gradient_that_does_not_stop_is_detected() -> None:
    ours, theirs = learn_both(locator_gradient_into_core=True)
    with pytest.raises(AssertionError, match="glimpse_network"):
        assert_same(ours, theirs)


def test_the_environments_settings_may_be_overridden() -> None:
    assert (reinforce.Config().epochs, reinforce.Config().batch_size) == (100, 64)
    mnist = reinforce.Config(env="RamGym/MNIST-v0", epochs=3)
    assert (mnist.epochs, mnist.batch_size) == (3, 256)


def test_error_counts_every_image_once() -> None:
    """Thirty lanes play the 40 images in two rounds, the second filled up with images that count no more."""
    torch.manual_seed(0)
    model = reinforce.RecurrentAttentionModel(GLIMPSE_VALUES, NUM_CLASSES)
    whole, rounds = make_env(40), make_env(30)
    rewards = reinforce.play(model, whole, {"index": torch.arange(40), "scene_seed": 2014}, 0.0).rewards
    assert reinforce.measure_error(model, rounds) == pytest.approx(100 * (1 - float(rewards.mean())))


def test_it_learns_the_digits(capsys: Any) -> None:
    threads = torch.get_num_threads()
    error = reinforce.main(reinforce.Config(epochs=6))
    torch.set_num_threads(threads)
    shown = capsys.readouterr()
    assert error < 60  # chance is 90
    assert shown.out.startswith(f"RamGym/Digits-v0, seed 0: test error {error:.2f}%")
    assert "100%, 0 s left" in shown.err


def test_the_documentation_shows_the_examples_own_lines() -> None:
    root = Path(__file__).parents[1]
    source = (root / "examples" / "reinforce.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "algorithm.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert textwrap.indent(block, "    ") in source
