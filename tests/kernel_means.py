"""Means as the sensor's kernel takes them, of every sum there is. Imported where Triton is installed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ram_gym import kernels


@triton.jit
def _write(means, SIDE: tl.constexpr, NUM: tl.constexpr):  # type: ignore[no-untyped-def]
    sums = tl.arange(0, NUM)
    tl.store(means + sums, kernels._mean(sums, SIDE))


def means_and_quotients(side: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """For every sum that a block of side x side pixels can have: the kernel's mean, and a division's."""
    white = 255 * side**2
    means = torch.empty(triton.next_power_of_2(white + 1), device=device)
    _write[(1,)](means, SIDE=side, NUM=len(means))
    sums = torch.arange(white + 1, dtype=torch.float32)
    return means[: white + 1].cpu(), sums / torch.full_like(sums, white)
