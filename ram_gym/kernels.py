"""The glimpse sensor as one Triton kernel, for GPUs. Importing it fails where Triton is missing."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES_PER_PROGRAM = 256
WARPS = 4
MOST_UNROLLED = tl.constexpr(8)
"""Blocks of up to this side are summed without a loop. Above 22, halves of 16 bits could not hold the sum of one."""
ROUNDING = tl.constexpr(1.5 * 2.0**23)
"""What is added to it is rounded to a whole number, ties to even: float32 has no finer ones there."""


@triton.jit
def _is_inside(at, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    return (at >= 0) & (at < SIZE)


@triton.jit
def _fours_of_row(row, first, before, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of SIDE pixels of a row, in two halves of 16 bits, read in fours that begin at multiples of four.

    It takes one four more than fit: which bytes to leave out of the first and of the last is complementary, so both
    make one number.
    """
    start = tl.load(row, mask=mask & _is_inside(first, SIZE), other=0)
    end = tl.load(row + SIDE // 4, mask=mask & _is_inside(first + SIDE, SIZE), other=0)
    four = start ^ ((start ^ end) & before)
    pairs = (four & 0x00FF00FF) + ((four >> 8) & 0x00FF00FF)
    if SIDE <= MOST_UNROLLED:
        for at in tl.static_range(1, SIDE // 4):
            four = tl.load(row + at, mask=mask & _is_inside(first + 4 * at, SIZE), other=0)
            pairs += (four & 0x00FF00FF) + ((four >> 8) & 0x00FF00FF)
    else:
        for at in range(1, SIDE // 4):
            four = tl.load(row + at, mask=mask & _is_inside(first + 4 * at, SIZE), other=0)
            pairs += (four & 0x00FF00FF) + ((four >> 8) & 0x00FF00FF)
    return pairs


@triton.jit
def _pixels_of_row(row, x, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of SIDE pixels of a row."""
    sums = tl.zeros_like(x)
    if SIDE <= MOST_UNROLLED:
        for at in tl.static_range(SIDE):
            sums += tl.load(row + at, mask=mask & _is_inside(x + at, SIZE), other=0)
    else:
        for at in range(SIDE):
            sums += tl.load(row + at, mask=mask & _is_inside(x + at, SIZE), other=0)
    return sums


@triton.jit
def _block_sum(canvas, x, y, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of SIDE x SIDE pixels from (x, y) on; it is zero beyond the border."""
    sums = tl.zeros_like(x)
    line = y
    if SIZE >= 2**15:
        line = y.to(tl.int64)  # such a canvas can have more pixels than an int32 counts
    if SIDE % 4 == 0 and SIZE % 4 == 0:
        over = x & 3
        first = x - over
        before = (1 << (8 * over).to(tl.uint32)) - 1
        fours = (canvas + (line * SIZE + first)).to(tl.pointer_type(tl.uint32), bitcast=True)
        if SIDE <= MOST_UNROLLED:
            pairs = tl.zeros(x.shape, tl.uint32)
            for at in tl.static_range(SIDE):
                row, in_row = fours + at * (SIZE // 4), mask & _is_inside(y + at, SIZE)
                pairs += _fours_of_row(row, first, before, in_row, SIZE, SIDE)
            sums += ((pairs & 0xFFFF) + (pairs >> 16)).to(tl.int32)
        else:
            for at in range(SIDE):
                row, in_row = fours + at * (SIZE // 4), mask & _is_inside(y + at, SIZE)
                pairs = _fours_of_row(row, first, before, in_row, SIZE, SIDE)
                sums += ((pairs & 0xFFFF) + (pairs >> 16)).to(tl.int32)
    else:
        pixels = canvas + (line * SIZE + x)
        if SIDE <= MOST_UNROLLED:
            for at in tl.static_range(SIDE):
                sums += _pixels_of_row(pixels + at * SIZE, x, mask & _is_inside(y + at, SIZE), SIZE, SIDE)
        else:
            for at in range(SIDE):
                sums += _pixels_of_row(pixels + at * SIZE, x, mask & _is_inside(y + at, SIZE), SIZE, SIDE)
    return sums


@triton.jit
def _mean(sums, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """What sums of SIDE x SIDE pixels are of white: divided by 255 * SIDE * SIDE, and rounded once."""
    if SIDE & (SIDE - 1) != 0:
        return tl.div_rn(sums.to(tl.float32), tl.full(sums.shape, 255.0 * SIDE * SIDE, tl.float32))
    # A division takes several times as long, and longest for zero. A power of two divides exactly; then x / 255 is
    # near, and x - 255 * near, taken in two differences of numbers so alike that both are exact, makes it right.
    # Whether the products are rounded before they are added changes nothing.
    x = sums.to(tl.float32) * (1.0 / (SIDE * SIDE))
    near = x * (1.0 / 255.0)
    rest = tl.fma(near, -256.0, x) + near
    return tl.fma(rest, 1.0 / 255.0, near)


@triton.jit
def _pool(  # type: ignore[no-untyped-def]
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
    """The values in a row and column of a patch, each the mean of SIDE x SIDE pixels."""
    if PATCH * SIDE % 2 == 0:
        x = near_x - PATCH * SIDE // 2 + column * SIDE
        y = near_y - PATCH * SIDE // 2 + row * SIDE
    else:
        x = left - PATCH * SIDE // 2 + column * SIDE
        y = top - PATCH * SIDE // 2 + row * SIDE
    return _mean(_block_sum(canvas, x, y, mask, SIZE, SIDE), SIDE)


# One variant a setting, wherever tensors begin, so that no graph's capture meets one that was not compiled yet.
@triton.jit(do_not_specialize=["num_values"], do_not_specialize_on_alignment=["canvases", "locations"])
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
    of_lane: tl.constexpr = CHANNELS * PATCH * PATCH
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    mask = tl.arange(0, BLOCK) < num_values - begin
    value = (begin % of_lane).to(tl.int32) + tl.arange(0, BLOCK)
    lane = begin // of_lane + value // of_lane
    value = value % of_lane
    row = value // PATCH % PATCH
    column = value % PATCH
    canvas = canvases + (lane * CHANNELS + value // (PATCH * PATCH)) * (SIZE * SIZE)

    x = (tl.load(locations + 2 * lane, mask=mask, other=0.0) + 1.0) * half_canvas
    y = (tl.load(locations + 2 * lane + 1, mask=mask, other=0.0) + 1.0) * half_canvas
    left = tl.floor(x).to(tl.int32)
    top = tl.floor(y).to(tl.int32)
    near_x = ((x + ROUNDING) - ROUNDING).to(tl.int32)
    near_y = ((y + ROUNDING) - ROUNDING).to(tl.int32)

    # The widest patch first: its pixels are what the finer ones look at too.
    for finer in tl.static_range(NUM_SCALES):
        mean = _pool(
            canvas, left, top, near_x, near_y, row, column, mask, SIZE, PATCH, FACTOR ** (NUM_SCALES - 1 - finer)
        )
        tl.store(glimpses + (lane * NUM_SCALES + (NUM_SCALES - 1 - finer)) * of_lane + value, mean, mask=mask)


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
    canvases = canvases.contiguous()
    if canvases.data_ptr() % 4:  # a view that begins amid four pixels
        canvases = canvases.clone()
    glimpses: Tensor = torch.empty(
        num, num_scales * channels, patch_size, patch_size, dtype=torch.float32, device=canvases.device
    )
    num_values = glimpses.numel() // num_scales
    grid: Any = (triton.cdiv(num_values, VALUES_PER_PROGRAM),)
    with torch.cuda.device_of(canvases):  # Triton launches where PyTorch is
        _sense[grid](
            canvases,
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
            enable_fp_fusion=False,  # what ROUNDING is added to must have been rounded before
        )
    return glimpses
