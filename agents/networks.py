"""Glimpse networks and cores: the encoders and the recurrent networks of the native agents.

A **glimpse network** is a `torch.nn.Module` with

    forward(glimpse, location) -> features

where glimpse is float32 (N, K * C, P, P) in [0, 1], the C channels of the finest scale first; location float32 (N, 2)
in [-1, 1]; and features float32 (N, F).

A **core** is a `torch.nn.Module` with

    initial_state(num_episodes) -> state
    step(features, state) -> state

where a state is a tuple of float32 tensors, each (N, ...). The first is the core's output, (N, H), which is what the
other parts of a network read.

`GLIMPSE_NETWORKS` and `CORES` are those that have a name on the command line. In Python, a module of your own with this
interface takes the place of either. It may behave otherwise in evaluation mode, as dropout does. But a resumed run is
bit-exact only if the module draws nothing and all that it keeps from one update to the next is in its `state_dict`.

Shapes: N episodes, K scales, C channels, P side of a patch, F features, H units of a core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""A core's state; the first tensor is its output, float32 (N, H)."""


class GlimpseShape(NamedTuple):
    """Shape of the glimpses that a glimpse network takes."""

    num_scales: int
    num_channels: int
    patch_size: int

    @property
    def num_values(self) -> int:
        """Values in a glimpse, K * C * P * P."""
        return self.num_scales * self.num_channels * self.patch_size**2

    def zeros(self, num: int) -> tuple[Tensor, Tensor]:
        """Black glimpses, float32 (num, K * C, P, P), and their locations, all the centre, (num, 2)."""
        side = self.patch_size
        return torch.zeros(num, self.num_scales * self.num_channels, side, side), torch.zeros(num, 2)


class MlpGlimpseNetwork(nn.Module):
    """The paper's: g = relu(Linear(h_g) + Linear(h_l)), where h_g of the glimpse and h_l of the location are one ReLU
    layer each.

    Source: Mnih et al. 2014, section 4 ("Glimpse network").

    Args:
        shape: shape of the glimpses.
        hidden_size: units of h_g, and of h_l.
        output_size: F.
    """

    def __init__(self, shape: GlimpseShape, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.what = nn.Linear(shape.num_values, hidden_size)
        self.where = nn.Linear(2, hidden_size)
        # One matrix for both: Linear(h_g) + Linear(h_l) is a linear map of the two side by side.
        self.combine = nn.Linear(2 * hidden_size, output_size)

    def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
        """Glimpse (N, K * C, P, P) and location (N, 2) -> (N, F)."""
        hidden = torch.cat((self.what(glimpse.flatten(1)), self.where(location)), dim=1).relu()
        return self.combine(hidden).relu()


class ConvGlimpseNetwork(nn.Module):
    """Three 3x3 convolutions of the patches, side by side as channels, in place of the paper's one linear layer:
    relu(Linear(convolutions(glimpse)) + Linear(h_l)).

    Meant for patches of 8 to 16 pixels; others work.

    Args:
        shape: shape of the glimpses.
        hidden_size: units of h_l.
        output_size: F.
    """

    def __init__(self, shape: GlimpseShape, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(shape.num_scales * shape.num_channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
        )
        side = (shape.patch_size + 1) // 2
        self.what = nn.Linear(32 * side**2, output_size)
        self.where = nn.Sequential(nn.Linear(2, hidden_size), nn.ReLU(), nn.Linear(hidden_size, output_size))

    def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
        """Glimpse (N, K * C, P, P) and location (N, 2) -> (N, F)."""
        seen = self.convolutions(glimpse.contiguous(memory_format=torch.channels_last))
        return (self.what(seen.flatten(1)) + self.where(location)).relu()


class RnnCore(nn.RNNCell):
    """The paper's for classification: h = relu(Linear(features) + Linear(h)).

    Source: Mnih et al. 2014, section 4 ("Core network").
    """

    def __init__(self, num_features: int, size: int) -> None:
        super().__init__(num_features, size, nonlinearity="relu")

    def initial_state(self, num_episodes: int) -> State:
        """Zeros: (h,)."""
        return (self.weight_hh.new_zeros(num_episodes, self.hidden_size),)

    def step(self, features: Tensor, state: State) -> State:
        """The state after features (N, F)."""
        return (self(features, state[0]),)


class GruCore(nn.GRUCell):
    """A gated recurrent unit."""

    def initial_state(self, num_episodes: int) -> State:
        """Zeros: (h,)."""
        return (self.weight_hh.new_zeros(num_episodes, self.hidden_size),)

    def step(self, features: Tensor, state: State) -> State:
        """The state after features (N, F)."""
        return (self(features, state[0]),)


class LstmCore(nn.LSTMCell):
    """Long short-term memory."""

    def initial_state(self, num_episodes: int) -> State:
        """Zeros: (h, c)."""
        zeros = self.weight_hh.new_zeros(num_episodes, self.hidden_size)
        return zeros, zeros

    def step(self, features: Tensor, state: State) -> State:
        """The state after features (N, F)."""
        h, c = self(features, (state[0], state[1]))
        return h, c


GLIMPSE_NETWORKS: dict[str, Callable[[GlimpseShape, int, int], nn.Module]] = {
    "mlp": MlpGlimpseNetwork,
    "conv": ConvGlimpseNetwork,
}
"""Name -> (shape, units of its hidden layer, F) -> glimpse network."""

CORES: dict[str, Callable[[int, int], nn.Module]] = {"rnn": RnnCore, "lstm": LstmCore, "gru": GruCore}
"""Name -> (F, H) -> core."""
