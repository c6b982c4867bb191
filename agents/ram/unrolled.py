"""Unrolled: the rollout of examples/reinforce.py with its gradient written out, in few large matrix products.

Autograd goes back glimpse by glimpse, with one small product for each weight at each glimpse. Only the core's state
needs that order. So this goes back through the core first, and then makes the gradients of all weights, and everything
in the glimpse network, with one product for all glimpses: backpropagation through time.

Serves the paper's networks alone. `network.Recorded` is the plain form, which serves all; the two differ in
rounding alone.

Shapes: N episodes, T glimpses, V values of a glimpse, M units for what is seen and M for where, H units of the core and
of the encoded glimpse, G values that enter the core's activations: H of an RNN, 4 * H of an LSTM.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .network import Outputs, Recorded, RecurrentAttentionModel


class Layer(NamedTuple):
    """A linear layer's weight (outputs, inputs) and bias (outputs,), or their gradients."""

    weight: Tensor
    bias: Tensor


class Layers(NamedTuple):
    """The linear layers that a rollout goes through."""

    what: Layer  # V -> M, of the glimpse network
    where: Layer  # 2 -> M
    combine: Layer  # 2 * M -> H
    core_input: Layer  # H -> G, what the core does with the encoded glimpse
    core_state: Layer  # H -> G, and with the state before it
    locator_mean: Layer  # H, or the units of the hidden layer -> 2
    locator_hidden: Layer | None  # H -> those units; None without a hidden layer

    @classmethod
    def of(cls, model: RecurrentAttentionModel) -> Layers:
        """The network's own parameters."""
        encoder, core = model.glimpse_network, model.core
        *hidden, mean = (linear for linear in model.locator if isinstance(linear, nn.Linear))
        return cls(
            what=Layer(encoder.what.weight, encoder.what.bias),
            where=Layer(encoder.where.weight, encoder.where.bias),
            combine=Layer(encoder.combine.weight, encoder.combine.bias),
            core_input=Layer(core.weight_ih, core.bias_ih),
            core_state=Layer(core.weight_hh, core.bias_hh),
            locator_mean=Layer(mean.weight, mean.bias),
            locator_hidden=Layer(hidden[0].weight, hidden[0].bias) if hidden else None,
        )

    def detached(self, dtype: torch.dtype) -> Layers:
        """The same without gradient, in a dtype; those that see or give a location stay float32."""
        layers = {}
        for name, layer in self._asdict().items():
            kept = torch.float32 if name in ("where", "locator_mean") else dtype
            layers[name] = layer and Layer(*(parameter.detach().to(kept) for parameter in layer))
        return Layers(**layers)


class Unrolled:
    """Looks as a network of the paper's does, and keeps what the gradient needs instead of a graph.

    Products are computed in the network's precision and summed in float32. The cell of an LSTM, the layer that sees the
    location and the location network's last layer are float32.

    Args:
        model: the network.
        num_episodes: N.
        num_glimpses: T.
    """

    def __init__(self, model: RecurrentAttentionModel, num_episodes: int, num_glimpses: int) -> None:
        self.model = model
        self.is_lstm = model.config.core == "lstm"
        dtype = torch.bfloat16 if model.config.precision == "bfloat16" else torch.float32
        own = Layers.of(model)
        self.parameters = [parameter for layer in own if layer is not None for parameter in layer]
        self.layers = layers = own.detached(dtype)
        # One product for the encoded glimpse and the state before it, side by side.
        self.core_weight = torch.cat((layers.core_input.weight, layers.core_state.weight), 1)  # (G, 2 * H)
        self.core_bias = (own.core_input.bias + own.core_state.bias).detach().to(dtype)

        def empty(steps: int, width: int, dtype: torch.dtype = dtype) -> Tensor:
            return self.core_weight.new_empty(steps, num_episodes, width, dtype=dtype)

        num_gates, size = layers.core_state.weight.shape
        self.num_what, num_values = layers.what.weight.shape
        self.glimpses = empty(num_glimpses, num_values)
        self.locations = empty(num_glimpses, 2, torch.float32)
        self.encoder_hidden = empty(num_glimpses, 2 * self.num_what)  # of what and of where, side by side
        self.core_inputs = empty(num_glimpses + 1, 2 * size)  # the last row has a state alone
        self.encoded, self.states = self.core_inputs[:-1, :, :size], self.core_inputs[:, :, size:]
        self.states[0] = 0
        if self.is_lstm:
            self.gates = empty(num_glimpses, num_gates)  # input, forget, candidate, output
            self.cells = empty(num_glimpses + 1, size, torch.float32)
            self.cells[0] = 0
        self.location_means = empty(num_glimpses - 1, 2, torch.float32)
        if layers.locator_hidden is not None:
            self.locator_hidden = empty(num_glimpses - 1, len(layers.locator_hidden.bias))
        self.num_taken, self.has_located = 0, False

    @torch.no_grad()
    def look(self, observation: dict[str, Any]) -> None:
        """Takes one more glimpse."""
        step, layers = self.num_taken, self.layers
        self.num_taken += 1
        self.glimpses[step] = observation["glimpse"].flatten(1)
        self.locations[step] = observation["location"]
        hidden, encoded = self.encoder_hidden[step], self.encoded[step]
        what, where = hidden[:, : self.num_what], hidden[:, self.num_what :]
        torch.addmm(layers.what.bias, self.glimpses[step], layers.what.weight.t(), out=what)
        where.copy_(torch.addmm(layers.where.bias, self.locations[step], layers.where.weight.t()))
        torch.addmm(layers.combine.bias, hidden.relu_(), layers.combine.weight.t(), out=encoded).relu_()
        state = self.states[step + 1]
        gates = self.gates[step] if self.is_lstm else state
        torch.addmm(self.core_bias, self.core_inputs[step], self.core_weight.t(), out=gates)
        if not self.is_lstm:
            gates.relu_()
            return
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, 1)
        gates[:, : 2 * state.shape[1]].sigmoid_()
        candidate.tanh_()
        output_gate.sigmoid_()
        cell = torch.addcmul(forget_gate * self.cells[step], input_gate, candidate, out=self.cells[step + 1])
        state.copy_(output_gate * cell.tanh())

    @torch.no_grad()
    def locate(self) -> Tensor:
        """Mean of the next location, float32 (N, 2), without gradient."""
        step, state, layers = self.num_taken - 1, self.states[self.num_taken], self.layers
        self.has_located = True
        mean, (weight, bias) = self.location_means[step], layers.locator_mean
        if layers.locator_hidden is None:
            return torch.addmm(bias, state.float(), weight.t(), out=mean)
        hidden = self.locator_hidden[step]
        torch.addmm(layers.locator_hidden.bias, state, layers.locator_hidden.weight.t(), out=hidden).relu_()
        return torch.addmm(bias, hidden.float(), weight.t(), out=mean).tanh_()

    def outputs(self) -> Outputs:
        """What the losses read; the means are those of `locate`, if it was asked after each glimpse but the last."""
        before, last, means = cast(tuple[Tensor, Tensor, Tensor], _Outputs.apply(self, *self.parameters))
        return Outputs(before, last, means if self.has_located else self.model.locate(before))

    def gradients(
        self, before_grad: Tensor | None, last_grad: Tensor, means_grad: Tensor | None
    ) -> list[Tensor | None]:
        """The gradients of `parameters`, float32, from those of `outputs()`; None is zero."""
        gradients, locator_grad = self._back_through_locator(means_grad)
        if locator_grad is not None:
            before_grad = locator_grad if before_grad is None else before_grad + locator_grad
        back_through_core = self._back_through_lstm if self.is_lstm else self._back_through_rnn
        gates_grad = back_through_core(before_grad, last_grad).flatten(0, 1)  # (T * N, G)
        core_inputs, hidden = self.core_inputs[:-1].flatten(0, 1), self.encoder_hidden.flatten(0, 1)
        encoded = core_inputs[:, : self.encoded.shape[2]]
        core = _weight_gradient(gates_grad, core_inputs)
        core_bias = self._bias_gradient(gates_grad)
        gradients["core_input"] = Layer(core[:, : encoded.shape[1]], core_bias)
        gradients["core_state"] = Layer(core[:, encoded.shape[1] :], core_bias)
        encoded_grad = _back_through_relu(gates_grad @ self.layers.core_input.weight, encoded)
        gradients["combine"] = Layer(_weight_gradient(encoded_grad, hidden), self._bias_gradient(encoded_grad))
        hidden_grad = _back_through_relu(encoded_grad @ self.layers.combine.weight, hidden)
        what_grad, where_grad = hidden_grad[:, : self.num_what], hidden_grad[:, self.num_what :].float()
        biases = self._bias_gradient(hidden_grad)
        what = _weight_gradient(what_grad, self.glimpses.flatten(0, 1))
        where = (self.locations.flatten(0, 1).t() @ where_grad).t()
        gradients["what"] = Layer(what, biases[: self.num_what])
        gradients["where"] = Layer(where, biases[self.num_what :])
        names = [name for name, layer in zip(Layers._fields, self.layers, strict=True) if layer is not None]
        return [gradient for name in names for gradient in gradients.get(name, (None, None))]

    def _bias_gradient(self, outputs_grad: Tensor) -> Tensor:
        """A bias's gradient from those of its layer's outputs, (steps * N, O): float32 (O,).

        Each glimpse's sum is rounded to the network's precision, as products are, and these are summed in float32:
        PyTorch would convert all of a bfloat16 tensor on a CPU before it sums that in float32.
        """
        return outputs_grad.unflatten(0, (-1, self.glimpses.shape[1])).sum(1).sum(0, dtype=torch.float32)

    def _back_through_locator(self, means_grad: Tensor | None) -> tuple[dict[str, Layer], Tensor | None]:
        """The gradients of the location network's layers, and, if it may train the core, of `Outputs.before`."""
        if means_grad is None or not self.has_located:
            return {}, None
        states = self.states[1:-1].flatten(0, 1)  # ((T - 1) * N, H)
        weight, hidden_layer = self.layers.locator_mean.weight, self.layers.locator_hidden
        if hidden_layer is None:
            outputs_grad = means_grad.flatten(0, 1)
            gradients = {"locator_mean": Layer(outputs_grad.t() @ states.float(), outputs_grad.sum(0))}
        else:
            outputs_grad = (means_grad * (1 - self.location_means * self.location_means)).flatten(0, 1)  # of the tanh
            hidden = self.locator_hidden.flatten(0, 1)
            gradients = {"locator_mean": Layer(outputs_grad.t() @ hidden.float(), outputs_grad.sum(0))}
            outputs_grad = _back_through_relu((outputs_grad @ weight).to(hidden.dtype), hidden)
            gradients["locator_hidden"] = Layer(
                _weight_gradient(outputs_grad, states), self._bias_gradient(outputs_grad)
            )
            weight = hidden_layer.weight
        if not self.model.config.locator_gradient_into_core:
            return gradients, None
        return gradients, (outputs_grad @ weight).float().unflatten(0, means_grad.shape[:2])

    def _back_through_rnn(self, before_grad: Tensor | None, last_grad: Tensor) -> Tensor:
        """The gradient of what each ReLU of the core is applied to, (T, N, H)."""
        weight = self.layers.core_state.weight
        before_grad = None if before_grad is None else before_grad.to(weight.dtype)
        gates_grad = weight.new_empty(self.num_taken, *last_grad.shape)
        state_grad = last_grad.to(weight.dtype)
        for step in reversed(range(self.num_taken)):
            gate_grad = gates_grad[step]
            torch.ops.aten.threshold_backward.grad_input(state_grad, self.states[step + 1], 0, grad_input=gate_grad)
            if not step:
                break
            if before_grad is None:
                state_grad = gate_grad @ weight
            else:
                state_grad = torch.addmm(before_grad[step - 1], gate_grad, weight)
        return gates_grad

    def _back_through_lstm(self, before_grad: Tensor | None, last_grad: Tensor) -> Tensor:
        """The gradient of what each gate of the core is applied to, (T, N, 4 * H)."""
        gates_grad = torch.empty_like(self.gates)
        state_grad, cell_grad = last_grad, torch.zeros_like(self.cells[0])
        for step in reversed(range(self.num_taken)):
            input_gate, forget_gate, candidate, output_gate = self.gates[step].float().chunk(4, 1)
            squashed = self.cells[step + 1].tanh()
            cell_grad = cell_grad + state_grad * output_gate * (1 - squashed * squashed)
            input_grad, forget_grad, candidate_grad, output_grad = gates_grad[step].chunk(4, 1)
            input_grad.copy_(cell_grad * candidate * input_gate * (1 - input_gate))
            forget_grad.copy_(cell_grad * self.cells[step] * forget_gate * (1 - forget_gate))
            candidate_grad.copy_(cell_grad * input_gate * (1 - candidate * candidate))
            output_grad.copy_(state_grad * squashed * output_gate * (1 - output_gate))
            cell_grad = cell_grad * forget_gate
            if step:
                state_grad = (gates_grad[step] @ self.layers.core_state.weight).float()
                state_grad = state_grad if before_grad is None else state_grad + before_grad[step - 1]
        return gates_grad


def unroll(model: RecurrentAttentionModel, num_episodes: int, num_glimpses: int) -> Recorded | Unrolled:
    """What looks, and later gives the core's states with their gradient, as `RamConfig.backpropagation` says."""
    if model.config.resolve().backpropagation == "autograd":
        return Recorded(model, num_episodes)
    return Unrolled(model, num_episodes, num_glimpses)


def _back_through_relu(outputs_grad: Tensor, outputs: Tensor) -> Tensor:
    """The gradient of what a ReLU is applied to, from that of its outputs."""
    return torch.ops.aten.threshold_backward(outputs_grad, outputs, 0)


def _weight_gradient(outputs_grad: Tensor, inputs: Tensor) -> Tensor:
    """A weight's gradient from those of its layer's outputs, (M, O), and its inputs, (M, I): float32 (O, I)."""
    return (outputs_grad.t() @ inputs).float()


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
        ctx: Any, before_grad: Tensor | None, last_grad: Tensor | None, means_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        unrolled: Unrolled = ctx.unrolled
        if last_grad is None:
            last_grad = torch.zeros_like(unrolled.states[-1], dtype=torch.float32)
        return (None, *unrolled.gradients(before_grad, last_grad, means_grad))
