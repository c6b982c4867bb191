"""Playing episodes with a Recurrent Attention Model, for learning and for measuring."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ram_gym import GlimpseVectorEnv

from ..scripted import ScriptedLocator, make_locator
from ..training.environment import find_data_root, make_blank_env
from ..training.ranks import ALONE, Ranks
from ..training.run_folder import RunFolder
from .config import RamConfig
from .losses import Rollout
from .network import RecurrentAttentionModel
from .policy import RamPolicy
from .unrolled import unroll

AGENT = "ram"


def make_model(config: RamConfig, env: GlimpseVectorEnv) -> RecurrentAttentionModel:
    """A fresh network for an environment, with weights drawn from the run's seed."""
    values = env.config.num_scales * env.num_channels * env.config.patch_size**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return RecurrentAttentionModel(values, env.num_classes, config).to(env.device)


def play(
    model: RecurrentAttentionModel,
    env: GlimpseVectorEnv,
    options: dict[str, Any],
    std: Tensor | float,
    generator: torch.Generator,
    locator: ScriptedLocator | None = None,
    ranks: Ranks = ALONE,
) -> Rollout:
    """One episode in every lane, with sampled locations.

    Args:
        model: the network.
        env: output "torch", autoreset mode DISABLED.
        options: the environment's reset options: which scenes.
        std: standard deviation of the location policy; a number or a scalar on the environment's device.
        generator: where locations are drawn from, on the environment's device.
        locator: chooses the locations instead of the location network.
        ranks: the processes that share a batch, of which the environment has this one's lanes.

    Returns:
        What the losses need, as one graph.
    """
    num_glimpses, num_envs = env.config.num_glimpses, env.num_envs
    no_label = torch.zeros(num_envs, dtype=torch.int64, device=env.device)
    body = unroll(model, num_envs, num_glimpses)
    locations = []
    observation, _ = env.reset(options=options)
    for num_taken in range(1, num_glimpses):
        body.look(observation)
        if locator is None:
            location = body.locate() + std * ranks.draw(torch.randn, num_envs, generator, env.device)
        else:
            location = locator(observation, num_taken)
        # The environment refuses NaN; training that diverged is reported by its losses instead.
        looked_at = location.nan_to_num(0.0, 1.0, -1.0)
        observation, _, _, _, _ = env.step({"location": looked_at, "label": no_label})
        locations.append(location)
    body.look(observation)
    before, last, means = body.outputs()  # (T - 1, N, hidden_size), (N, hidden_size), (T - 1, N, 2)
    logits = model.classify(last)
    _, reward, _, _, info = env.step({"location": observation["location"], "label": logits.detach().argmax(-1)})
    early_logits = model.classify(before if model.config.needs_early_answers else before[:0])
    return Rollout(
        logits=logits,
        labels=info["label"],
        rewards=reward,
        location_means=means.transpose(0, 1),
        locations=torch.stack(locations, 1) if locations else reward.new_zeros(num_envs, 0, 2),
        baselines=model.estimate(before).transpose(0, 1),
        early_logits=early_logits.transpose(0, 1),
    )


def make_policy(
    model: RecurrentAttentionModel, env: GlimpseVectorEnv, locator: str, seed: int = 0, name: str = "ram"
) -> RamPolicy:
    """The policy that answers with a network and looks where its own or a scripted locator says.

    Args:
        model: the network.
        env: what it will play.
        locator: "learned", or a scripted one; a run's own is `config.locator`.
        seed: of random locations.
        name: for reports.
    """
    if locator == "learned":
        return RamPolicy(model, name)
    generator = torch.Generator(env.device).manual_seed(seed)
    return RamPolicy(model, name, make_locator(locator, env, generator))


class TrainedModel(NamedTuple):
    """What a run folder holds."""

    model: RecurrentAttentionModel
    """The best network, in evaluation mode."""
    config: RamConfig
    epoch: int
    """The epoch it is of."""


def load_model(folder: RunFolder, device: str | None = None, data_root: str | None = None) -> TrainedModel:
    """The best network of a run, and the run's configuration with another device and data folder where given.

    Needs no data.

    Raises:
        RunError: there is no such run, no best checkpoint yet, or it is damaged.
    """
    config = folder.read_as(RamConfig, AGENT)
    config = config.moved(device, find_data_root(config.env_config, data_root))
    model = make_model(config, make_blank_env(config, folder.read_about()["data"]))
    # Published runs hold matrices as what they compute with.
    epoch = folder.load_best(model, torch.bfloat16 if config.precision == "bfloat16" else None)
    return TrainedModel(model.eval(), config, epoch)
