from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from agents.networks import GlimpseShape
from agents.ram.config import LocationReward, RamConfig
from agents.ram.losses import Rollout, leave_one_out, location_log_probability, returns, rollout_losses, total_loss
from agents.ram.network import RecurrentAttentionModel
from agents.ram.rollout import play
from ram_gym import GlimpseVectorEnv

STD = 0.3


def random_rollout(num: int = 12, looks: int = 4) -> Rollout:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Rollout(
        logits=normal(num, 10).requires_grad_(),
        labels=torch.randint(10, (num,), generator=generator),
        rewards=(normal(num) > 0).double(),
        location_means=normal(num, looks, 2).requires_grad_(),
        locations=normal(num, looks, 2),
        baselines=normal(num, looks).requires_grad_(),
        early_logits=normal(num, looks, 10).requires_grad_(),
    )


@pytest.mark.parametrize("use_leave_one_out", [False, True])
def test_terms_equal_a_loop_over_episodes_and_glimpses(use_leave_one_out: bool) -> None:
    rollout, group = random_rollout(), 3
    losses = rollout_losses(rollout, STD, group, use_leave_one_out=use_leave_one_out)
    logits, means, baselines = (x.detach().numpy() for x in (rollout.logits, rollout.location_means, rollout.baselines))
    rewards, locations = rollout.rewards.numpy(), rollout.locations.numpy()
    early_logits = rollout.early_logits.detach().numpy()
    cross_entropy = reinforce = squared = early = 0.0
    for episode in range(12):
        probabilities = np.exp(logits[episode]) / np.exp(logits[episode]).sum()
        cross_entropy -= math.log(probabilities[rollout.labels[episode]]) / 12
        first = episode // group * group
        others = [rewards[other] for other in range(first, first + group) if other != episode]
        for look in range(4):
            density = 1.0
            for axis in range(2):
                z = (locations[episode, look, axis] - means[episode, look, axis]) / STD
                density *= math.exp(-z * z / 2) / (STD * math.sqrt(2 * math.pi))
            expected = float(np.mean(others)) if use_leave_one_out else baselines[episode, look]
            reinforce -= math.log(density) * (rewards[episode] - expected) / 48
            squared += (rewards[episode] - baselines[episode, look]) ** 2 / 48
            probabilities = np.exp(early_logits[episode, look]) / np.exp(early_logits[episode, look]).sum()
            early -= math.log(probabilities[rollout.labels[episode]]) / 48
    expected_terms = [cross_entropy, reinforce, squared, early]
    np.testing.assert_allclose([float(x.detach()) for x in losses], expected_terms, rtol=1e-10)
    total = float(total_loss(losses, 0.5, 2.0, 0.25).detach())
    np.testing.assert_allclose(total, cross_entropy + 0.5 * reinforce + 2 * squared + 0.25 * early, rtol=1e-10)


def test_log_probability_is_that_of_pytorchs_distribution() -> None:
    rollout = random_rollout()
    theirs = torch.distributions.Normal(rollout.location_means, STD).log_prob(rollout.locations).sum(-1)
    ours = location_log_probability(rollout.location_means, rollout.locations, STD)
    torch.testing.assert_close(ours, theirs)


def test_leave_one_out_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    assert leave_one_out(rewards, 3).tolist() == [0.5, 1.0, 0.5, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("use_leave_one_out", [False, True])
@pytest.mark.parametrize("kind", ["every-answer", "every-likelihood", "likelihood-gain"])
@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_looks_are_worth_the_answers_after_them(kind: LocationReward, use_leave_one_out: bool, discount: float) -> None:
    rollout, group = random_rollout(), 3
    expected = np.zeros((12, 4))
    for episode in range(12):
        label = int(rollout.labels[episode])
        for look in range(4):
            answers = [*rollout.early_logits[episode, look:], rollout.logits[episode]]  # the first before the look
            values = []
            for scores in (each.detach().numpy() for each in answers):
                likelihood = math.log(np.exp(scores[label]) / np.exp(scores).sum())
                values.append(float(scores.argmax() == label) if kind == "every-answer" else likelihood)
            before, *after = values
            weights = [discount**later for later in range(len(after))]
            expected[episode, look] = np.average(after, weights=weights)
            if kind == "likelihood-gain":
                expected[episode, look] -= before
    found = returns(rollout, kind, discount)
    assert not found.requires_grad
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    losses = rollout_losses(
        rollout,
        STD,
        group,
        use_leave_one_out=use_leave_one_out,
        location_reward=kind,
        location_discount=discount,
    )
    baselines = rollout.baselines.detach().numpy()
    log_density = torch.distributions.Normal(rollout.location_means, STD).log_prob(rollout.locations).sum(-1)
    reinforce = 0.0
    for episode in range(12):
        start = episode // group * group
        others = [other for other in range(start, start + group) if other != episode]
        minus = expected[others].mean(0) if use_leave_one_out else baselines[episode]
        reinforce -= float((log_density[episode].detach().numpy() * (expected[episode] - minus)).sum()) / 48
    np.testing.assert_allclose(float(losses.reinforce.detach()), reinforce, rtol=1e-10)
    np.testing.assert_allclose(float(losses.baseline.detach()), ((baselines - expected) ** 2).mean(), rtol=1e-10)


@pytest.mark.parametrize("use_leave_one_out", [False, True])
def test_each_term_reaches_its_own_tensors_only(use_leave_one_out: bool) -> None:
    rollout = random_rollout()
    leaves = {
        "logits": rollout.logits,
        "early_logits": rollout.early_logits,
        "means": rollout.location_means,
        "locations": rollout.locations.requires_grad_(),
        "baselines": rollout.baselines,
        "rewards": rollout.rewards.requires_grad_(),
    }
    losses = rollout_losses(rollout, STD, 3, use_leave_one_out=use_leave_one_out)
    expected = {"classification": {"logits"}, "reinforce": {"means"}, "baseline": {"baselines"}}
    expected["early_classification"] = {"early_logits"}
    for name, reached in expected.items():
        term = getattr(losses, name)
        gradients = torch.autograd.grad(term, list(leaves.values()), retain_graph=True, allow_unused=True)
        found = {leaf for leaf, g in zip(leaves, gradients, strict=True) if g is not None and g.abs().sum() > 0}
        assert found - {"rewards"} == reached  # rewards come from the environment, which has no gradient


def test_reinforce_is_the_gradient_of_the_expected_reward() -> None:
    """One look, reward f(location) = x: the estimator's mean is the exact gradient of E[x], which is 1 along x."""
    count = 400_000
    noise = torch.randn((count, 1, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    locations = mean.detach() + STD * noise
    rollout = Rollout(
        logits=torch.zeros(count, 2, dtype=torch.float64),
        labels=torch.zeros(count, dtype=torch.int64),
        rewards=locations[:, 0, 0],
        location_means=mean.expand(count, 1, 2),
        locations=locations,
        baselines=torch.zeros(count, 1, dtype=torch.float64),
        early_logits=torch.zeros(count, 0, 2, dtype=torch.float64),
    )
    rollout_losses(rollout, STD, 1, use_leave_one_out=False).reinforce.backward()
    assert mean.grad is not None
    np.testing.assert_allclose(-mean.grad.numpy().ravel(), [1.0, 0.0], atol=0.01)


def played(small_images: tuple, num_glimpses: int = 3, **fields: object) -> tuple[RecurrentAttentionModel, Rollout]:
    env = GlimpseVectorEnv(
        8,
        dataset=small_images,
        canvas_size=12,
        patch_size=4,
        num_glimpses=num_glimpses,
        output="torch",
        autoreset_mode="Disabled",
    )
    torch.manual_seed(0)
    config = RamConfig(hidden_size=12, glimpse_hidden_size=6, **fields)  # type: ignore[arg-type]
    model = RecurrentAttentionModel(GlimpseShape(1, 1, 4), 5, config)
    options = {"index": torch.arange(8), "scene_seed": 1}
    return model, play(model, env, options, STD, torch.Generator().manual_seed(0))


MODULES = {
    "classification": {"glimpse_network", "core", "classifier"},
    "reinforce": {"locator"},
    "baseline": {"baseline"},
    "early_classification": {"glimpse_network", "core", "classifier"},
}


@pytest.mark.parametrize("core", ["rnn", "lstm"])
@pytest.mark.parametrize("into_core", [False, True])
def test_where_gradients_stop_in_the_network(small_images: tuple, core: str, into_core: bool) -> None:
    """The table of docs/algorithm.md: each term trains these parts and no other."""
    model, rollout = played(small_images, core=core, locator_gradient_into_core=into_core, early_weight=0.5)
    losses = rollout_losses(rollout, STD, 1, use_leave_one_out=False)
    for term, expected in MODULES.items():
        model.zero_grad(set_to_none=True)
        getattr(losses, term).backward(retain_graph=True)
        trained = {name for name, part in model.named_children() if has_gradient(part)}
        more = {"glimpse_network", "core"} if term == "reinforce" and into_core else set()
        assert trained == expected | more


def has_gradient(part: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_the_answers_location_has_no_reinforce_term(small_images: tuple) -> None:
    for num_glimpses in (1, 2, 5):
        _, rollout = played(small_images, num_glimpses=num_glimpses)
        assert rollout.location_means.shape == rollout.locations.shape == (8, num_glimpses - 1, 2)
        losses = rollout_losses(rollout, STD, 1, use_leave_one_out=False)
        total_loss(losses, 0.1, 1.0).backward()
    model, rollout = played(small_images, num_glimpses=1)
    assert rollout_losses(rollout, STD, 1, use_leave_one_out=False).reinforce == 0


def test_early_answers_are_those_that_the_policy_gives_and_are_left_out_by_default(small_images: tuple) -> None:
    model, rollout = played(small_images, num_glimpses=4, early_weight=1.0)
    assert rollout.early_logits.shape == (8, 3, 5)
    _, shorter = played(
        small_images, num_glimpses=3, early_weight=1.0
    )  # the same places: its last answer is early here
    torch.testing.assert_close(rollout.early_logits[:, 2], shorter.logits)
    torch.testing.assert_close(rollout.early_logits[:, :2], shorter.early_logits)
    _, without = played(small_images, num_glimpses=4)
    assert without.early_logits.shape == (8, 0, 5)
    assert rollout_losses(without, STD, 1, use_leave_one_out=False).early_classification == 0


def test_rewards_are_right_answers_and_locations_are_unclipped(small_images: tuple) -> None:
    _, rollout = played(small_images, num_glimpses=4)
    assert torch.equal(rollout.rewards, (rollout.logits.argmax(1) == rollout.labels).float())
    assert torch.equal(rollout.labels, torch.arange(8) % 5)
    z = (rollout.locations - rollout.location_means) / STD
    assert 0.7 < float(z.detach().std()) < 1.3
    assert not rollout.locations.requires_grad


def test_the_network_is_the_papers(small_images: tuple) -> None:
    config = RamConfig(locator_hidden_size=0)
    model = RecurrentAttentionModel(GlimpseShape(1, 1, 8), 10, config)
    g, loc = torch.rand(3, 1, 8, 8), torch.rand(3, 2)
    net = model.glimpse_network
    h_g = (g.flatten(1) @ net.what.weight.T + net.what.bias).clamp(min=0)
    h_l = (loc @ net.where.weight.T + net.where.bias).clamp(min=0)
    w_g, w_l = net.combine.weight[:, :128], net.combine.weight[:, 128:]
    encoded = (h_g @ w_g.T + h_l @ w_l.T + net.combine.bias).clamp(min=0)
    torch.testing.assert_close(net(g, loc), encoded)
    before = torch.rand(3, 256)
    core = model.core
    after = (encoded @ core.weight_ih.T + core.bias_ih + before @ core.weight_hh.T + core.bias_hh).clamp(min=0)
    torch.testing.assert_close(model.look({"glimpse": g, "location": loc}, (before,))[0], after)
    (linear,) = model.locator
    torch.testing.assert_close(model.locate(9 * after), 9 * after @ linear.weight.T + linear.bias)  # not squashed
    assert sum(p.numel() for p in model.parameters()) == (
        (64 + 1) * 128 + 3 * 128 + 257 * 256 + 2 * 257 * 256 + 257 * 2 + 257 * 10 + 257
    )
