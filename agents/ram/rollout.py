"""Playing episodes with a Recurrent Attention Model, for learning and for measuring."""

from __future__ import annotations

from typing import Any

import torch

from agents.ram.config import RamConfig
from agents.ram.losses import Rollout
from agents.ram.network import RecurrentAttentionModel
from agents.runs import RunError, RunFolder
from agents.scripted import ScriptedLocator
from ram_gym import GlimpseConfig, GlimpseVectorEnv, load_dataset

AGENT = "ram"
EVALUATION_LANES = 1000


def make_env(setting: GlimpseConfig, device: str, num_envs: int | None = None) -> GlimpseVectorEnv:
    """The vector environment that runs train and are evaluated on, with tensors on a device.

    Without `num_envs` it is for evaluation: as many lanes as there are images, at most `EVALUATION_LANES`.
    """
    if num_envs is None:
        images = load_dataset(setting.dataset, setting.split, setting.data_root).images
        num_envs = min(len(images), EVALUATION_LANES)
    return GlimpseVectorEnv(
        num_envs,
        setting,
        device=device,
        output="torch",
        autoreset_mode="Disabled",
    )


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
    std: float,
    generator: torch.Generator,
    locator: ScriptedLocator | None = None,
) -> Rollout:
    """One episode in every lane, with sampled locations.

    Args:
        model: the network.
        env: output "torch", autoreset mode DISABLED.
        options: the environment's reset options: which scenes.
        std: standard deviation of the location policy.
        generator: where locations are drawn from, on the environment's device.
        locator: chooses the locations instead of the location network.

    Returns:
        What the losses need, as one graph.
    """
    num_glimpses, num_envs = env.config.num_glimpses, env.num_envs
    no_label = torch.zeros(num_envs, dtype=torch.int64, device=env.device)
    means, locations, hidden = [], [], []
    observation, _ = env.reset(options=options)
    state = model.initial_state(num_envs)
    for num_taken in range(1, num_glimpses):
        state = model.look(observation, state)
        mean = model.locate(state[0])  # (N, 2)
        if locator is None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            location = mean.detach() + std * noise
        else:
            location = locator(observation, num_taken)
        observation, _, _, _, _ = env.step({"location": location, "label": no_label})
        means.append(mean)
        locations.append(location)
        hidden.append(state[0])
    state = model.look(observation, state)
    logits = model.classify(state[0])
    _, reward, _, _, info = env.step({"location": observation["location"], "label": logits.detach().argmax(-1)})
    empty = logits.new_zeros(num_envs, 0)
    return Rollout(
        logits=logits,
        labels=info["label"],
        rewards=reward,
        location_means=torch.stack(means, 1) if means else empty[..., None].expand(-1, -1, 2),
        locations=torch.stack(locations, 1) if locations else empty[..., None].expand(-1, -1, 2),
        baselines=model.estimate(torch.stack(hidden, 1)) if hidden else empty,  # (N, T - 1)
    )


def load_model(folder: RunFolder, device: str | None = None) -> tuple[RecurrentAttentionModel, RamConfig]:
    """The best network of a run, in evaluation mode, and the run's configuration.

    Raises:
        RunError: there is no such run, no best checkpoint yet, or it is damaged.
    """
    try:
        config = RamConfig(**{**folder.read_config(AGENT), **({"device": device} if device else {})})
    except TypeError as error:
        raise RunError(f"{folder.path}/config.json is not of this version: {error}") from error
    weights, _ = folder.read_tensors("best.safetensors")
    model = make_model(config, make_env(config.environment().replace(split="validation"), config.device, 1))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{folder.path}/best.safetensors does not fit its config.json: {error}") from error
    return model.eval(), config
