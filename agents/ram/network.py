"""The Recurrent Attention Model's network.

Source: Mnih et al. 2014, sections 3.1 and 4 (figure 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ram_gym import GlimpseVectorEnv

from .config import RamConfig

State = tuple[Tensor, ...]
"""The core's state: (h,) of a ReLU RNN or (h, c) of an LSTM, each float32 (N, hidden_size)."""


@torch.compiler.assume_constant_result
def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without them takes some 30 times float32's time."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _rounds_instead(values: Tensor) -> bool:
    """Whether to compute with rounded float32 numbers: to measure, not to learn, where there is no bfloat16."""
    return not torch.is_grad_enabled() and not has_bfloat16(values.device)


def _round(values: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, as float32."""
    return values.to(torch.bfloat16).to(torch.float32)


def _linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as bfloat16 has it: of rounded numbers, summed in float32, rounded."""
    return _round(torch.nn.functional.linear(_round(values), _round(weight), _round(bias)))


class GlimpseNetwork(nn.Module):
    """Encodes a glimpse and where it was taken: g = relu(Linear(h_g) + Linear(h_l)), h_g and h_l one ReLU layer each.

    Source: Mnih et al. 2014, section 4 ("Glimpse network").
    """

    def __init__(self, glimpse_values: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.what = nn.Linear(glimpse_values, hidden_size)
        self.where = nn.Linear(2, hidden_size)
        # One matrix for both: Linear(h_g) + Linear(h_l) is a linear map of the two side by side.
        self.combine = nn.Linear(2 * hidden_size, output_size)

    def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
        """Glimpse (N, K * C, P, P) and location (N, 2) -> (N, output_size)."""
        hidden = torch.cat((self.what(glimpse.flatten(1)), self.where(location)), dim=1).relu()
        return self.combine(hidden).relu()


class RecurrentAttentionModel(nn.Module):
    """Glimpse network, core, and the location, classification and baseline heads.

    Args:
        glimpse_values: number of values in a glimpse, K * C * P * P.
        num_classes: number L of classes.
        config: layer sizes, the core's kind, and whether the location network's gradient enters the core.

    Differs: `locator_hidden_size` puts a layer into the location network, whose mean then goes through a tanh. With 0
    it is the paper's, one linear layer, unbounded (the environment clips).
    """

    def __init__(self, glimpse_values: int, num_classes: int, config: RamConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.glimpse_network = GlimpseNetwork(glimpse_values, config.glimpse_hidden_size, size)
        self.core: nn.Module
        if config.core == "lstm":
            self.core = nn.LSTMCell(size, size)
        else:
            self.core = nn.RNNCell(size, size, nonlinearity="relu")
        hidden = config.locator_hidden_size
        layers = [nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 2)] if hidden else [nn.Linear(size, 2)]
        self.locator = nn.Sequential(*layers)
        self.classifier = nn.Linear(size, num_classes)
        self.baseline = nn.Linear(size, 1)

    def initial_state(self, num_episodes: int) -> State:
        """The core's state before the first glimpse: zeros."""
        zeros = self.classifier.weight.new_zeros(num_episodes, self.config.hidden_size)
        return (zeros, zeros) if self.config.core == "lstm" else (zeros,)

    def look(self, observation: dict[str, Any], state: State) -> State:
        """The core's state after one more glimpse; h, the first of it, is what the heads read."""
        if self.config.precision == "float32":
            return self._look(observation, state)
        if _rounds_instead(observation["glimpse"]):
            return self._look_rounded(observation, state)
        # One autocast a glimpse: the weights' gradients are then summed over glimpses in float32.
        with torch.autocast(observation["glimpse"].device.type, torch.bfloat16):
            after = self._look(observation, state)
        return tuple(part.float() for part in after)

    def _look(self, observation: dict[str, Any], state: State) -> State:
        encoded = self.glimpse_network(observation["glimpse"], observation["location"])
        if self.config.core == "lstm":
            return tuple(self.core(encoded, state))
        return (self.core(encoded, state[0]),)

    def _look_rounded(self, observation: dict[str, Any], state: State) -> State:
        """`_look` under autocast, value for value but for the order of sums, by products of float32."""
        encoder, core, round_ = self.glimpse_network, self.core, _round
        seen = _linear(observation["glimpse"].flatten(1), encoder.what.weight, encoder.what.bias)
        place = _linear(observation["location"], encoder.where.weight, encoder.where.bias)
        encoded = _linear(torch.cat((seen, place), 1).relu(), encoder.combine.weight, encoder.combine.bias).relu()
        gates = round_(
            _linear(encoded, core.get_parameter("weight_ih"), core.get_parameter("bias_ih"))
            + _linear(state[0], core.get_parameter("weight_hh"), core.get_parameter("bias_hh"))
        )
        if self.config.core == "rnn":
            return (gates.relu(),)
        opened, forget, new, output = gates.chunk(4, 1)
        opened, forget, output = (round_(gate.sigmoid()) for gate in (opened, forget, output))
        cell = forget * state[1] + round_(opened * round_(new.tanh()))
        return output * cell.tanh(), cell

    def locate(self, hidden: Tensor) -> Tensor:
        """Mean of the next location. (..., hidden_size) -> (..., 2), in (-1, 1) where there is a hidden layer."""
        hidden = hidden if self.config.locator_gradient_into_core else hidden.detach()
        if self.config.precision == "bfloat16" and self.config.locator_hidden_size and _rounds_instead(hidden):
            weight, bias = (self.locator.get_parameter(name) for name in ("0.weight", "0.bias"))
            hidden = _linear(hidden, weight, bias).relu()
        else:
            with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                hidden = self.locator[:-1](hidden)
        mean = self.locator[-1](hidden.float())
        return mean.tanh() if self.config.locator_hidden_size else mean

    def estimate(self, hidden: Tensor) -> Tensor:
        """Expected reward, the learned baseline; never trains the core. (..., hidden_size) -> (...)."""
        return self.baseline(hidden.detach()).squeeze(-1)

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits of the answer. (..., hidden_size) -> (..., L)."""
        return self.classifier(hidden)


def make_model(config: RamConfig, env: GlimpseVectorEnv) -> RecurrentAttentionModel:
    """A fresh network for an environment, on its device, with weights drawn from the run's seed."""
    values = env.config.num_scales * env.num_channels * env.config.patch_size**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return RecurrentAttentionModel(values, env.num_classes, config).to(env.device)
