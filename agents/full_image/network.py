"""The networks that see whole canvases. Each maps pixels, float32 (N, C, S, S) in [0, 1], to logits (N, L)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from ram_gym import GlimpseVectorEnv

from .config import FullImageConfig


def make_model(config: FullImageConfig, env: GlimpseVectorEnv) -> nn.Module:
    """A new network for an environment's canvases, with weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.network == "mlp":
            values = env.num_channels * env.config.canvas_size**2
            model: nn.Module = make_mlp((values, *config.hidden_sizes), env.num_classes)
        else:
            model = Cnn((env.num_channels, *config.channels), env.num_classes)
    return model.to(env.device)


def make_mlp(sizes: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """An MLP: sizes[0] inputs, a ReLU layer of each further size, and a linear layer.

    Source: Mnih et al. 2014, section 4.1, the baselines "FC, 2 layers".
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


class Cnn(nn.Module):
    """Blocks of 3x3 convolution, batch normalization and ReLU with max-pooling between them, then the average over all
    pixels and a linear layer. Takes canvases of any side of at least 2 ** (blocks - 1).
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in pairs)
        self.normalizations = nn.ModuleList(nn.BatchNorm2d(after) for _, after in pairs)
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pixels (N, C, S, S) -> logits (N, L)."""
        for number, (convolve, normalize) in enumerate(zip(self.convolutions, self.normalizations, strict=True)):
            if number:
                hidden = max_pool2d(hidden, 2)
            # The channels_last memory format is nearly twice as fast on a CPU.
            hidden = convolve(hidden).contiguous(memory_format=torch.channels_last)
            hidden = normalize(hidden).relu()
        return self.classifier(hidden.mean((-1, -2)))
