"""Playing episodes with a Recurrent Attention Model, to learn from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ram_gym import GlimpseVectorEnv

from ..scripted import ScriptedLocator
from ..training.ranks import ALONE, Ranks
from .losses import Rollout
from .network import RecurrentAttentionModel
from .unrolled import unroll


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
