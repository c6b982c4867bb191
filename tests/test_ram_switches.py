"""Switches that change speed and no result: compile, cuda_graph, precision; and that no update waits for a GPU."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import pytest
import torch

from agents.networks import GlimpseShape
from agents.ram import network
from agents.ram.config import RamConfig, preset
from agents.ram.network import RecurrentAttentionModel
from agents.ram.training import RamLearner
from agents.ram.unrolled import unroll
from agents.training.environment import make_env
from agents.training.graph import WARM_UP_RUNS
from agents.training.loop import Trainer
from ram_gym import get_task

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU: nothing is recorded or waited for")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="NEEDS A C++ COMPILER: torch.compile cannot be tested",
)
SMALL = {"hidden_size": 16, "glimpse_hidden_size": 8, "locator_hidden_size": 8, "batch_size": 32}
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
CORES: list[dict[str, Any]] = [{}, {"core": "lstm", "rollouts": 2, "baseline": "leave-one-out", "weight_average": 0.9}]


def digits(**fields: Any) -> RamConfig:
    return dataclasses.replace(preset("digits"), **{**SMALL, **fields})


def after_updates(config: RamConfig, updates: int = 4) -> dict[str, torch.Tensor]:
    """All that updates change."""
    trainer = Trainer(RamLearner, config)
    for _ in range(updates):
        trainer.update()
    found = {**trainer.model.state_dict(), "sums": trainer.sums, "generator": trainer.generator.get_state()}
    if trainer.average is not None:
        found |= {f"average.{key}": value for key, value in trainer.average.state_dict().items()}
    return {key: value.detach().clone() for key, value in found.items()}


def assert_equal_but_for_rounding(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["generator"], theirs["generator"])
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: key + text)


@needs_compiler
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backpropagation", "body"), [("autograd", ["look", "locate"]), ("batched", [])])
def test_compile_changes_nothing_beyond_rounding(
    device: str, backpropagation: str, body: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = digits(device=device, core="lstm", backpropagation=backpropagation)  # type: ignore[arg-type]
    compiled: list[str] = []
    original = torch.compile

    def watched(function: Any, **options: Any) -> Any:
        compiled.append(function.__name__)
        return original(function, **options)

    monkeypatch.setattr(torch, "compile", watched)
    plain = after_updates(config)
    assert not compiled
    assert_equal_but_for_rounding(after_updates(dataclasses.replace(config, compile=True)), plain)
    assert compiled == ["classify", "estimate", *body, "rollout_losses"]


@pytest.mark.parametrize(
    "fields", [*CORES, {"locator": "random"}, {"env_config": get_task("digits").config.replace(num_glimpses=1)}]
)
@pytest.mark.parametrize("into_core", [False, True])
def test_batched_backpropagation_changes_nothing_beyond_rounding(fields: dict, into_core: bool) -> None:
    config = digits(early_weight=0.5, locator_gradient_into_core=into_core, **fields)
    plain = after_updates(dataclasses.replace(config, backpropagation="autograd"))
    assert_equal_but_for_rounding(after_updates(config), plain)


@pytest.mark.parametrize("core", ["rnn", "lstm"])
@pytest.mark.parametrize("reads", ["all", "last", "before", "location_means"])
@pytest.mark.parametrize("locator", [0, 128])
@pytest.mark.parametrize("into_core", [False, True])
def test_batched_gradients_are_those_of_autograd(core: str, reads: str, locator: int, into_core: bool) -> None:
    """Of a function of the outputs that no loss is: the relative error of each weight's gradient."""
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for precision, backpropagation in (("float32", "autograd"), ("float32", "batched"), ("bfloat16", "batched")):
        config = RamConfig(
            core=core,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            backpropagation=backpropagation,  # type: ignore[arg-type]
            locator_hidden_size=locator,
            locator_gradient_into_core=into_core,
        )
        torch.manual_seed(0)
        model = RecurrentAttentionModel(GlimpseShape(1, 1, 8), 10, config)
        body = unroll(model, 40, 5)
        located = []
        for step in range(5):
            body.look({"glimpse": torch.rand(40, 1, 8, 8), "location": torch.rand(40, 2) * 2 - 1})
            if step < 4:
                located.append(body.locate())
        outputs = body.outputs()
        assert outputs.before.shape == (4, 40, 256)
        torch.testing.assert_close(outputs.location_means, torch.stack(located), rtol=1e-6, atol=1e-6)
        assert not any(mean.requires_grad for mean in located)
        read = outputs if reads == "all" else [getattr(outputs, reads)]
        sum((output * torch.randn(output.shape)).sum() for output in read).backward()  # type: ignore[union-attr]
        parts = (model.glimpse_network, model.core, model.locator)
        found = {f"{i} {n}": p.grad for i, part in enumerate(parts) for n, p in part.named_parameters()}
        gradients[f"{precision} {backpropagation}"] = {k: g for k, g in found.items() if g is not None and g.any()}
    expected = gradients.pop("float32 autograd")
    of_locator = 2 * (1 + bool(locator)) if reads in ("all", "location_means") else 0
    assert len(expected) == of_locator + (0 if reads == "location_means" and not into_core else 10)
    for kind, most in (("float32 batched", 1e-5), ("bfloat16 batched", 0.15)):
        assert gradients[kind].keys() == expected.keys()
        for name, gradient in gradients[kind].items():
            assert (gradient - expected[name]).norm() < most * expected[name].norm(), (kind, name)
    with pytest.raises(ValueError, match="backpropagation must be 'auto', 'batched' or 'autograd', got 'none'"):
        RamConfig(backpropagation="none")  # type: ignore[arg-type]


@needs_gpu
@pytest.mark.parametrize("fields", CORES)
@pytest.mark.parametrize("compile", [False, True])
def test_a_cuda_graph_changes_nothing_beyond_rounding(fields: dict, compile: bool) -> None:
    config = digits(device="cuda", compile=compile, **fields)
    updates = WARM_UP_RUNS + 5
    plain = after_updates(config, updates)
    assert_equal_but_for_rounding(after_updates(dataclasses.replace(config, cuda_graph=True), updates), plain)


def test_a_cuda_graph_is_refused_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="cuda_graph needs device 'cuda', got 'cpu'"):
        Trainer(RamLearner, digits(cuda_graph=True))


@needs_gpu
@pytest.mark.parametrize("fields", [*CORES, {"locator": "random"}, {"precision": "bfloat16"}])
def test_no_update_waits_for_the_gpu(fields: dict) -> None:
    trainer = Trainer(RamLearner, digits(device="cuda", **fields))
    for _ in range(3):
        trainer.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fields", [*CORES, {"precision": "bfloat16"}])
def test_a_rollout_on_a_gpu_would_neither_wait_nor_mix_devices(
    fields: dict, fake_tensors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no GPU, fake tensors stand in for it: reading a number, or mixing devices, is an error."""
    config = digits(device="cuda", **fields)
    env = make_env(config.env_config, "cuda", config.batch_size * config.rollouts)
    env._deferred.report = lambda: None  # type: ignore[method-assign]  # reads a flag in pinned memory
    with torch.device("cuda"):
        model = RecurrentAttentionModel(GlimpseShape(1, 1, 8), 10, config)
    monkeypatch.setattr("agents.ram.training.make_model", lambda *_: model)  # fake tensors cannot be moved
    learner = RamLearner(config, env, None)  # type: ignore[arg-type]  # a CUDA generator needs a GPU
    index = torch.zeros(config.batch_size, dtype=torch.int64, device="cuda")
    for _ in range(2):
        loss, sums = learner(index, torch.zeros_like(index[0]), torch.ones((), device="cuda"))
        assert (loss.device.type, sums.device.type, sums.shape) == ("cuda", "cuda", (5,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("core", ["rnn", "lstm"])
def test_bfloat16_stays_in_the_network_and_is_close(device: str, core: str) -> None:
    torch.manual_seed(0)
    config = RamConfig(core=core)  # type: ignore[arg-type]
    plain = RecurrentAttentionModel(GlimpseShape(1, 1, 8), 10, config).to(device)
    config = dataclasses.replace(config, precision="bfloat16")
    rounded = RecurrentAttentionModel(GlimpseShape(1, 1, 8), 10, config).to(device)
    rounded.load_state_dict(plain.state_dict())
    seen: list[torch.dtype] = []
    rounded.glimpse_network.combine.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    observation = {"glimpse": torch.rand(50, 1, 8, 8, device=device), "location": torch.rand(50, 2, device=device)}
    ours, theirs = (model.initial_state(50) for model in (rounded, plain))
    for _ in range(6):
        ours, theirs = rounded.look(observation, ours), plain.look(observation, theirs)
    assert set(seen) == {torch.bfloat16}
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype == torch.float32
        error = (found - expected).norm() / expected.norm()
        assert 0 < error < 0.02
    for head in ("locate", "classify", "estimate"):
        assert getattr(rounded, head)(ours[0]).dtype == torch.float32
    rounded.classify(ours[0]).sum().backward()
    assert {p.grad.dtype for p in rounded.core.parameters() if p.grad is not None} == {torch.float32}
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'float16'"):
        RamConfig(precision="float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("core", ["rnn", "lstm"])
def test_without_bfloat16_instructions_the_same_values_come_of_rounded_float32(
    core: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = digits(core=core, precision="bfloat16", hidden_size=64, glimpse_hidden_size=32, locator_hidden_size=32)
    model = RecurrentAttentionModel(GlimpseShape(1, 1, 8), 10, config)
    generator = torch.Generator().manual_seed(0)
    ours = theirs = model.initial_state(200)
    for _ in range(3):
        observation = {
            "glimpse": torch.rand((200, 1, 8, 8), generator=generator),
            "location": torch.rand((200, 2), generator=generator) * 2 - 1,
        }
        with torch.no_grad():
            monkeypatch.setattr(network, "has_bfloat16", lambda device: True)
            theirs = model.look(observation, theirs)
            location = model.locate(theirs[0])
            monkeypatch.setattr(network, "has_bfloat16", lambda device: False)
            ours = model.look(observation, ours)
            assert torch.equal(model.locate(theirs[0]).bfloat16(), location.bfloat16())
        for mine, autocast in zip(ours, theirs, strict=True):
            # Sums in another order may round to the neighbour now and then.
            torch.testing.assert_close(mine, autocast, rtol=2**-7, atol=2**-7)
            assert (mine != autocast).float().mean() < 0.02
            assert autocast.std() > 0.01
