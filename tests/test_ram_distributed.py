"""Training on several ranks: two processes on the CPU against one."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from agents.ram.config import RamConfig, preset
from agents.ram.training import RamLearner, train
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from agents.training.loop import Trainer
from agents.training.ranks import ALONE, Ranks, join_ranks
from agents.training.run_folder import RunFolder
from ram_gym import get_task

ROOT = Path(__file__).parents[1]
SMALL = {"hidden_size": 16, "glimpse_hidden_size": 8, "locator_hidden_size": 8, "validate_every": 1}
WIDE = {"hidden_size": 512, "glimpse_hidden_size": 256, "locator_hidden_size": 256}  # more than the usual first bucket
VARIANTS = {
    "learned": {},
    "rollouts": {"rollouts": 3, "baseline": "leave-one-out", "core": "lstm", "weight_average": 0.9},
    "random": {"locator": "random"},
    "one glimpse": {"env_config": get_task("digits").config.replace(num_glimpses=1)},
}
UPDATES = 6


def digits(**fields: Any) -> RamConfig:
    return dataclasses.replace(preset("digits"), **{**SMALL, "batch_size": 32, "epochs": 2, **fields})


def run_updates(config: RamConfig, ranks: Ranks) -> dict[str, Any]:
    """Some updates: the scenes that this rank saw, and how many numbers were exchanged in each."""
    trainer = Trainer(RamLearner, config, ranks=ranks)
    seen: list[torch.Tensor] = []
    exchanges: list[list[int]] = []
    reset = trainer.env.reset

    def watched(**arguments: Any) -> Any:
        seen.append(arguments["options"]["index"].clone())
        return reset(**arguments)

    def exchange(state: Any, bucket):  # type: ignore[no-untyped-def]  # DDP refuses other annotations
        exchanges[-1].append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    trainer.env.reset = watched  # type: ignore[method-assign]
    if isinstance(trainer._shared_learner, DistributedDataParallel):
        trainer._shared_learner.register_comm_hook(None, exchange)
    for _ in range(UPDATES):
        exchanges.append([])
        trainer.update()
    return {
        "weights": {key: value.detach().clone() for key, value in trainer.model.state_dict().items()},
        "averaged": [value.detach().clone() for value in trainer.evaluated_model.parameters()],
        "sums": ranks.mean(trainer.sums),
        "generator": trainer.generator.get_state(),
        "seen": seen,
        "exchanges": exchanges,
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def join(rank: int, size: int, port: int, device: str = "cpu") -> AbstractContextManager[Ranks]:
    """The ranks, as torchrun's variables would tell of them."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    os.environ["LOCAL_RANK"] = str(rank)
    return join_ranks(device)


def start(function: Callable[..., None], size: int, *arguments: Any) -> None:
    """Runs function(rank, size, port, *arguments) in `size` processes and waits for them."""
    multiprocessing.start_processes(function, (size, free_port(), *arguments), nprocs=size, start_method="spawn")


def work(rank: int, size: int, port: int, path: Path) -> None:
    """What each of two processes does."""
    with join(rank, size, port) as ranks:
        found: dict[str, Any] = {name: run_updates(digits(**more), ranks) for name, more in VARIANTS.items()}
        found["wide"] = run_updates(digits(**WIDE), ranks)
        train(digits(**VARIANTS["rollouts"]), RunFolder(path / "by two"), ranks=ranks)
        stop_after(RunFolder(path / "two, then one"), digits(), ranks)
        stop_after(RunFolder(path / "two, then four"), digits(**VARIANTS["rollouts"]), ranks)
        train(digits(), RunFolder(path / "one, then two"), resume=True, ranks=ranks)
        found["any"] = ranks.any(rank == 1, False, True)
        found["by first"] = ranks.by_first(lambda: 0.1 if rank == 0 else 0.2)
        for failing in (0, 1):
            try:
                with ranks.together():
                    if rank == failing:
                        raise KeyError("mine")
            except (KeyError, SystemExit) as error:
                found[f"failing {failing}"] = (type(error).__name__, error.args)
        try:
            train(digits(batch_size=33), ranks=ranks)
        except (ValueError, SystemExit) as error:
            found["indivisible"] = (type(error).__name__, error.args)
        torch.save(found, path / f"{rank}.pt")
    (path / f"{rank} went on").touch()


def resume(rank: int, size: int, port: int, path: Path, config: RamConfig) -> None:
    with join(rank, size, port) as ranks:
        train(config, RunFolder(path), resume=True, ranks=ranks)


def update_on_gpus(rank: int, size: int, port: int, path: Path) -> None:
    with join(rank, size, port, "cuda") as ranks:
        torch.save(run_updates(digits(device="cuda"), ranks), path / f"{rank}.pt")


def stop_after(folder: RunFolder, config: RamConfig, ranks: Ranks = ALONE) -> None:
    """A run that ends in the middle of its second pass, as a Ctrl-C would end it."""
    if ranks.rank == 0:
        folder.create("ram", config, ranks=ranks.size)
    trainer = Trainer(RamLearner, config, folder, ranks)
    for _ in range(trainer.updates_per_epoch):
        trainer.update()
    trainer.end_epoch()
    for _ in range(5):
        trainer.update()
    save_checkpoint(trainer)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two ranks found, and the folder that their runs are in."""
    path = tmp_path_factory.mktemp("ranks")
    stop_after(RunFolder(path / "one, then two"), digits())
    start(work, 2, path)
    return path, [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_give_the_numbers_of_one(two: tuple, variant: str) -> None:
    _, (first, second) = two
    alone = run_updates(digits(**VARIANTS[variant]), ALONE)
    for found in (first[variant], second[variant]):
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["averaged"], alone["averaged"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["sums"], alone["sums"], rtol=1e-5, atol=1e-6)
        assert torch.equal(found["generator"], alone["generator"])
    for key, value in first[variant]["weights"].items():
        assert torch.equal(value, second[variant]["weights"][key]), "the ranks drift apart"
    fresh = Trainer(RamLearner, digits(**VARIANTS[variant])).model.state_dict()
    assert not torch.allclose(fresh["core.weight_ih"], alone["weights"]["core.weight_ih"], atol=1e-4), "nothing moved"


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_see_disjoint_scenes_that_make_up_the_batch(two: tuple, variant: str) -> None:
    _, (first, second) = two
    alone = run_updates(digits(**VARIANTS[variant]), ALONE)
    rollouts = VARIANTS[variant].get("rollouts", 1)
    for ours, theirs, whole in zip(first[variant]["seen"], second[variant]["seen"], alone["seen"], strict=True):
        assert len(ours) == len(theirs) == 16 * rollouts
        assert not set(ours.tolist()) & set(theirs.tolist())
        assert torch.equal(torch.cat((ours, theirs)), whole)


@pytest.mark.parametrize("variant", [*VARIANTS, "wide"])
def test_gradients_are_exchanged_once_an_update(two: tuple, variant: str) -> None:
    _, found = two
    for rank in found:
        assert rank[variant]["exchanges"] == [[rank[variant]["trained"]]] * UPDATES
    assert found[0]["wide"]["trained"] * 4 > 2**20, "this would fit into the usual first bucket"


@pytest.mark.parametrize("name", ["by two", "two, then one", "one, then two", "two, then four"])
def test_a_checkpoint_of_any_number_of_ranks_resumes_on_any_other(two: tuple, tmp_path: Path, name: str) -> None:
    folder = RunFolder(two[0] / name)
    config = digits(**VARIANTS["rollouts"]) if name in ("by two", "two, then four") else digits()
    if name.startswith("two, then"):
        assert folder.read_json("config.json")["hardware"]["ranks"] == 2
        assert [row["epoch"] for row in folder.read_metrics()] == [1]
    if name == "two, then one":
        train(config, folder, resume=True)
    elif name == "two, then four":
        start(resume, 4, folder.path, config)
    alone = RunFolder(tmp_path / "alone")
    train(config, alone)
    rows, expected = folder.read_metrics(), alone.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"train_seconds"}:
            # An image that lies between two classes may be judged otherwise after rounding.
            tolerance = 100 / 143 + 1e-9 if key.endswith("percent") else 1e-4
            assert row[key] == pytest.approx(other[key], rel=1e-4, abs=tolerance), key
    ours, theirs = (f.read_tensors("last.safetensors") for f in (folder, alone))
    assert ours[0].keys() == theirs[0].keys()
    for key in ours[0]:
        torch.testing.assert_close(ours[0][key], theirs[0][key], rtol=1e-3, atol=1e-5)
    assert list(folder.path.glob("events.out.tfevents.*"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NEEDS TWO GPUS: gradients travel by NCCL between them")
def test_two_gpus_give_the_numbers_of_one(tmp_path: Path) -> None:
    start(update_on_gpus, 2, tmp_path)
    alone = run_updates(digits(device="cuda"), ALONE)["weights"]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", map_location="cuda:0")["weights"]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)


def test_what_ranks_tell_each_other(two: tuple) -> None:
    for rank, found in enumerate(two[1]):
        assert found["any"] == [True, False, True]
        assert found["by first"] == 0.1
        for failing in (0, 1):
            expected = ("KeyError", ("mine",)) if rank == failing else ("SystemExit", (2,))
            assert found[f"failing {failing}"] == expected
    message = "batch_size must be a multiple of 2, the number of ranks, got 33"
    assert [found["indivisible"] for found in two[1]] == [("ValueError", (message,)), ("SystemExit", (2,))]


def test_shares_and_devices_by_hand() -> None:
    third = Ranks(rank=2, size=4, local_rank=1)
    assert third.device("cuda") == "cuda:1"
    assert third.device("cpu") == "cpu"
    assert ALONE.device("cuda:3") == "cuda:3"
    with pytest.raises(ValueError, match="cuda:3"):
        third.device("cuda:3")
    assert third.share(12, "batch_size") == 3
    whole = torch.randn((12, 2), generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(third.draw(torch.randn, 3, generator, torch.device("cpu")), whole[6:9])


def test_the_first_rank_alone_goes_on_after_them_all(two: tuple) -> None:
    assert [path.name for path in two[0].glob("* went on")] == ["0 went on"]


def test_torchrun_exits_with_0_when_the_run_is_complete(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", f"--master-port={free_port()}"]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    arguments = ["--task", "digits", *options, "--epochs", "1", "--batch-size", "96", "--out", str(tmp_path / "run")]
    command = [*torchrun, "-m", "agents", "train", "ram", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("Done: validation error") == 1, ended.stderr
    assert RunFolder(tmp_path / "run").read_json("results.json")["validation"]["epochs"] == 1


def test_torchrun_trains_saves_when_stopped_and_goes_on(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    arguments = ["--task", "digits", *options, "--epochs", "200", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "agents", "train", "ram", *arguments]
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 600
        while len(folder.read_metrics()) < 2:
            assert process.poll() is None
            assert time.monotonic() < end, "training did not get that far in ten minutes"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors.count("saved. To resume: python -m agents train ram --resume") == 1, errors
    about = folder.read_json("config.json")
    assert about["command"][:5] == ["torchrun", "--nproc-per-node=2", "-m", "agents", "train"]
    assert about["hardware"]["ranks"] == 2
    epochs = len(folder.read_metrics())
    assert epochs < 200, "it was over before it was stopped"
    trainer = Trainer(RamLearner, RamConfig.from_dict(about["config"]), folder)
    load_checkpoint(trainer)
    assert trainer.epoch == epochs
    trainer.update()
