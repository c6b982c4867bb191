"""RAM, the Recurrent Attention Model, in one file: network, rollout, loss, training, test error.

Source: Mnih, Heess, Graves, Kavukcuoglu 2014, "Recurrent Models of Visual Attention", arXiv 1406.6247. An image is
hidden. The model takes T glimpses of it, chooses where to look next after each, and says at the end what it shows.
"Differs:" marks where we leave the paper.

    python -m examples.reinforce                          # scikit-learn's digits: no download, about a minute
    python -m examples.reinforce --env RamGym/MNIST-v0    # the paper's first experiment: some minutes
    python -m examples.reinforce --help

Shapes: N episodes, T glimpses, K scales, C channels, P side of a patch, H units of the core, L classes.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import NamedTuple

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn import functional as F

import ram_gym

gym.register_envs(ram_gym)


@dataclasses.dataclass
class Config:
    """Which environment RAM learns, how long and how."""

    env: str = "RamGym/Digits-v0"
    """Gymnasium id of a glimpse environment."""
    seed: int = 0
    """Seed of weights, scenes and sampled locations."""
    device: str = "cpu"
    """PyTorch device: "cpu" or "cuda"."""
    threads: int = 1
    """CPU threads. The matrices are small, so more threads gain little."""

    epochs: int | None = None
    """Passes over the training images; None takes the environment's number from SETTINGS."""
    batch_size: int | None = None
    """Episodes in one update; None as above."""
    learning_rate: float = 2e-3
    """Highest learning rate: it rises over the first tenth of training, then falls to 0 along a cosine."""
    weight_decay: float = 0.2
    """Decoupled weight decay (AdamW)."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    std: float = 0.2
    """Standard deviation of sampled locations at the start, in units of [-1, 1]."""
    final_std: float = 0.05
    """The same at the end, reached linearly."""
    reinforce_weight: float = 1.0
    """Weight of the REINFORCE term beside the cross-entropy."""
    baseline_weight: float = 1.0
    """Weight of the baseline's squared error."""

    def __post_init__(self) -> None:
        settings = SETTINGS.get(self.env, SETTINGS["RamGym/MNIST-v0"])
        self.epochs = settings["epochs"] if self.epochs is None else self.epochs
        self.batch_size = settings["batch_size"] if self.batch_size is None else self.batch_size


SETTINGS = {
    "RamGym/Digits-v0": {"epochs": 100, "batch_size": 64},
    "RamGym/MNIST-v0": {"epochs": 40, "batch_size": 256},
}


class RecurrentAttentionModel(nn.Module):
    """Glimpse network, core, and three heads: location, action (the class) and baseline.

    Source: section 3.1 and figure 1; layer sizes of section 4.
    """

    def __init__(self, glimpse_values: int, num_classes: int, size: int = 256, glimpse_size: int = 128) -> None:
        super().__init__()
        self.what = nn.Linear(glimpse_values, glimpse_size)
        self.where = nn.Linear(2, glimpse_size)
        self.what_out = nn.Linear(glimpse_size, size)
        self.where_out = nn.Linear(glimpse_size, size)
        self.core = nn.RNNCell(size, size, nonlinearity="relu")
        self.locator = nn.Linear(size, 2)
        self.classifier = nn.Linear(size, num_classes)
        self.baseline = nn.Linear(size, 1)

    def look(self, observation: dict[str, Tensor], hidden: Tensor | None) -> Tensor:
        """The core's state after one more glimpse, (N, H); `hidden` is the state before it, None at the first."""
        what = self.what(observation["glimpse"].flatten(1)).relu()  # (N, K * C, P, P) -> (N, 128)
        where = self.where(observation["location"]).relu()  # (N, 2) -> (N, 128)
        encoded = (self.what_out(what) + self.where_out(where)).relu()  # (N, H)
        return self.core(encoded, hidden)  # relu(Linear(encoded) + Linear(hidden)), (N, H)


class Rollout(NamedTuple):
    """N episodes of T glimpses. T - 1 locations are chosen: the environment draws the first, none follows the last."""

    logits: Tensor  # (N, L), of the answer
    labels: Tensor  # (N,), the right answers
    rewards: Tensor  # (N,), 1 where the answer is right, else 0
    location_means: Tensor  # (N, T - 1, 2), where the model would look
    locations: Tensor  # (N, T - 1, 2), where it looked: drawn around the mean, not yet clipped to the canvas
    baselines: Tensor  # (N, T - 1), the reward it expected when it chose


def play(model: RecurrentAttentionModel, env: VectorEnv, options: dict[str, Tensor], std: float) -> Rollout:
    """One episode in each lane of the environment (section 2); `options` are its reset's: which scenes.

    Locations are drawn around the model's means with standard deviation `std`; 0 looks at the means.

    Gradients stop at `hidden.detach()`: neither the location network nor the baseline trains the core. They stop at the
    environment: a drawn location, a glimpse and a reward are constants.
    """
    steps, hidden = [], None
    observation, _ = env.reset(options=options)
    for _ in range(env.config.num_glimpses):
        hidden = model.look(observation, hidden)  # (N, H)
        logits = model.classifier(hidden)  # (N, L)
        mean = model.locator(hidden.detach())  # (N, 2)
        location = mean.detach() + std * torch.randn_like(mean)  # (N, 2)
        steps.append((mean, location, model.baseline(hidden.detach()).squeeze(1)))
        # Of the action, the last step reads the label alone, and the others the location alone.
        observation, reward, _, _, info = env.step({"location": location, "label": logits.argmax(1)})
    means, locations, baselines = (torch.stack(values[:-1], 1) for values in zip(*steps, strict=True))
    return Rollout(logits, info["label"], reward, means, locations, baselines)


class Losses(NamedTuple):
    """The terms of the loss before their weights: scalars, means over episodes and chosen locations."""

    classification: Tensor
    reinforce: Tensor
    baseline: Tensor


def rollout_losses(rollout: Rollout, std: float) -> Losses:
    """The hybrid supervised loss (section 3.2): each term trains its own part of the model.

    - Cross-entropy of the answer trains the classifier, the core and the glimpse network.
    - REINFORCE (equation 2) trains the location network. Its gradient is that of the log-probability of the locations,
      times what the reward R was better than the baseline b_t; R - b_t is a constant here.
    - The squared error of b_t trains the baseline.

    Differs: REINFORCE is a mean over the chosen locations, where the paper has a sum.
    """
    rewards = rollout.rewards[:, None].expand_as(rollout.baselines)  # (N, T - 1): each look is worth the final reward
    advantages = rewards - rollout.baselines.detach()  # (N, T - 1)
    policy = torch.distributions.Normal(rollout.location_means, std)
    log_probabilities = policy.log_prob(rollout.locations).sum(-1)  # (N, T - 1, 2) -> (N, T - 1)
    return Losses(
        classification=F.cross_entropy(rollout.logits, rollout.labels),
        reinforce=-(advantages * log_probabilities).mean(),
        baseline=F.mse_loss(rollout.baselines, rewards),
    )


def train(config: Config) -> RecurrentAttentionModel:
    """Trains a model. An epoch shows every training image once, in a fresh scene, from a fresh first location.

    Differs: AdamW with a one-cycle schedule instead of SGD with momentum; locations spread less and less.
    """
    torch.manual_seed(config.seed)
    env = make_env(config, "train", config.batch_size)
    env.reset(seed=config.seed)
    glimpse_values = math.prod(env.single_observation_space["glimpse"].shape)
    model = RecurrentAttentionModel(glimpse_values, env.num_classes).to(config.device)
    updates_per_epoch = env.num_images // config.batch_size  # what is left of an epoch is dropped
    num_updates = config.epochs * updates_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, num_updates, pct_start=0.1, cycle_momentum=False
    )
    progress = Progress(num_updates)
    for update in range(num_updates):
        if update % updates_per_epoch == 0:
            batches = iter(torch.randperm(env.num_images).split(config.batch_size))
        std = config.std + (config.final_std - config.std) * update / num_updates
        rollout = play(model, env, {"index": next(batches)}, std)
        terms = rollout_losses(rollout, std)
        loss = terms.classification + config.reinforce_weight * terms.reinforce
        loss = loss + config.baseline_weight * terms.baseline
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        schedule.step()
        progress.show(update + 1, rollout.rewards)
    return model


@torch.no_grad()
def measure_error(model: RecurrentAttentionModel, env: VectorEnv) -> float:
    """Percent of a split's images that are named wrongly, each seen once, in its fixed scene, with mean locations."""
    rounds = math.ceil(env.num_images / env.num_envs)
    index = torch.arange(rounds * env.num_envs) % env.num_images  # the last round is filled up with the first images
    rewards = [play(model, env, {"index": part}, std=0.0).rewards for part in index.split(env.num_envs)]
    return 100 * (1 - float(torch.cat(rewards)[: env.num_images].mean()))


def make_env(config: Config, split: str, num_envs: int) -> VectorEnv:
    """N lanes that give tensors and wait for `reset` when their episodes have ended."""
    options = {"split": split, "device": config.device, "output": "torch", "autoreset_mode": "Disabled"}
    return gym.make_vec(config.env, num_envs=num_envs, **options)


class Progress:
    """Lines on standard error, ten seconds apart: share done, time left, training accuracy since the last line."""

    def __init__(self, num_updates: int) -> None:
        self.num_updates, self.start, self.next_line = num_updates, time.monotonic(), 0.0
        self.rewards: list[Tensor] = []

    def show(self, done: int, rewards: Tensor) -> None:
        self.rewards.append(rewards)
        seconds = time.monotonic() - self.start
        if seconds < self.next_line and done < self.num_updates:
            return
        left = seconds / done * (self.num_updates - done)
        right = 100 * float(torch.cat(self.rewards).mean())
        print(f"{100 * done / self.num_updates:3.0f}%, {left:.0f} s left, {right:.1f}% right", file=sys.stderr)
        self.next_line, self.rewards = seconds + 10, []


def main(config: Config) -> float:
    torch.set_num_threads(config.threads)
    model = train(config)
    test_env = make_env(config, "test", 500)
    error = measure_error(model, test_env)
    deviation = math.sqrt(error * (100 - error) / test_env.num_images)
    print(f"{config.env}, seed {config.seed}: test error {error:.2f}% (standard error {deviation:.2f})")
    return error


if __name__ == "__main__":
    main(tyro.cli(Config))
