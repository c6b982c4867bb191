"""Unrolled: a rollout's way through the glimpse network and the core, and its gradient in few large products.

Autograd walks back glimpse by glimpse, with a small matrix product for each weight at each glimpse. Only the core's
state needs that order. The gradients of all weights, and everything in the glimpse network, can wait until the core is
done and then be made for all glimpses at once, which is what this does: backpropagation through time, written out.

Differs: from autograd through `RecurrentAttentionModel.look` in rounding alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from agents.ram.network import RecurrentAttentionModel


class Recorded:
    """Looks as the network does, glimpse by glimpse, as one graph of autograd's: the plain way.

    Args:
        model: the network.
        num_episodes: N.
    """

    def __init__(self, model: RecurrentAttentionModel, num_episodes: int) -> None:
        self.model = model
        self.state = model.initial_state(num_episodes)
        self.states: list[Tensor] = []

    def look(self, observation: dict[str, Any]) -> Tensor:
        """The core's state after one more glimpse, float32 (N, size), without gradient."""
        self.state = self.model.look(observation, self.state)
        self.states.append(self.state[0])
        return self.state[0].detach()

    def hidden(self) -> Tensor:
        """The core's states after all glimpses, float32 (T, N, size), as a function of the weights."""
        return torch.stack(self.states)


class Unrolled:
    """Looks as the network does, and keeps what the gradient needs instead of a graph.

    Products are computed in the network's precision, with float32 sums; the cell of an LSTM is float32.

    Args:
        model: the network.
        num_episodes: N.
        num_glimpses: T.
    """

    def __init__(self, model: RecurrentAttentionModel, num_episodes: int, num_glimpses: int) -> None:
        encoder, core = model.glimpse_network, model.core
        self.is_lstm = model.config.core == "lstm"
        layers = (encoder.what, encoder.where, encoder.combine)
        self.parameters = [
            *(parameter for layer in layers for parameter in (layer.weight, layer.bias)),
            *(core.get_parameter(name) for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")),
        ]
        dtype = torch.bfloat16 if model.config.precision == "bfloat16" else torch.float32
        weights = [parameter.detach().to(dtype) for parameter in self.parameters]
        self.what, self.what_bias, _, _, self.combine, self.combine_bias = weights[:6]
        self.core_in, _, self.core, _ = weights[6:]
        self.core_bias = (self.parameters[7] + self.parameters[9]).detach().to(dtype)
        self.where, self.where_bias = encoder.where.weight.detach(), encoder.where.bias.detach()

        def kept(steps: int, width: int, of: torch.dtype = dtype) -> Tensor:
            return self.what.new_empty(steps, num_episodes, width, dtype=of)

        middle, size = self.what.shape[0], self.core.shape[1]
        self.glimpses = kept(num_glimpses, self.what.shape[1])
        self.locations = kept(num_glimpses, 2, torch.float32)
        self.hidden_what, self.hidden_where = kept(num_glimpses, middle), kept(num_glimpses, middle)
        self.encoded = kept(num_glimpses, self.combine.shape[0])
        self.states = kept(num_glimpses + 1, size)  # h before the first glimpse and after each
        self.states[0] = 0
        if self.is_lstm:
            self.gates = kept(num_glimpses, 4 * size)  # input, forget, new, output
            self.cells = kept(num_glimpses + 1, size, torch.float32)
            self.cells[0] = 0
        self.num_taken = 0

    @torch.no_grad()
    def look(self, observation: dict[str, Any]) -> Tensor:
        """The core's state after one more glimpse, float32 (N, size), without gradient."""
        step, middle = self.num_taken, self.what.shape[0]
        self.num_taken += 1
        self.glimpses[step] = observation["glimpse"].flatten(1)
        self.locations[step] = observation["location"]
        what, where, encoded = self.hidden_what[step], self.hidden_where[step], self.encoded[step]
        torch.addmm(self.what_bias, self.glimpses[step], self.what.t(), out=what).relu_()
        where.copy_(torch.addmm(self.where_bias, self.locations[step], self.where.t()).relu_())
        torch.addmm(self.combine_bias, what, self.combine[:, :middle].t(), out=encoded)
        encoded.addmm_(where, self.combine[:, middle:].t()).relu_()
        state = self.states[step + 1]
        into = self.gates[step] if self.is_lstm else state
        torch.addmm(self.core_bias, encoded, self.core_in.t(), out=into)
        into.addmm_(self.states[step], self.core.t())
        if self.is_lstm:
            opened, forget, new, output = into.chunk(4, 1)
            into[:, : 2 * state.shape[1]].sigmoid_()
            new.tanh_()
            output.sigmoid_()
            cell = torch.addcmul(forget * self.cells[step], opened, new, out=self.cells[step + 1])
            state.copy_(output * cell.tanh())
        else:
            into.relu_()
        return state.float()

    def hidden(self) -> Tensor:
        """The core's states after all glimpses, float32 (T, N, size), as a function of the weights."""
        return cast(Tensor, _Hidden.apply(self, *self.parameters))

    def gradients(self, of_hidden: Tensor) -> list[Tensor]:
        """The gradients of the weights, float32, from that of `hidden()`, (T, N, size)."""
        into_core = self._through_lstm(of_hidden) if self.is_lstm else self._through_rnn(of_hidden)
        into_core = into_core.flatten(0, 1)  # (T * N, size or 4 * size), of what the core's activation is applied to
        encoded = self.encoded.flatten(0, 1)
        what, where = self.hidden_what.flatten(0, 1), self.hidden_where.flatten(0, 1)
        middle = what.shape[1]
        core_bias = into_core.sum(0, dtype=torch.float32)
        core = [_product(into_core, encoded), core_bias, _product(into_core, self.states[:-1].flatten(0, 1)), core_bias]
        into_encoded = torch.ops.aten.threshold_backward(into_core @ self.core_in, encoded, 0)
        combine = torch.cat((_product(into_encoded, what), _product(into_encoded, where)), 1)
        into_what = torch.ops.aten.threshold_backward(into_encoded @ self.combine[:, :middle], what, 0)
        into_where = torch.ops.aten.threshold_backward(into_encoded @ self.combine[:, middle:], where, 0).float()
        return [
            _product(into_what, self.glimpses.flatten(0, 1)),
            into_what.sum(0, dtype=torch.float32),
            into_where.t() @ self.locations.flatten(0, 1),
            into_where.sum(0),
            combine,
            into_encoded.sum(0, dtype=torch.float32),
            *core,
        ]

    def _through_rnn(self, of_hidden: Tensor) -> Tensor:
        """The gradient of what each ReLU of the core is applied to, (T, N, size)."""
        of_hidden = of_hidden.to(self.core.dtype)
        into_core = torch.empty_like(of_hidden)
        total = of_hidden[-1]
        for step in reversed(range(len(of_hidden))):
            into_core[step] = torch.ops.aten.threshold_backward(total, self.states[step + 1], 0)
            if step:
                total = torch.addmm(of_hidden[step - 1], into_core[step], self.core)
        return into_core

    def _through_lstm(self, of_hidden: Tensor) -> Tensor:
        """The gradient of what each gate of the core is applied to, (T, N, 4 * size)."""
        into_core = torch.empty_like(self.gates)
        total, of_cell = of_hidden[-1], torch.zeros_like(self.cells[0])
        for step in reversed(range(len(of_hidden))):
            opened, forget, new, output = self.gates[step].float().chunk(4, 1)
            squashed = self.cells[step + 1].tanh()
            of_cell = of_cell + total * output * (1 - squashed * squashed)
            parts = into_core[step].chunk(4, 1)
            parts[0].copy_(of_cell * new * opened * (1 - opened))
            parts[1].copy_(of_cell * self.cells[step] * forget * (1 - forget))
            parts[2].copy_(of_cell * opened * (1 - new * new))
            parts[3].copy_(total * squashed * output * (1 - output))
            of_cell = of_cell * forget
            if step:
                total = of_hidden[step - 1] + (into_core[step] @ self.core).float()
        return into_core


def unroll(model: RecurrentAttentionModel, num_episodes: int, num_glimpses: int) -> Recorded | Unrolled:
    """What looks, and later gives the core's states with their gradient, as `RamConfig.backpropagation` says."""
    if model.config.backpropagation == "autograd":
        return Recorded(model, num_episodes)
    return Unrolled(model, num_episodes, num_glimpses)


def _product(outputs: Tensor, inputs: Tensor) -> Tensor:
    """A weight's gradient from those of a linear layer's outputs (M, O) and its inputs (M, I): float32 (O, I)."""
    return (outputs.t() @ inputs).float()


class _Hidden(torch.autograd.Function):
    """Ties what `Unrolled` computed to autograd's graph."""

    @staticmethod
    def forward(ctx: Any, unrolled: Unrolled, *parameters: Tensor) -> Tensor:
        del parameters
        ctx.unrolled = unrolled
        return unrolled.states[1:].to(torch.float32, copy=True)

    @staticmethod
    def backward(ctx: Any, of_hidden: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.unrolled.gradients(of_hidden))
