"""Glimpse networks and cores: what they compute, and that RAM learns with each of them and with a user's own."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from agents.cli import main
from agents.networks import CORES, GLIMPSE_NETWORKS, ConvGlimpseNetwork, GlimpseShape, State
from agents.ram.config import RamConfig, preset
from agents.ram.network import Recorded, RecurrentAttentionModel, make_model
from agents.ram.training import train
from agents.ram.unrolled import Unrolled, unroll
from agents.registry import TrainedRun, load_run, read_config
from agents.training.environment import make_blank_env, make_env
from agents.training.learner import Progress
from agents.training.run_folder import RunFolder
from ram_gym import evaluate

SHAPE = GlimpseShape(num_scales=2, num_channels=3, patch_size=6)


def glimpses(num: int, shape: GlimpseShape = SHAPE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num)
    side = shape.patch_size
    pixels = torch.rand(num, shape.num_scales * shape.num_channels, side, side, generator=generator)
    return pixels, torch.rand(num, 2, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", GLIMPSE_NETWORKS)
def test_a_glimpse_network_sees_each_glimpse_and_its_place_alone(name: str) -> None:
    torch.manual_seed(0)
    network = GLIMPSE_NETWORKS[name](SHAPE, 8, 24)
    glimpse, location = glimpses(5)
    features = network(glimpse, location)
    assert features.shape == (5, 24)
    alone = torch.cat([network(glimpse[i : i + 1], location[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-6)
    assert (network(glimpse.flip(0), location) != features).any(1).sum() >= 4
    assert (network(glimpse, location.flip(0)) != features).any(1).sum() >= 4
    sum_of_squares = network(glimpse, location).square().sum()
    sum_of_squares.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


@pytest.mark.parametrize("patch_size", [1, 2, 5, 8, 12, 16])
def test_convolutions_take_patches_of_any_size(patch_size: int) -> None:
    shape = GlimpseShape(1, 1, patch_size)
    assert ConvGlimpseNetwork(shape, 8, 10)(*glimpses(2, shape)).shape == (2, 10)


def by_hand(name: str, weights: dict[str, Tensor], features: Tensor, state: State) -> State:
    """One step of a core, written out from its definition."""
    from_features = features @ weights["weight_ih"].T + weights["bias_ih"]
    from_state = state[0] @ weights["weight_hh"].T + weights["bias_hh"]
    if name == "rnn":
        return ((from_features + from_state).clamp(min=0),)
    if name == "lstm":
        i, f, g, o = (from_features + from_state).chunk(4, 1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    (r_x, z_x, n_x), (r_h, z_h, n_h) = from_features.chunk(3, 1), from_state.chunk(3, 1)
    update = (z_x + z_h).sigmoid()
    new = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - update) * new + update * state[0],)


@pytest.mark.parametrize("name", CORES)
def test_a_core_steps_as_its_definition_says(name: str) -> None:
    torch.manual_seed(0)
    core: Any = CORES[name](7, 4)
    state = expected = core.initial_state(3)
    assert all(part.shape == (3, 4) and not part.any() for part in state)
    for _ in range(3):
        features = torch.randn(3, 7)
        state, expected = core.step(features, state), by_hand(name, core.state_dict(), features, expected)
        assert len(state) == len(expected)
        for ours, theirs in zip(state, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert state[0].abs().sum() > 0


NAMES = {
    *("glimpse_network.what.weight", "glimpse_network.where.weight", "glimpse_network.combine.weight"),
    *("core.weight_ih", "core.weight_hh", "core.bias_ih", "core.bias_hh"),
    *("locator.0.weight", "locator.2.weight", "classifier.weight", "baseline.weight"),
}


def test_the_names_are_those_of_the_tables() -> None:
    names = {field.name: get_args(get_type_hints(RamConfig)[field.name]) for field in dataclasses.fields(RamConfig)}
    assert names["glimpse_network"] == (*GLIMPSE_NETWORKS, "custom")
    assert names["core"] == (*CORES, "custom")


@pytest.mark.parametrize("core", CORES)
def test_stored_weights_keep_their_names(core: Any) -> None:
    assert set(RecurrentAttentionModel(SHAPE, 10, RamConfig(core=core)).state_dict()) > NAMES


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("glimpse_network", GLIMPSE_NETWORKS)
def test_the_backward_pass_is_chosen_by_the_networks(glimpse_network: Any, core: Any) -> None:
    config = RamConfig(glimpse_network=glimpse_network, core=core)
    is_written_out = glimpse_network == "mlp" and core != "gru"
    assert config.resolve().backpropagation == ("batched" if is_written_out else "autograd")
    body = unroll(RecurrentAttentionModel(SHAPE, 10, config), 4, 3)
    assert type(body) is (Unrolled if is_written_out else Recorded)
    assert dataclasses.replace(config, backpropagation="autograd").resolve().backpropagation == "autograd"
    if not is_written_out:
        wanted = f"'auto' or 'autograd' for glimpse_network '{glimpse_network}' with core '{core}', got 'batched'"
        with pytest.raises(ValueError, match=wanted):
            dataclasses.replace(config, backpropagation="batched")


class OwnGlimpseNetwork(nn.Module):
    """The mean of the glimpse's pixels, scale by scale, and its place."""

    def __init__(self, shape: GlimpseShape, num_features: int = 20) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.num_values + 2, num_features)

    def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
        return self.linear(torch.cat((glimpse.flatten(1), location), 1)).tanh()


class OwnCore(nn.Module):
    """Remembers the largest of each feature; its output is narrower."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features, self.linear = num_features, nn.Linear(num_features, 12)

    def initial_state(self, num_episodes: int) -> State:
        return self.linear.bias.new_zeros(num_episodes, 12), self.linear.bias.new_zeros(num_episodes, self.num_features)

    def step(self, features: Tensor, state: State) -> State:
        largest = torch.maximum(features, state[1])
        return self.linear(largest).tanh(), largest


def test_modules_of_the_users_own_take_the_places_of_the_named_ones() -> None:
    config = RamConfig(hidden_size=32, locator_hidden_size=0)
    model = RecurrentAttentionModel(SHAPE, 10, config, OwnGlimpseNetwork, OwnCore)
    assert (model.config.glimpse_network, model.config.core) == ("custom", "custom")
    assert model.config.resolve().backpropagation == "autograd"
    assert (model.core.num_features, model.locator[0].in_features, model.classifier.in_features) == (20, 12, 12)
    glimpse, location = glimpses(4)
    observation = {"glimpse": glimpse, "location": location}
    state = model.look(observation, model.look(observation, model.initial_state(4)))
    assert model.classify(state[0]).shape == (4, 10)
    network = OwnGlimpseNetwork(SHAPE)
    assert RecurrentAttentionModel(SHAPE, 10, config, network).glimpse_network is network
    mixed = RecurrentAttentionModel(SHAPE, 10, config, core=lambda num_features: OwnCore(num_features))
    assert (mixed.config.glimpse_network, mixed.core.num_features) == ("mlp", 32)


def learn_digits(**fields: Any) -> RamConfig:
    few = {"epochs": 2, "validate_every": 1, "hidden_size": 16, "glimpse_hidden_size": 8, "batch_size": 256}
    return dataclasses.replace(preset("digits"), **{**few, **fields})


@pytest.mark.parametrize("fields", [{"glimpse_network": "conv", "core": "lstm"}, {"core": "gru"}])
def test_named_networks_learn_and_are_loaded(fields: dict[str, Any], tmp_path: Path) -> None:
    config, folder = learn_digits(**fields), RunFolder(tmp_path)
    result = train(config, folder)
    run = load_run(folder)
    assert run.config == dataclasses.replace(config, backpropagation="autograd")
    assert error_of(run) == pytest.approx(result.validation_error_percent)
    first = make_model(config, make_blank_env(config, run.data)).state_dict()
    for name, weight in run.model.state_dict().items():
        assert not weight.equal(first[name]), name


def error_of(run: TrainedRun) -> float:
    env = make_env(run.config.env_config.replace(split="validation"), "cpu")
    return evaluate(run.make_policy(env), env).error_percent


def test_validation_measures_modules_in_evaluation_mode() -> None:
    dropout = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.9))
    modes = []

    class Forgetful(nn.Module):
        def __init__(self, shape: GlimpseShape) -> None:
            super().__init__()
            self.layers = dropout

        def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
            del location
            modes.append((torch.is_grad_enabled(), self.layers[1].training))
            return self.layers(glimpse.flatten(1))

    train(learn_digits(epochs=1), glimpse_network=Forgetful)
    assert set(modes[1:]) == {(True, True), (False, False)}


def test_a_users_own_modules_are_trained_resumed_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.training.loop.SECONDS_BETWEEN_REPORTS", 0.0)
    own: dict[str, Any] = {"glimpse_network": OwnGlimpseNetwork, "core": OwnCore}
    config, unbroken, broken = learn_digits(), RunFolder(tmp_path / "unbroken"), RunFolder(tmp_path / "broken")
    result = train(config, unbroken, **own)
    stored = unbroken.read_about()["config"]
    assert [stored[name] for name in ("glimpse_network", "core", "backpropagation")] == ["custom", "custom", "autograd"]
    run = load_run(unbroken, **own)
    assert error_of(run) == pytest.approx(result.validation_error_percent)
    weights, first = run.model.state_dict(), make_model(config, make_blank_env(config, run.data), **own).state_dict()
    assert not any(weight.equal(first[name]) for name, weight in weights.items())

    def interrupt(progress: Progress) -> None:
        signal.raise_signal(signal.SIGTERM)

    assert not train(config, broken, on_progress=interrupt, **own).is_complete
    with pytest.raises(ValueError, match="glimpse_network is 'custom', a module from Python: it must be passed"):
        train(read_config(broken), broken, resume=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="core is 'custom', a module from Python: it must be passed as core, got None"):
        load_run(unbroken, glimpse_network=OwnGlimpseNetwork)
    assert train(read_config(broken), broken, resume=True, **own).is_complete  # type: ignore[arg-type]
    resumed = load_run(broken, **own).model.state_dict()
    assert all(weight.equal(resumed[name]) for name, weight in weights.items())


def test_the_command_line_has_no_module_to_take(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", "ram", "--task", "digits", "--core", "custom", "--out", str(tmp_path / "run")])
    assert "core is 'custom', a module from Python" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, glimpse: Tensor, location: Tensor) -> Any:
        del glimpse, location
        return self.value


class Scalar(OwnCore):
    def step(self, features: Tensor, state: State) -> State:
        return (super().step(features, state)[0].sum(1),)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "glimpse_network is 'custom', a module from Python: it must be passed as glimpse_network, got None"),
        ({"glimpse_network": lambda shape: 3}, "glimpse_network must be a torch.nn.Module or .*, got 3"),
        (
            {"glimpse_network": Returns(torch.zeros(3, 5))},
            r"must give a tensor .* got \(3, 5\) for N = 2",
        ),
        ({"glimpse_network": Returns(None)}, "glimpse_network must give a tensor .* got NoneType for N = 2"),
        ({"glimpse_network": OwnGlimpseNetwork, "core": nn.Identity()}, "core must have a method initial_state"),
        ({"glimpse_network": OwnGlimpseNetwork, "core": Scalar}, r"core must give a tensor .* got \(2,\) for N = 2"),
    ],
)
def test_what_does_not_fit_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentAttentionModel(SHAPE, 10, RamConfig(glimpse_network="custom"), **parts)
