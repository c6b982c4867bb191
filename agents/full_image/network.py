"""The networks that see whole canvases. Each maps pixels, float32 (N, C, S, S) in [0, 1], to logits (N, L)."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from agents.full_image.config import FullImageConfig
from ram_gym import GlimpseVectorEnv


def make_model(config: FullImageConfig, env: GlimpseVectorEnv) -> nn.Sequential:
    """A fresh network for an environment's canvases, with weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.network == "mlp":
            values = env.num_channels * env.config.canvas_size**2
            model = make_mlp((values, *config.hidden_sizes), env.num_classes)
        else:
            model = make_cnn((env.num_channels, *config.channels), env.num_classes)
    return model.to(env.device)


def make_mlp(sizes: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Fully connected ReLU layers from sizes[0] values on, and a linear one.

    Source: Mnih et al. 2014, section 4.1, the baselines "FC, 2 layers".
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def make_cnn(channels: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Blocks of 3x3 convolution, batch normalization and ReLU with max-pooling between them, then the average over all
    places and a linear layer, so that it takes canvases of any side of at least 2 ** (blocks - 1).
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        if layers:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))
