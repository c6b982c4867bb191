"""Unrolled: a rollout's way through glimpse network, core and location network, its gradient in few large products.

Autograd walks back glimpse by glimpse, with a small matrix product for each weight at each glimpse. Only the core's
state needs that order. The gradients of all weights, and everything in the glimpse network, can wait until the core is
done and then be made for all glimpses at once, which is what this does: backpropagation through time, written out.

Differs: from autograd through `RecurrentAttentionModel.look` and `locate` in rounding alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .network import RecurrentAttentionModel


class Outputs(NamedTuple):
    """What a rollout of T glimpses gave, float32, as a function of the weights."""

    before: Tensor
    """The core's states after all glimpses but the last, (T - 1, N, size)."""
    last: Tensor
    """Its state after the last glimpse, (N, size)."""
    location_means: Tensor
    """Where the location network would look next after each of the former, (T - 1, N, 2)."""


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

    def look(self, observation: dict[str, Any]) -> None:
        """Takes one more glimpse."""
        self.state = self.model.look(observation, self.state)
        self.states.append(self.state[0])

    @torch.no_grad()
    def locate(self) -> Tensor:
        """Mean of the next location, float32 (N, 2), without gradient."""
        return self.model.locate(self.state[0])

    def outputs(self) -> Outputs:
        """What the losses read."""
        states = torch.stack(self.states)
        return Outputs(states[:-1], states[-1], self.model.locate(states[:-1]))


class Unrolled:
    """Looks as the network does, and keeps what the gradient needs instead of a graph.

    Products are computed in the network's precision, with float32 sums; the cell of an LSTM and the layer that sees the
    location are float32.

    Args:
        model: the network.
        num_episodes: N.
        num_glimpses: T.
    """

    def __init__(self, model: RecurrentAttentionModel, num_episodes: int, num_glimpses: int) -> None:
        encoder, core = model.glimpse_network, model.core
        self.model = model
        self.is_lstm = model.config.core == "lstm"
        layers = (encoder.what, encoder.where, encoder.combine)
        self.parameters = [
            *(parameter for layer in layers for parameter in (layer.weight, layer.bias)),
            *(core.get_parameter(name) for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")),
            *model.locator.parameters(),
        ]
        dtype = torch.bfloat16 if model.config.precision == "bfloat16" else torch.float32
        weights = [parameter.detach().to(dtype) for parameter in self.parameters]
        self.what, self.what_bias, _, _, self.combine, self.combine_bias = weights[:6]
        self.core_in, _, self.core, _ = weights[6:10]
        self.core_all = torch.cat((self.core_in, self.core), 1)  # one product for what is seen and what is remembered
        self.core_bias = (self.parameters[7] + self.parameters[9]).detach().to(dtype)
        self.where, self.where_bias = encoder.where.weight.detach(), encoder.where.bias.detach()
        # The location network: weight and bias of its hidden layer, if it has one, and of what gives the mean.
        self.locator_layer = weights[10:-2]
        self.to_mean, self.to_mean_bias = (parameter.detach() for parameter in self.parameters[-2:])

        def kept(steps: int, width: int, of: torch.dtype = dtype) -> Tensor:
            return self.what.new_empty(steps, num_episodes, width, dtype=of)

        self.middle, num_encoded, size = self.what.shape[0], self.combine.shape[0], self.core.shape[1]
        self.glimpses = kept(num_glimpses, self.what.shape[1])
        self.locations = kept(num_glimpses, 2, torch.float32)
        self.what_where = kept(num_glimpses, 2 * self.middle)  # the glimpse network's hidden units
        # What enters the core side by side: the encoded glimpse, and the state before it. The last has a state alone.
        self.core_inputs = kept(num_glimpses + 1, num_encoded + size)
        self.encoded, self.states = self.core_inputs[:-1, :, :num_encoded], self.core_inputs[:, :, num_encoded:]
        self.states[0] = 0
        if self.is_lstm:
            self.gates = kept(num_glimpses, 4 * size)  # input, forget, new, output
            self.cells = kept(num_glimpses + 1, size, torch.float32)
            self.cells[0] = 0
        self.location_means = kept(num_glimpses - 1, 2, torch.float32)
        if self.locator_layer:
            self.location_hidden = kept(num_glimpses - 1, self.locator_layer[0].shape[0])
        self.num_taken, self.has_located = 0, False

    @torch.no_grad()
    def look(self, observation: dict[str, Any]) -> None:
        """Takes one more glimpse."""
        step = self.num_taken
        self.num_taken += 1
        self.glimpses[step] = observation["glimpse"].flatten(1)
        self.locations[step] = observation["location"]
        hidden, encoded = self.what_where[step], self.encoded[step]
        torch.addmm(self.what_bias, self.glimpses[step], self.what.t(), out=hidden[:, : self.middle])
        hidden[:, self.middle :] = torch.addmm(self.where_bias, self.locations[step], self.where.t())
        torch.addmm(self.combine_bias, hidden.relu_(), self.combine.t(), out=encoded).relu_()
        state = self.states[step + 1]
        into = self.gates[step] if self.is_lstm else state
        torch.addmm(self.core_bias, self.core_inputs[step], self.core_all.t(), out=into)
        if self.is_lstm:
            opened, forget, new, output = into.chunk(4, 1)
            into[:, : 2 * state.shape[1]].sigmoid_()
            new.tanh_()
            output.sigmoid_()
            cell = torch.addcmul(forget * self.cells[step], opened, new, out=self.cells[step + 1])
            state.copy_(output * cell.tanh())
        else:
            into.relu_()

    @torch.no_grad()
    def locate(self) -> Tensor:
        """Mean of the next location, float32 (N, 2), without gradient."""
        step, seen, self.has_located = self.num_taken - 1, self.states[self.num_taken], True
        mean = self.location_means[step]
        if not self.locator_layer:
            return torch.addmm(self.to_mean_bias, seen.float(), self.to_mean.t(), out=mean)
        hidden = self.location_hidden[step]
        weight, bias = self.locator_layer
        torch.addmm(bias, seen, weight.t(), out=hidden).relu_()
        return torch.addmm(self.to_mean_bias, hidden.float(), self.to_mean.t(), out=mean).tanh_()

    def outputs(self) -> Outputs:
        """What the losses read; the means are those of `locate`, where it was asked after each glimpse but the last."""
        before, last, means = cast(tuple[Tensor, Tensor, Tensor], _Outputs.apply(self, *self.parameters))
        return Outputs(before, last, means if self.has_located else self.model.locate(before))

    def gradients(self, of_before: Tensor | None, of_last: Tensor, of_means: Tensor | None) -> list[Tensor | None]:
        """The gradients of the weights, float32, from those of `outputs()`; None is zero."""
        locator, into_before = self._through_locator(of_means)
        if into_before is not None:
            of_before = into_before if of_before is None else of_before + into_before
        into_core = self._through_lstm(of_before, of_last) if self.is_lstm else self._through_rnn(of_before, of_last)
        into_core = into_core.flatten(0, 1)  # (T * N, size or 4 * size), of what the core's activation is applied to
        core_inputs = self.core_inputs[:-1].flatten(0, 1)
        encoded, what_where = core_inputs[:, : self.encoded.shape[2]], self.what_where.flatten(0, 1)
        core = _product(into_core, core_inputs)
        core_in, core = core[:, : encoded.shape[1]], core[:, encoded.shape[1] :]
        core_bias = self._total(into_core)
        into_encoded = torch.ops.aten.threshold_backward(into_core @ self.core_in, encoded, 0)
        into_hidden = torch.ops.aten.threshold_backward(into_encoded @ self.combine, what_where, 0)
        into_what, into_where = into_hidden[:, : self.middle], into_hidden[:, self.middle :].float()
        into_biases = self._total(into_hidden)
        return [
            _product(into_what, self.glimpses.flatten(0, 1)),
            into_biases[: self.middle],
            (self.locations.flatten(0, 1).t() @ into_where).t(),
            into_biases[self.middle :],
            _product(into_encoded, what_where),
            self._total(into_encoded),
            *(core_in, core_bias, core, core_bias),
            *locator,
        ]

    def _total(self, rows: Tensor) -> Tensor:
        """A bias's gradient from those of what it is added to, (steps * N, O): float32 (O,).

        Each glimpse's sum is rounded to the network's precision, as products are, and these are summed in float32:
        PyTorch would convert all of a bfloat16 tensor on a CPU before it sums that in float32.
        """
        return rows.unflatten(0, (-1, self.glimpses.shape[1])).sum(1).sum(0, dtype=torch.float32)

    def _through_locator(self, of_means: Tensor | None) -> tuple[list[Tensor | None], Tensor | None]:
        """The gradients of the location network's weights, and of the core's states before it."""
        if of_means is None or not self.has_located:
            return [None] * (len(self.locator_layer) + 2), None
        seen = self.states[1:-1].flatten(0, 1)
        into_core = self.model.config.locator_gradient_into_core
        if not self.locator_layer:
            into = of_means.flatten(0, 1)
            found: list[Tensor | None] = [into.t() @ seen.float(), into.sum(0)]
            into_before = into @ self.to_mean if into_core else None
        else:
            into = (of_means * (1 - self.location_means * self.location_means)).flatten(0, 1)
            hidden = self.location_hidden.flatten(0, 1)
            into_hidden = torch.ops.aten.threshold_backward((into @ self.to_mean).to(hidden.dtype), hidden, 0)
            found = [_product(into_hidden, seen), self._total(into_hidden)]
            found += [into.t() @ hidden.float(), into.sum(0)]
            into_before = into_hidden @ self.locator_layer[0] if into_core else None
        return found, None if into_before is None else into_before.float().unflatten(0, of_means.shape[:2])

    def _through_rnn(self, of_before: Tensor | None, of_last: Tensor) -> Tensor:
        """The gradient of what each ReLU of the core is applied to, (T, N, size)."""
        of_before = None if of_before is None else of_before.to(self.core.dtype)
        into_core = self.core.new_empty(self.num_taken, *of_last.shape)
        total = of_last.to(self.core.dtype)
        for step in reversed(range(self.num_taken)):
            into = into_core[step]
            torch.ops.aten.threshold_backward.grad_input(total, self.states[step + 1], 0, grad_input=into)
            if step:
                total = into @ self.core if of_before is None else torch.addmm(of_before[step - 1], into, self.core)
        return into_core

    def _through_lstm(self, of_before: Tensor | None, of_last: Tensor) -> Tensor:
        """The gradient of what each gate of the core is applied to, (T, N, 4 * size)."""
        into_core = torch.empty_like(self.gates)
        total, of_cell = of_last, torch.zeros_like(self.cells[0])
        for step in reversed(range(self.num_taken)):
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
                total = (into_core[step] @ self.core).float()
                total = total if of_before is None else total + of_before[step - 1]
        return into_core


def unroll(model: RecurrentAttentionModel, num_episodes: int, num_glimpses: int) -> Recorded | Unrolled:
    """What looks, and later gives the core's states with their gradient, as `RamConfig.backpropagation` says."""
    if model.config.backpropagation == "autograd":
        return Recorded(model, num_episodes)
    return Unrolled(model, num_episodes, num_glimpses)


def _product(outputs: Tensor, inputs: Tensor) -> Tensor:
    """A weight's gradient from those of a linear layer's outputs (M, O) and its inputs (M, I): float32 (O, I)."""
    return (outputs.t() @ inputs).float()


class _Outputs(torch.autograd.Function):
    """Ties what `Unrolled` computed to autograd's graph."""

    @staticmethod
    def forward(ctx: Any, unrolled: Unrolled, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        del parameters
        ctx.unrolled = unrolled
        ctx.set_materialize_grads(False)
        states = unrolled.states
        before, last = states[1:-1].to(torch.float32, copy=True), states[-1].to(torch.float32, copy=True)
        return before, last, unrolled.location_means.clone()

    @staticmethod
    def backward(
        ctx: Any, of_before: Tensor | None, of_last: Tensor | None, of_means: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        unrolled: Unrolled = ctx.unrolled
        if of_last is None:
            of_last = unrolled.where.new_zeros(unrolled.states.shape[1:])
        return (None, *unrolled.gradients(of_before, of_last, of_means))
