"""The glimpse sensor as one Triton kernel, for GPUs. Importing it fails where Triton is missing.

One thread takes two neighbouring values of a row, at each scale: the pixels that they are the means of lie side by
side, so that it reads them four at a time. With four values fewer pixels are read twice, but threads that run together
touch more rows at once: on wide canvases that takes longer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS_PER_PROGRAM = 128
WARPS = 4
MOST_UNROLLED, MOST_IN_FOURS = tl.constexpr(8), tl.constexpr(32)
"""Blocks of up to these sides are summed without a loop over rows, and read in fours: more code compiles for long."""
ROUNDING = tl.constexpr(1.5 * 2.0**23)
"""What is added to it is rounded to a whole number, ties to even: float32 has no finer ones there."""
HAS_DP4A = tl.constexpr(torch.version.cuda is not None and not triton.knobs.runtime.interpret)
"""Whether one instruction sums four bytes: on NVIDIA's GPUs, but neither on AMD's nor in Triton's interpreter."""


@triton.jit
def _is_inside(at, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    return (at >= 0) & (at < SIZE)


@triton.jit
def _add_bytes(sums, four, BLOCK: tl.constexpr, FIRST: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of a block, and those of four pixels that lie in it: FIRST and the three after it of the blocks' row."""
    # A byte is one or zero, the lowest that of the pixel furthest left.
    is_inside: tl.constexpr = (
        (FIRST // SIDE == BLOCK) * 1
        | ((FIRST + 1) // SIDE == BLOCK) * 2**8
        | ((FIRST + 2) // SIDE == BLOCK) * 2**16
        | ((FIRST + 3) // SIDE == BLOCK) * 2**24
    )
    if is_inside == 0:
        return sums
    if HAS_DP4A:
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [four, tl.full(four.shape, is_inside, tl.uint32), sums],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    four = four & is_inside * 255
    pairs = (four & 0x00FF00FF) + ((four >> 8) & 0x00FF00FF)
    return sums + (pairs & 0xFFFF) + (pairs >> 16)


@triton.jit
def _add_fours(a, b, fours, x, shift, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of two neighbouring blocks with a row of each added, read in fours that begin at multiples of four."""
    four = tl.load(fours, mask=mask & _is_inside(x, SIZE), other=0)
    for at in tl.static_range((2 * SIDE + 3) // 4):
        following = tl.load(fours + at + 1, mask=mask & _is_inside(x + 4 * at + 4, SIZE), other=0)
        pixels = (((following.to(tl.uint64) << 32) | four) >> shift).to(tl.uint32)
        a = _add_bytes(a, pixels, 0, 4 * at, SIDE)
        b = _add_bytes(b, pixels, 1, 4 * at, SIDE)
        four = following
    return a, b


@triton.jit
def _add_pixels(sums, pixels, x, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of a block with a row of it added, read pixel by pixel."""
    for at in range(SIDE):
        sums += tl.load(pixels + at, mask=mask & _is_inside(x + at, SIZE), other=0)
    return sums


@triton.jit
def _add_row(a, b, pixels, x, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of two neighbouring blocks with a row of each added, that of the first from x on."""
    if SIZE % 4 == 0 and SIDE <= MOST_IN_FOURS:
        over = x & 3
        fours = (pixels - over).to(tl.pointer_type(tl.uint32), bitcast=True)
        return _add_fours(a, b, fours, x - over, (8 * over).to(tl.uint64), mask, SIZE, SIDE)
    a = _add_pixels(a, pixels, x, mask, SIZE, SIDE)
    b = _add_pixels(b, pixels + SIDE, x + SIDE, mask, SIZE, SIDE)
    return a, b


@triton.jit
def _block_sums(canvas, x, y, mask, SIZE: tl.constexpr, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of two blocks of SIDE x SIDE pixels, side by side from (x, y) on; it is zero beyond the border."""
    line = y
    if SIZE >= 2**15:
        line = y.to(tl.int64)  # such a canvas can have more pixels than an int32 counts
    pixels = canvas + (line * SIZE + x)
    a = tl.zeros(x.shape, tl.uint32)
    b = a
    if SIDE <= MOST_UNROLLED:
        for at in tl.static_range(SIDE):
            a, b = _add_row(a, b, pixels + at * SIZE, x, mask & _is_inside(y + at, SIZE), SIZE, SIDE)
    else:
        for at in range(SIDE):
            a, b = _add_row(a, b, pixels + at * SIZE, x, mask & _is_inside(y + at, SIZE), SIZE, SIDE)
    return tl.join(a, b)


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
    """The two values of a row from a column on, each the mean of SIDE x SIDE pixels."""
    if PATCH * SIDE % 2 == 0:
        x = near_x - PATCH * SIDE // 2 + column * SIDE
        y = near_y - PATCH * SIDE // 2 + row * SIDE
    else:
        x = left - PATCH * SIDE // 2 + column * SIDE
        y = top - PATCH * SIDE // 2 + row * SIDE
    return _mean(_block_sums(canvas, x, y, mask, SIZE, SIDE), SIDE)


# One variant a setting, wherever tensors begin, so that no graph's capture meets one that was not compiled yet.
@triton.jit(do_not_specialize=["num_pairs"], do_not_specialize_on_alignment=["canvases", "locations"])
def _sense(  # type: ignore[no-untyped-def]
    canvases,
    locations,
    glimpses,
    num_pairs,  # of one scale, of all lanes
    half_canvas,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pairs_of_row: tl.constexpr = (PATCH + 1) // 2
    of_lane: tl.constexpr = CHANNELS * PATCH * pairs_of_row
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    mask = tl.arange(0, BLOCK) < num_pairs - begin
    pair = (begin % of_lane).to(tl.int32) + tl.arange(0, BLOCK)
    lane = begin // of_lane + pair // of_lane
    line = pair % of_lane // pairs_of_row  # of all channels
    row = line % PATCH
    column = pair % pairs_of_row * 2
    canvas = canvases + (lane * CHANNELS + line // PATCH) * (SIZE * SIZE)
    columns = column[:, None] + tl.arange(0, 2)[None, :]
    in_patch = mask[:, None] & (columns < PATCH)

    x = (tl.load(locations + 2 * lane, mask=mask, other=0.0) + 1.0) * half_canvas
    y = (tl.load(locations + 2 * lane + 1, mask=mask, other=0.0) + 1.0) * half_canvas
    left = tl.floor(x).to(tl.int32)
    top = tl.floor(y).to(tl.int32)
    near_x = ((x + ROUNDING) - ROUNDING).to(tl.int32)
    near_y = ((y + ROUNDING) - ROUNDING).to(tl.int32)

    # The widest patch first: its pixels are what the finer ones look at too.
    for finer in tl.static_range(NUM_SCALES):
        means = _pool(
            canvas, left, top, near_x, near_y, row, column, mask, SIZE, PATCH, FACTOR ** (NUM_SCALES - 1 - finer)
        )
        scale_line = (lane * NUM_SCALES + (NUM_SCALES - 1 - finer)) * (CHANNELS * PATCH) + line
        tl.store(glimpses + (scale_line * PATCH)[:, None] + columns, means, mask=in_patch)


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
    num_pairs = num * channels * patch_size * triton.cdiv(patch_size, 2)
    grid: Any = (triton.cdiv(num_pairs, PAIRS_PER_PROGRAM),)
    with torch.cuda.device_of(canvases):  # Triton launches where PyTorch is
        _sense[grid](
            canvases,
            locations.contiguous(),
            glimpses,
            num_pairs,
            size / 2.0,
            CHANNELS=channels,
            SIZE=size,
            PATCH=patch_size,
            NUM_SCALES=num_scales,
            FACTOR=scale_factor,
            BLOCK=PAIRS_PER_PROGRAM,
            num_warps=WARPS,
            enable_fp_fusion=False,  # what ROUNDING is added to must have been rounded before
        )
    return glimpses
