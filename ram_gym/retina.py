"""The glimpse sensor: canvases and locations -> glimpses.

A glimpse is `num_scales` square patches around one location, each `scale_factor` times as wide as the one before, all
average-pooled to `patch_size` pixels.

Source: Mnih et al. 2014, section 3.1 (glimpse sensor, figure 1A).
Differs: nothing in what is seen. The sums that pooling needs are made once a scene for every place (a pyramid of box
sums), so that each value is there to be copied whatever its scale. On a GPU, where reading memory is what takes time,
a kernel pools as it reads, and the pyramid is the canvases themselves.

Numbers are exact: box sums are integers below 2^24 and are divided once, so a glimpse has the same bits from NumPy
and PyTorch, on every device and in every batch size.

Longer than other files here: how a pyramid is laid out is known in this one alone.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from ram_gym.config import GlimpseConfig
from ram_gym.coordinates import Array, location_to_pixel, patch_centres

PIXELS_AT_ONCE, VALUES_AT_ONCE, AT_ONCE_ELSEWHERE = 2**20, 2**21, 2**27
"""How many pixels of scenes and values of glimpses are made at once on a CPU, and of either elsewhere. What lies
between images and glimpses then stays in the cache, or at least in arrays that malloc does not give back each time."""


RUNS_FROM, CACHE_LINE = 256, 64
"""From how many pyramids on rows are copied as runs; and bytes of a line, on most processors."""


class _Level(NamedTuple):
    """Where one scale's box sums lie in a pyramid.

    Sum (x, y), at `origin` + y * row + x, is that of the b x b pixels whose top-left pixel is (x, y), b the block.
    """

    block: int
    origin: int


@lru_cache(maxsize=64)
def _layout(config: GlimpseConfig) -> tuple[int, int, tuple[_Level, ...]]:
    """A row's length, all scales' alike, a pyramid's length, and its levels, one after the other.

    Sums are zero beyond the canvas. Those left of it, where a block still reaches it, lie at the end of the row
    before; so a level is one run of numbers, to which other runs can be added without a case for the border.
    """
    blocks = [config.block_side(scale) for scale in range(config.num_scales)]
    halves = [(config.patch_side(scale) + 1) // 2 for scale in range(config.num_scales)]
    # No patch leaves its level, wherever the location, nor do the sums that the next scale's are made of: but for zeros
    # at the end of the row before it, hence an empty row at the start.
    row = config.canvas_size + max(halves[-1], blocks[-1])
    levels, end = [], row
    for scale, (block, half) in enumerate(zip(blocks, halves, strict=True)):
        following = blocks[scale + 1] if scale + 1 < config.num_scales else block
        levels.append(_Level(block, end + max(half, following) * row))
        end = levels[-1].origin + (config.canvas_size + max(half, following - block + 1)) * row
    return row, end, tuple(levels)


def new_pyramid(num: int, channels: int, config: GlimpseConfig, like: Array) -> Array:
    """A pyramid of black canvases, of the kind and on the device of `like`.

    Returns:
        Zeros (N, C, L) of uint8, int16 or int32, whichever holds the largest sum; all scales one after the other. Where
        the sensor is a kernel: uint8 (N, C, S, S), the canvases.
    """
    xp = array_namespace(like)
    if _has_kernel(like):
        return xp.zeros((num, channels, config.canvas_size, config.canvas_size), dtype=xp.uint8, device=device(like))
    _, length, levels = _layout(config)
    largest = 255 * levels[-1].block ** 2
    dtype = xp.uint8 if largest < 2**8 else xp.int16 if largest < 2**15 else xp.int32
    return xp.zeros((num, channels, length), dtype=dtype, device=device(like))


def pixel_rows(pyramid: Array, config: GlimpseConfig) -> Array:
    """A view (N, C, S, R) of a pyramid: the canvases' pixels are its first S columns, the others stay zero."""
    if _is_canvases(pyramid):
        return pyramid
    row, _, levels = _layout(config)
    return _rows(pyramid, levels[0].origin, config.canvas_size, row)


def _rows(pyramid: Array, start: int, number: int, row: int) -> Array:
    """A view (N, C, number, row) of the numbers from `start` on."""
    run = pyramid[:, :, start : start + number * row]
    return array_namespace(pyramid).reshape(run, (*run.shape[:2], number, row))


def new_scratch(pyramid: Array, config: GlimpseConfig) -> Array:
    """Room that `sum_boxes` needs for this pyramid, and for smaller ones, one after the other."""
    (num, channels), (row, _, levels) = pyramid.shape[:2], _layout(config)
    is_needed = len(levels) > 1 and not _is_canvases(pyramid)
    size = num * channels * (config.canvas_size + 2 * levels[-1].block) * row if is_needed else 0
    return array_namespace(pyramid).empty((size,), dtype=pyramid.dtype, device=device(pyramid))


def sum_boxes(pyramid: Array, config: GlimpseConfig, scratch: Array) -> None:
    """Makes all sums of a pyramid, in place, after its `pixel_rows` were changed.

    Sums over rows are kept in `scratch` before they are summed over columns: malloc would take such room from the
    system each time, and give it back.
    """
    if _is_canvases(pyramid):
        return
    row, _, levels = _layout(config)
    for fine, coarse in itertools.pairwise(levels):
        # All places that a coarse block reaches the canvas from, with one row and column before them; and the gap
        # behind them where it is narrow, since one long run takes less time than many short ones.
        side, first = coarse.block + config.canvas_size, -coarse.block * (row + 1)
        width = side if row > 2 * side else row
        shifts = [copy * fine.block for copy in range(config.scale_factor)]
        starts = [fine.origin + first + shift for shift in shifts]
        terms = [_rows(pyramid, start, side + shifts[-1], row)[..., :width] for start in starts]
        sums = _add_all(terms, scratch[: math.prod(terms[0].shape)].reshape(terms[0].shape))
        out = _rows(pyramid, coarse.origin + first, side, row)[..., :width]
        _add_all([sums[:, :, shift : shift + side] for shift in shifts], out)


def _add_all(terms: list[Array], out: Array) -> Array:
    """The sum of two or more arrays of one shape, into `out`."""
    xp = array_namespace(terms[0])
    total = xp.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        total += term
    return total


def build_pyramid(canvases: Array, config: GlimpseConfig) -> Array:
    """What `sense` copies from: box sums of canvases at every place and scale.

    Args:
        canvases: uint8 (N, C, S, S).
        config: gives the number of scales and their factor.

    Returns:
        As `new_pyramid`; where the sensor is a kernel, `canvases`.
    """
    if _has_kernel(canvases):
        return canvases
    pyramid = new_pyramid(canvases.shape[0], canvases.shape[1], config, canvases)
    return _fill(pyramid, canvases, config, new_scratch(pyramid, config))


def _fill(pyramid: Array, canvases: Array, config: GlimpseConfig, scratch: Array) -> Array:
    """The pyramid, made one of these canvases."""
    pixel_rows(pyramid, config)[..., : config.canvas_size] = canvases
    sum_boxes(pyramid, config, scratch)
    return pyramid


def canvases_of(pyramid: Array, config: GlimpseConfig) -> Array:
    """The canvases that a pyramid was built from: a copy, uint8 (N, C, S, S)."""
    xp = array_namespace(pyramid)
    return xp.astype(pixel_rows(pyramid, config)[..., : config.canvas_size], xp.uint8, copy=True)


class _Constants(NamedTuple):
    """What `sense` needs for pyramids (N, C, L) on a device; K scales of P x P values. Integers unless noted."""

    has_even_sides: bool
    has_odd_sides: bool
    """Whether some patch has an even side in canvas pixels, and whether some has an odd one."""
    is_even: Array
    """bool (K, 1), whether a scale's patches have even sides."""
    starts: Array
    """(N, K, C * P), the first value of each row of the patch that is centred on pixel (0, 0), were all pyramids one
    table (N * C * L,)."""
    steps: Array
    """(K, 1, P), from there to each value of the row."""
    divisors: Array
    """float32 (K, 1, 1), what white sums up to."""


MOST_FOR_INT32 = 2**31 - 1
"""Places are 32-bit numbers where these can count them: half as many bytes to write and to read again."""


@lru_cache(maxsize=16)
def _constants(config: GlimpseConfig, shape: tuple[int, int, int], xp: Any, where: Any) -> _Constants:
    num, channels, length = shape
    integer = xp.int32 if num * channels * length <= MOST_FOR_INT32 else xp.int64
    row, _, levels = _layout(config)
    is_even = [config.patch_side(scale) % 2 == 0 for scale in range(config.num_scales)]
    blocks = np.array([level.block for level in levels])
    channel, step = length * np.arange(channels)[:, None], row * np.arange(config.patch_size)
    offsets = [
        (level.origin - config.patch_side(scale) // 2 * (row + 1) + channel + step * level.block).ravel()
        for scale, level in enumerate(levels)
    ]
    lanes = channels * length * np.arange(num)[:, None, None]
    return _Constants(
        any(is_even),
        not all(is_even),
        xp.asarray(is_even, device=where)[:, None],
        xp.asarray(lanes + np.stack(offsets), dtype=integer, device=where),
        xp.asarray(blocks[:, None, None] * np.arange(config.patch_size), dtype=integer, device=where),
        # Divided by an array, not by a number: some devices turn the latter into a rounded reciprocal.
        xp.asarray(255.0 * blocks[:, None, None] ** 2, dtype=xp.float32, device=where),
    )


def sense(pyramid: Array, locations: Array, config: GlimpseConfig) -> Array:
    """The glimpses at locations, one a scene.

    Args:
        pyramid: what `build_pyramid` gave for N canvases of C channels.
        locations: float32 (N, 2), (x, y) in [-1, 1].
        config: the sensor's patch size and scales, and the canvas size.

    Returns:
        float32 (N, K * C, P, P) in [0, 1]; channel k * C + c is scale k of the canvas's channel c.
    """
    scales, side = config.num_scales, config.patch_size
    if _is_canvases(pyramid):
        from ram_gym import kernels

        return kernels.sense(pyramid, locations, side, scales, config.scale_factor)
    num, channels = pyramid.shape[:2]
    row_size = channels * scales * side**2
    if num * row_size <= VALUES_AT_ONCE:
        return _look(pyramid, locations, config)
    parts = blocks(num, row_size, VALUES_AT_ONCE, pyramid)
    return _by_blocks(lambda sums, where: _look(sums, where, config), parts, pyramid, locations)


def _look(pyramid: Array, locations: Array, config: GlimpseConfig) -> Array:
    """What `sense` gives, all at once, from box sums.

    Each row of a patch is copied as one run of them, where that takes less time than to look each value up: not for few
    pyramids, since it takes some operations a scale, nor where most of a run's cache lines hold no value.
    """
    (num, channels), side = pyramid.shape[:2], config.patch_size
    xp, where = array_namespace(locations), device(locations)
    known = _constants(config, tuple(pyramid.shape), xp, where)
    row, _, levels = _layout(config)
    pixels = location_to_pixel(locations, config.canvas_size)[:, None]  # (N, 1, 2)
    if known.has_even_sides and known.has_odd_sides:
        centres = xp.where(known.is_even, patch_centres(pixels, 2), patch_centres(pixels, 1))  # (N, K, 2)
    else:
        centres = patch_centres(pixels, 2 if known.has_even_sides else 1)
    centres = xp.astype(centres, known.starts.dtype)
    starts = (centres[..., 1:] * row + centres[..., :1]) + known.starts  # (N, K, C * P)
    glimpses = xp.empty((num, len(levels), channels * side, side), dtype=xp.float32, device=where)
    table = pyramid.reshape(-1)
    if num >= RUNS_FROM and levels[-1].block * table.itemsize < CACHE_LINE:
        for scale, (block, _) in enumerate(levels):
            runs = _runs(table, starts[:, scale].reshape(-1), (side - 1) * block + 1)
            _divide(runs.reshape(num, channels * side, -1)[..., ::block], known.divisors[scale], glimpses[:, scale])
    elif num:
        places = starts[..., None] + known.steps  # (N, K, C * P, P)
        _divide(_look_up(table, places.reshape(num, -1)).reshape(glimpses.shape), known.divisors, glimpses)
    return glimpses.reshape(num, len(levels) * channels, side, side)


def blocks(num_rows: int, row_size: int, at_once: int, like: Array) -> list[slice]:
    """Slices that cover all rows, of at most `at_once` numbers each (or one row); elsewhere than on a CPU of more."""
    is_on_cpu = not is_torch_array(like) or like.device.type == "cpu"
    step = max((at_once if is_on_cpu else AT_ONCE_ELSEWHERE) // row_size, 1)
    return [slice(start, min(start + step, num_rows)) for start in range(0, max(num_rows, 1), step)]


def _by_blocks(function: Callable[..., Array], parts: list[slice], *arrays: Array) -> Array:
    """A function's results for each block of its arguments' rows, one after the other."""
    if len(parts) == 1:
        return function(*arrays)
    return array_namespace(*arrays).concat([function(*(array[part] for array in arrays)) for part in parts])


@cache
def _kernel_works(where: Any) -> bool:
    """Whether the kernel runs on a device and first small glimpses of it are PyTorch's. It needs Triton, a compiler and
    headers.
    """
    import torch

    try:
        from ram_gym import kernels

        config = GlimpseConfig(canvas_size=12, patch_size=4, num_scales=3)
        canvases = torch.arange(7, 7 * 289, 7, device="cpu").to(torch.uint8).view(2, 1, 12, 12)
        locations = torch.tensor([[-0.3, 0.2], [0.5, -1.0]], dtype=torch.float32, device="cpu")
        glimpses = kernels.sense(canvases.to(where), locations.to(where), 4, 3, 2).cpu()
        if not torch.equal(glimpses, take_glimpses(canvases, locations, config)):
            raise ArithmeticError("its glimpses differ from those of PyTorch")
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of the kernel
    except Exception as error:  # of the compiler, the driver, the headers or Triton: whatever it is, PyTorch can do it
        text = f"glimpses are taken by PyTorch, more slowly, since the Triton kernel does not work on {where}"
        warnings.warn(f"{text}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


def _has_kernel(array: Array) -> bool:
    """Whether the sensor is one kernel where an array is: on a GPU, where Triton's works."""
    return is_torch_array(array) and array.is_cuda and _kernel_works(array.device)


def _is_canvases(pyramid: Array) -> bool:
    """Whether a pyramid is canvases (N, C, S, S), for the kernel, and not box sums (N, C, L)."""
    return len(pyramid.shape) == 4


def sense_one(pyramid: np.ndarray, location: np.ndarray, config: GlimpseConfig) -> np.ndarray:
    """The glimpse that `sense` gives, of a single canvas in NumPy: a view with strides instead of runs.

    Args:
        pyramid: what `build_pyramid` gave for one canvas of C channels (without gaps in memory).
        location: float32 (2,) in [-1, 1].
        config: as `sense`.

    Returns:
        float32 (K * C, P, P) in [0, 1].
    """
    side, channels, length = config.patch_size, *pyramid.shape[1:]
    x, y = location_to_pixel(location, config.canvas_size).tolist()
    glimpse = np.empty((config.num_scales, channels, side, side), np.float32)
    row, _, levels = _layout(config)
    size = pyramid.itemsize
    for scale, (block, origin) in enumerate(levels):
        span = side * block
        nearest = int if span % 2 else round  # Python rounds ties to even, as `patch_origins` does
        first = origin + (nearest(y) - span // 2) * row + nearest(x) - span // 2
        start, strides = size * first, (size * length, size * row * block, size * block)
        sums: np.ndarray = np.ndarray((channels, side, side), pyramid.dtype, pyramid, start, strides)
        np.divide(sums, 255 * block**2, out=glimpse[scale], dtype=np.float32, casting="same_kind")
    return glimpse.reshape(-1, side, side)


def _divide(sums: Array, divisors: Array, out: Array) -> None:
    """Quotients in float32, whatever integers the sums are."""
    if is_torch_array(sums):
        out.copy_(sums).div_(divisors)
    else:
        np.divide(sums, divisors, out=out, dtype=np.float32, casting="same_kind")


def _look_up(table: Array, places: Array) -> Array:
    """Numbers of table (L,) at places (N, M): (N, M) or (N * M,)."""
    if not is_torch_array(table):
        return table[places]
    from torch import get_num_threads

    if table.device.type == "cpu" and get_num_threads() == 1:
        return table.index_select(0, places.reshape(-1))  # always on one thread, and there the quicker of the two
    return table.expand(places.shape[0], -1).gather(1, places)


def _runs(table: Array, starts: Array, length: int) -> Array:
    """Runs of numbers of table (L,) that begin at starts (M,): (M, length)."""
    if is_torch_array(table):
        return table.unfold(0, length, 1).index_select(0, starts)
    return np.lib.stride_tricks.sliding_window_view(table, length)[starts]


def take_glimpses(canvases: Array, locations: Array, config: GlimpseConfig) -> Array:
    """The glimpses of canvases at locations: `sense` of `build_pyramid`, for a single look.

    Args:
        canvases: uint8 (N, C, S, S), a NumPy array or a PyTorch tensor.
        locations: float32 (N, 2) in [-1, 1], of the same kind.
        config: the sensor's patch size and scales, and the canvas size S.

    Returns:
        float32 (N, K * C, P, P) in [0, 1], of the same kind.

    Raises:
        ValueError: canvases or locations of another type, shape, range or device.
        TypeError: one is an array and the other a tensor.

    Example:
        >>> import numpy as np
        >>> white = np.full((1, 1, 28, 28), 255, np.uint8)
        >>> take_glimpses(white, np.zeros((1, 2), np.float32), GlimpseConfig()).mean()
        np.float32(1.0)
    """
    xp = array_namespace(canvases, locations)
    size = config.canvas_size
    shape = tuple(canvases.shape)
    if canvases.dtype != xp.uint8 or len(shape) != 4 or shape[1] == 0 or shape[2:] != (size, size):
        raise ValueError(f"canvases must be uint8 (N, C, {size}, {size}), got {canvases.dtype} of shape {shape}")
    if locations.dtype != xp.float32 or tuple(locations.shape) != (canvases.shape[0], 2):
        raise ValueError(
            f"locations must be float32 ({canvases.shape[0]}, 2), got {locations.dtype} of shape "
            f"{tuple(locations.shape)}"
        )
    if device(canvases) != device(locations):
        raise ValueError(f"locations must be on the canvases' device, {device(canvases)}, got {device(locations)}")
    if not xp.all(xp.abs(locations) <= 1):
        raise ValueError("locations must lie in [-1, 1]; clip them with ram_gym.coordinates.clip_locations")
    if _has_kernel(canvases):
        return sense(canvases, locations, config)
    parts = blocks(canvases.shape[0], canvases.shape[1] * size**2, PIXELS_AT_ONCE, canvases)
    pyramid = new_pyramid(parts[0].stop, canvases.shape[1], config, canvases)
    scratch = new_scratch(pyramid, config)

    def take(seen: Array, where: Array) -> Array:
        return sense(_fill(pyramid[: seen.shape[0]], seen, config, scratch), where, config)

    return _by_blocks(take, parts, canvases, locations)
