"""The Recurrent Attention Model's network.

Source: Mnih et al. 2014, sections 3.1 and 4 (figure 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ram_gym import GlimpseVectorEnv

from ..networks import CORES, GLIMPSE_NETWORKS, GlimpseShape, State
from .config import RamConfig

OwnGlimpseNetwork = nn.Module | Callable[[GlimpseShape], nn.Module] | None
"""A glimpse network from Python, or what makes one of the shape that it is to see; None: the one that config names."""
OwnCore = nn.Module | Callable[[int], nn.Module] | None
"""A core from Python, or what makes one of the number of features; None: the one that config names."""


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


class RecurrentAttentionModel(nn.Module):
    """Glimpse network, core, and the location, classification and baseline heads.

    Args:
        glimpse_shape: what it sees.
        num_classes: number L of classes.
        config: the names of glimpse network and core, layer sizes, and whether the location network's gradient enters
            the core.
        glimpse_network: one of your own in place of the one that config names, with the interface that
            `agents.networks` describes. The model's config then says "custom".
        core: one of your own likewise.

    Raises:
        ValueError: config names a "custom" part that is not given, or a part does not have the interface.

    Differs: `locator_hidden_size` puts a layer into the location network, whose mean then goes through a tanh. With 0
    it is the paper's, one linear layer, unbounded (the environment clips).
    """

    def __init__(
        self,
        glimpse_shape: GlimpseShape,
        num_classes: int,
        config: RamConfig,
        glimpse_network: OwnGlimpseNetwork = None,
        core: OwnCore = None,
    ) -> None:
        super().__init__()
        self.config = config = with_custom_parts(config, glimpse_network, core)
        num_features = size = config.hidden_size
        self.glimpse_network: Any  # modules with the methods that `agents.networks` describes
        self.core: Any
        if config.glimpse_network != "custom":
            make = GLIMPSE_NETWORKS[config.glimpse_network]
            self.glimpse_network = make(glimpse_shape, config.glimpse_hidden_size, size)
        else:
            network = self.glimpse_network = _own("glimpse_network", glimpse_network, glimpse_shape)
            num_features = _width("glimpse_network", lambda: network(*glimpse_shape.zeros(2)))
        if config.core != "custom":
            self.core = CORES[config.core](num_features, size)
        else:
            own = self.core = _own("core", core, num_features)
            missing = [method for method in ("initial_state", "step") if not hasattr(own, method)]
            if missing:
                raise ValueError(f"core must have a method {missing[0]}, see agents/networks.py, got {own!r}")
            size = _width("core", lambda: own.step(torch.zeros(2, num_features), own.initial_state(2))[0])
        hidden = config.locator_hidden_size
        layers = [nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 2)] if hidden else [nn.Linear(size, 2)]
        self.locator = nn.Sequential(*layers)
        self.classifier = nn.Linear(size, num_classes)
        self.baseline = nn.Linear(size, 1)

    def initial_state(self, num_episodes: int) -> State:
        """The core's state before the first glimpse."""
        return self.core.initial_state(num_episodes)

    def look(self, observation: dict[str, Any], state: State) -> State:
        """The core's state after one more glimpse; the first of it is what the heads read."""
        if self.config.precision == "float32":
            return self._look(observation, state)
        if self.config.has_papers_networks and _rounds_instead(observation["glimpse"]):
            return self._look_rounded(observation, state)
        # One autocast a glimpse: the weights' gradients are then summed over glimpses in float32.
        with torch.autocast(observation["glimpse"].device.type, torch.bfloat16):
            after = self._look(observation, state)
        return tuple(part.float() for part in after)

    def _look(self, observation: dict[str, Any], state: State) -> State:
        features = self.glimpse_network(observation["glimpse"], observation["location"])
        return self.core.step(features, state)

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


class Outputs(NamedTuple):
    """What a rollout of T glimpses gave, float32, as a function of the weights."""

    before: Tensor
    """The core's states after all glimpses but the last, (T - 1, N, H)."""
    last: Tensor
    """Its state after the last glimpse, (N, H)."""
    location_means: Tensor
    """The location network's means after all glimpses but the last, (T - 1, N, 2)."""


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


def make_model(
    config: RamConfig, env: GlimpseVectorEnv, glimpse_network: OwnGlimpseNetwork = None, core: OwnCore = None
) -> RecurrentAttentionModel:
    """A fresh network for an environment, on its device, with weights drawn from the run's seed.

    Errors and the parts of your own are those of `RecurrentAttentionModel`.
    """
    shape = GlimpseShape(env.config.num_scales, env.num_channels, env.config.patch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return RecurrentAttentionModel(shape, env.num_classes, config, glimpse_network, core).to(env.device)


def with_custom_parts(config: RamConfig, glimpse_network: object, core: object) -> RamConfig:
    """The configuration that says "custom" for each part that is given.

    Raises:
        ValueError: it said so already, and the part is not given.
    """
    given = {"glimpse_network": glimpse_network, "core": core}
    for name, part in given.items():
        if part is None and getattr(config, name) == "custom":
            raise ValueError(f"{name} is 'custom', a module from Python: it must be passed as {name}, got None")
    custom: dict[str, Any] = {name: "custom" for name, part in given.items() if part is not None}
    return dataclasses.replace(config, **custom)


def _own(name: str, part: Any, argument: Any) -> Any:
    """The user's module, made by what makes it."""
    module = part if isinstance(part, nn.Module) else part(argument)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} must be a torch.nn.Module or a function that makes one, got {module!r}")
    return module


@torch.no_grad()
def _width(name: str, call: Callable[[], Any]) -> int:
    """The width of the rows that a user's module gives for two episodes."""
    rows = call()
    if isinstance(rows, Tensor) and rows.ndim == 2 and len(rows) == 2:
        return rows.shape[1]
    got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
    raise ValueError(f"{name} must give a tensor (N, width), got {got} for N = 2; see agents/networks.py")
