"""The glimpse sensor as one Triton kernel, for GPUs. Imported where there is one and Triton with it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES_PER_PROGRAM = 512


@triton.jit
def _sense(  # type: ignore[no-untyped-def]
    pyramid,
    locations,
    tables,
    divisors,
    glimpses,
    half_canvas,
    length,
    NUM_SCALES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    values: tl.constexpr = NUM_SCALES * CHANNELS * SIDE * SIDE
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = value < values
    scale = value // (CHANNELS * SIDE * SIDE)
    channel = value // (SIDE * SIDE) % CHANNELS
    row = value // SIDE % SIDE
    column = value % SIDE

    x = (tl.load(locations + 2 * lane) + 1.0) * half_canvas
    y = (tl.load(locations + 2 * lane + 1) + 1.0) * half_canvas
    floor_x = tl.floor(x)
    floor_y = tl.floor(y)
    left = floor_x.to(tl.int32)
    top = floor_y.to(tl.int32)
    # To the nearest, ties to even.
    near_x = left + ((x - floor_x > 0.5) | ((x - floor_x == 0.5) & (left % 2 == 1))).to(tl.int32)
    near_y = top + ((y - floor_y > 0.5) | ((y - floor_y == 0.5) & (top % 2 == 1))).to(tl.int32)

    about = tables + 4 * scale
    is_even = tl.load(about, mask=mask, other=0) == 1
    width = tl.load(about + 1, mask=mask, other=0)
    block = tl.load(about + 2, mask=mask, other=0)
    first = tl.load(about + 3, mask=mask, other=0)
    centre_x = tl.where(is_even, near_x, left)
    centre_y = tl.where(is_even, near_y, top)
    place = first + (centre_y + row * block) * width + centre_x + column * block
    sums = tl.load(pyramid + (lane * CHANNELS + channel) * length + place, mask=mask, other=0)
    divisor = tl.load(divisors + scale, mask=mask, other=1.0)
    tl.store(glimpses + lane * values + value, tl.div_rn(sums.to(tl.float32), divisor), mask=mask)


def sense(pyramid: Tensor, locations: Tensor, tables: Tensor, divisors: Tensor, side: int, canvas_size: int) -> Tensor:
    """The glimpses of `ram_gym.retina.sense`, bit for bit, in one pass over memory.

    Args:
        pyramid: (N, C, L) of box sums.
        locations: float32 (N, 2), (x, y) in [-1, 1].
        tables: int32 (K, 4), a row a scale: 1 where patches have even sides, else 0; width of its level in the pyramid;
            side of its blocks; where the value of a patch centred on pixel (0, 0) begins.
        divisors: float32 (K,), what white sums up to.
        side: P.
        canvas_size: side of the canvas in pixels.

    Returns:
        float32 (N, K * C, P, P).
    """
    num, channels, length = pyramid.shape
    scales = len(tables)
    glimpses: Tensor = torch.empty(num, scales * channels, side, side, device=pyramid.device)
    block = min(VALUES_PER_PROGRAM, triton.next_power_of_2(glimpses[0].numel()))
    grid: Any = (num, triton.cdiv(glimpses[0].numel(), block))
    with torch.cuda.device_of(pyramid):  # Triton launches where PyTorch is
        _sense[grid](
            pyramid.contiguous(),
            locations.contiguous(),
            tables,
            divisors,
            glimpses,
            canvas_size / 2.0,
            length,
            NUM_SCALES=scales,
            CHANNELS=channels,
            SIDE=side,
            BLOCK=block,
            enable_fp_fusion=False,  # x - floor(x) must be of the x that was rounded
        )
    return glimpses
