"""Training the native agent, its limit, a plain training loop beside it, and where an update's time goes."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.ram.config import RamConfig, preset
from agents.ram.training import RamLearner
from agents.training.loop import Trainer
from benchmarks.cases import Case, Plan
from benchmarks.peers import PlainTraining
from benchmarks.timing import measure, synchronizer

PEER_BATCH = 32
UPDATES_BEFORE = 5
"""Made before the warm-up: the fourth records the CUDA graph."""
PROFILED_UPDATES = 5
PROFILED_OPERATIONS = 25
LIMIT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product says how quickly a device multiplies."""
SECONDS_OF_PRODUCT = 0.02
"""The side is smaller where a product takes longer: without bfloat16 instructions a CPU needs 15 s for one of 2048."""


def _config(case: Case, plan: Plan) -> RamConfig:
    config = dataclasses.replace(
        preset(case.task).moved(case.device, plan.data_root),
        rollouts=1,
        batch_size=case.batch,
        distorted_copies=0,  # made before training begins; an update reads as many images with and without them
    )
    words = case.variant.split()
    precision = "bfloat16" if "bfloat16" in words else config.precision
    return dataclasses.replace(config, precision=precision, cuda_graph="graph" in words)


def _update(trainer: Trainer) -> None:
    """An update; passes follow each other without validation."""
    if trainer.update_in_epoch == trainer.updates_per_epoch:
        trainer.epoch, trainer.update_in_epoch = trainer.epoch + 1, 0
    trainer.update()


def native(case: Case, plan: Plan) -> dict[str, Any]:
    """Images a second that the native agent learns from, one rollout each.

    Variants: "bfloat16", with that precision; "graph", with the update as one CUDA graph; or both.
    """
    trainer = Trainer(RamLearner, _config(case, plan))
    for _ in range(UPDATES_BEFORE):
        _update(trainer)
    return measure(lambda: _update(trainer), case.batch, "images", plan.settings, synchronizer(case.device))


def plain(case: Case, plan: Plan) -> dict[str, Any]:
    """Images a second of the stand-in; variant "as published" or "quicker", see `PlainTraining`."""
    training = PlainTraining(case.config(plan), case.device, case.batch, case.variant == "quicker")
    return measure(training.update, case.batch, "images", plan.settings, synchronizer(case.device))


def limit(case: Case, plan: Plan) -> dict[str, Any]:
    """Images a second if an update were but its matrix products, and each as quick as that of two large squares.

    The products of an update are counted as it runs. Variant "bfloat16": with that precision.
    """
    config = _config(case, plan)
    trainer = Trainer(RamLearner, config)
    with FlopCounterMode(display=False) as counter:
        trainer.update()
    side = _side_of_product(case.device, getattr(torch, config.precision))
    matrix = torch.rand(side, side, device=case.device).to(getattr(torch, config.precision))
    images = case.batch * 2 * side**3 / counter.get_total_flops()
    found = measure(lambda: matrix @ matrix, images, "images", plan.settings, synchronizer(case.device))
    return {**found, "operations_of_update": counter.get_total_flops(), "side": side}


def _side_of_product(device: str, dtype: torch.dtype) -> int:
    """The side of squares whose product is large, and takes no seconds where a processor lacks the precision."""
    side, largest = 256, LIMIT_SIDE[torch.device(device).type]
    if torch.device(device).type == "cuda":
        return largest
    while side < largest:
        matrix = torch.rand(side, side).to(dtype)
        start = time.perf_counter()
        matrix @ matrix
        if time.perf_counter() - start > SECONDS_OF_PRODUCT:
            break
        side *= 2
    return side


def profile(case: Case, plan: Plan) -> dict[str, Any]:
    """The operations that an update of the native agent spends its time in, from torch.profiler.

    Returns:
        `operations`: those with the most time of their own, each with its name, calls and milliseconds an update, and
        its share of the time of all operations; `updates` that were recorded. On a GPU the operations are its kernels
        and copies.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    trainer = Trainer(RamLearner, _config(case, plan))
    wait = synchronizer(case.device) or (lambda: None)
    for _ in range(UPDATES_BEFORE):
        _update(trainer)
    wait()
    is_gpu = case.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with record(activities=activities) as recorded:
        for _ in range(PROFILED_UPDATES):
            _update(trainer)
        wait()
    times = [
        (event.key, event.count, event.self_device_time_total if is_gpu else event.self_cpu_time_total)
        for event in recorded.key_averages()
        if not is_gpu or (event.device_type == DeviceType.CUDA and not event.is_user_annotation)  # each time once
    ]
    total = max(sum(time for _, _, time in times), 1e-9)
    times.sort(key=lambda entry: -entry[2])
    operations = [
        {
            "name": name,
            "calls": calls / PROFILED_UPDATES,
            "milliseconds": time / 1000 / PROFILED_UPDATES,
            "share": time / total,
        }
        for name, calls, time in times[:PROFILED_OPERATIONS]
    ]
    return {"updates": PROFILED_UPDATES, "operations": operations}
