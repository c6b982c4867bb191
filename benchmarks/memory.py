"""Memory: the peak that a vector environment takes, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Plan, SkippedError
from benchmarks.stepping import draw_actions
from benchmarks.timing import meminfo
from ram_gym import GlimpseVectorEnv, load_dataset

STATUS = "/proc/self/status"


def peak(case: Case, plan: Plan) -> dict[str, Any]:
    """The peak of making a vector environment and playing two episodes, NEXT_STEP, output "torch".

    Returns:
        On the CPU `peak_bytes`, the process's peak resident memory (VmHWM) less what was resident after the imports,
        the loading of the images and the drawing of the actions, and `process_peak_bytes`, all of it. On a GPU
        `peak_bytes`, `torch.cuda.max_memory_allocated` less what was allocated before.
    """
    config = case.config(plan)
    data = load_dataset(config)
    actions = [
        {key: torch.tensor(value, device=case.device) for key, value in action.items()}
        for action in draw_actions(case.batch, config.num_glimpses + 1, data.num_classes)
    ]
    is_gpu = case.device.startswith("cuda")
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(case.device)
        before: int | None = torch.cuda.memory_allocated(case.device)
    else:
        _forget_peak()
        before = meminfo(STATUS, "VmRSS")
    if before is None:
        raise SkippedError("the peak is read from /proc/self/status, which only Linux has")
    envs = GlimpseVectorEnv(case.batch, config, device=case.device, output="torch")
    observation, _ = envs.reset(seed=0)
    for action in (*actions, *actions):
        observation, *_ = envs.step(action)
    assert len(observation["glimpse"]) == case.batch
    if is_gpu:
        return {"peak_bytes": torch.cuda.max_memory_allocated(case.device) - before}
    after = meminfo(STATUS, "VmHWM")
    assert after is not None
    return {"peak_bytes": after - before, "process_peak_bytes": after}


def _forget_peak() -> None:
    """Sets VmHWM back to what is resident now. Where that is not allowed, an earlier peak may hide a lower one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
