"""The glimpse sensor as one Triton kernel, for GPUs. Imported where there is one and Triton with it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES_PER_PROGRAM = 256
WARPS = 4
MOST_UNROLLED = tl.constexpr(8)
"""Blocks of up to this side are summed without a loop."""


@triton.jit
def _pixels(canvas, x, y, mask, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Canvas pixels, zero beyond the border."""
    inside = mask & (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)
    return tl.load(canvas + (y * SIZE + x), mask=inside, other=0).to(tl.int32)


@triton.jit
def _four(canvas, x, y, mask, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four neighbours of a row in one number; x and SIZE are multiples of four, so that the border parts no four."""
    inside = mask & (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)
    place = (canvas + (y * SIZE + x)).to(tl.pointer_type(tl.uint32), bitcast=True)
    return tl.load(place, mask=inside, other=0)


@triton.jit
def _row_sum(canvas, left, y, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of SIDE pixels of a row from `left` on."""
    total = tl.zeros_like(left)
    if SIDE % 4 == 0 and SIZE % 4 == 0:
        # Fours that begin at multiples of four, so that one more than needed: of the first and the last, which
        # bytes are outside is complementary, and both fit one number.
        over = left & 3
        first = left - over
        before = (tl.full(left.shape, 1, tl.uint32) << (8 * over).to(tl.uint32)) - 1
        start = _four(canvas, first, y, mask, SIZE)
        ends = start ^ ((start ^ _four(canvas, first + SIDE, y, mask, SIZE)) & before)
        pairs = (ends & 0x00FF00FF) + ((ends >> 8) & 0x00FF00FF)
        for at in tl.static_range(4, SIDE, 4):
            between = _four(canvas, first + at, y, mask, SIZE)
            pairs += (between & 0x00FF00FF) + ((between >> 8) & 0x00FF00FF)
        total += ((pairs & 0xFFFF) + (pairs >> 16)).to(tl.int32)
    elif SIDE <= MOST_UNROLLED:
        for at in tl.static_range(SIDE):
            total += _pixels(canvas, left + at, y, mask, SIZE)
    else:
        for at in range(SIDE):
            total += _pixels(canvas, left + at, y, mask, SIZE)
    return total


@triton.jit
def _block_sum(  # type: ignore[no-untyped-def]
    canvas,
    left,
    top,
    near_x,
    near_y,
    row,
    column,
    mask,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    SIDE: tl.constexpr,
):
    """The sum of the SIDE x SIDE pixels that the patch's value in a row and column averages."""
    if PATCH * SIDE % 2 == 0:
        x = near_x - PATCH * SIDE // 2 + column * SIDE
        y = near_y - PATCH * SIDE // 2 + row * SIDE
    else:
        x = left - PATCH * SIDE // 2 + column * SIDE
        y = top - PATCH * SIDE // 2 + row * SIDE
    sums = tl.zeros_like(x)
    if SIDE <= MOST_UNROLLED:
        for at in tl.static_range(SIDE):
            sums += _row_sum(canvas, x, y + at, mask, SIZE, SIDE)
    else:
        for at in range(SIDE):
            sums += _row_sum(canvas, x, y + at, mask, SIZE, SIDE)
    return sums


@triton.jit
def _sense(  # type: ignore[no-untyped-def]
    canvases,
    locations,
    glimpses,
    num_values,  # of one scale, of all lanes
    half_canvas,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = value < num_values
    of_lane: tl.constexpr = CHANNELS * PATCH * PATCH
    lane = value // of_lane
    within = (value % of_lane).to(tl.int32)
    row = within // PATCH % PATCH
    column = within % PATCH
    canvas = canvases + (lane * CHANNELS + within // (PATCH * PATCH)) * (SIZE * SIZE)

    x = (tl.load(locations + 2 * lane, mask=mask, other=0.0) + 1.0) * half_canvas
    y = (tl.load(locations + 2 * lane + 1, mask=mask, other=0.0) + 1.0) * half_canvas
    floor_x = tl.floor(x)
    floor_y = tl.floor(y)
    left = floor_x.to(tl.int32)
    top = floor_y.to(tl.int32)
    # To the nearest, ties to even.
    near_x = left + ((x - floor_x > 0.5) | ((x - floor_x == 0.5) & (left % 2 == 1))).to(tl.int32)
    near_y = top + ((y - floor_y > 0.5) | ((y - floor_y == 0.5) & (top % 2 == 1))).to(tl.int32)

    # The widest patch first: its pixels are what the finer ones look at too.
    for finer in tl.static_range(NUM_SCALES):
        sums = _block_sum(
            canvas, left, top, near_x, near_y, row, column, mask, SIZE, PATCH, FACTOR ** (NUM_SCALES - 1 - finer)
        )
        white = 255.0 * FACTOR ** (2 * (NUM_SCALES - 1 - finer))
        mean = tl.div_rn(sums.to(tl.float32), tl.full(sums.shape, white, tl.float32))
        tl.store(glimpses + (lane * NUM_SCALES + (NUM_SCALES - 1 - finer)) * of_lane + within, mean, mask=mask)


def sense(canvases: Tensor, locations: Tensor, patch_size: int, num_scales: int, scale_factor: int) -> Tensor:
    """The glimpses of `ram_gym.retina.sense`, bit for bit, from canvases: patches are pooled as they are read.

    Args:
        canvases: uint8 (N, C, S, S).
        locations: float32 (N, 2), (x, y) in [-1, 1].
        patch_size: P.
        num_scales: K.
        scale_factor: how many times wider each patch is than the one before.

    Returns:
        float32 (N, K * C, P, P).
    """
    num, channels, size = canvases.shape[:3]
    glimpses: Tensor = torch.empty(num, num_scales * channels, patch_size, patch_size, device=canvases.device)
    num_values = glimpses.numel() // num_scales
    grid: Any = (triton.cdiv(num_values, VALUES_PER_PROGRAM),)
    with torch.cuda.device_of(canvases):  # Triton launches where PyTorch is
        _sense[grid](
            canvases.contiguous(),
            locations.contiguous(),
            glimpses,
            num_values,
            size / 2.0,
            CHANNELS=channels,
            SIZE=size,
            PATCH=patch_size,
            NUM_SCALES=num_scales,
            FACTOR=scale_factor,
            BLOCK=VALUES_PER_PROGRAM,
            num_warps=WARPS,
            enable_fp_fusion=False,  # x - floor(x) must be of the x that was rounded
        )
    return glimpses
