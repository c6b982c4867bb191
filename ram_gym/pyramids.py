"""Image pyramids: box sums of canvases at every place and scale, from which glimpses are copied.

In NumPy and in PyTorch. The sums that pooling needs are made once a scene, so that each value of a glimpse is there to
be copied whatever its scale. Numbers are exact: sums are integers below 2^24 and are divided once.

Longer than other files here: how a pyramid is laid out is known in this one alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_torch_array

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


class Pyramids:
    """Makes pyramids, tables (N, C, L) of box sums of N canvases of C channels, and looks at them.

    Args:
        config: the sensor's patch size and scales, and the canvas size S.
        channels: C.
        device: a PyTorch device; None: NumPy's arrays.
    """

    def __init__(self, config: GlimpseConfig, channels: int, device: Any = None) -> None:
        self._config, self._channels, self._device = config, channels, device
        self._row, self._length, self._levels = _layout(config)
        self._constants: _Constants | None = None

    def new(self, num: int) -> Array:
        """Pyramids of N black canvases: zeros (N, C, L), all scales one after the other.

        Of uint8, int16 or int32, whichever holds the largest sum.
        """
        xp = namespace(self._device)
        largest = 255 * self._levels[-1].block ** 2
        dtype = xp.uint8 if largest < 2**8 else xp.int16 if largest < 2**15 else xp.int32
        return xp.zeros((num, self._channels, self._length), dtype=dtype, device=self._device)

    def pixel_rows(self, pyramid: Array) -> Array:
        """A view (N, C, S, R) of pyramids: the canvases' pixels are its first S columns, the others stay zero."""
        return _rows(pyramid, self._levels[0].origin, self._config.canvas_size, self._row)

    def new_scratch(self, pyramid: Array) -> Array:
        """Room that `sum_boxes` needs for these pyramids, and for fewer, one after the other."""
        num = pyramid.shape[0] if len(self._levels) > 1 else 0
        size = num * self._channels * (self._config.canvas_size + 2 * self._levels[-1].block) * self._row
        return namespace(self._device).empty((size,), dtype=pyramid.dtype, device=self._device)

    def sum_boxes(self, pyramid: Array, scratch: Array) -> None:
        """Makes all sums of pyramids, in place, after their `pixel_rows` were changed.

        Sums over rows are kept in `scratch` before they are summed over columns: malloc would take such room from the
        system each time, and give it back.
        """
        row = self._row
        for fine, coarse in itertools.pairwise(self._levels):
            # All places that a coarse block reaches the canvas from, with one row and column before them; and the gap
            # behind them where it is narrow, since one long run takes less time than many short ones.
            side, first = coarse.block + self._config.canvas_size, -coarse.block * (row + 1)
            width = side if row > 2 * side else row
            shifts = [copy * fine.block for copy in range(self._config.scale_factor)]
            starts = [fine.origin + first + shift for shift in shifts]
            terms = [_rows(pyramid, start, side + shifts[-1], row)[..., :width] for start in starts]
            sums = _add_all(terms, scratch[: math.prod(terms[0].shape)].reshape(terms[0].shape))
            out = _rows(pyramid, coarse.origin + first, side, row)[..., :width]
            _add_all([sums[:, :, shift : shift + side] for shift in shifts], out)

    def look(self, pyramid: Array, locations: Array) -> Array:
        """The glimpses of N pyramids, without gaps in memory, at locations float32 (N, 2): float32 (N, K * C, P, P)."""
        num = pyramid.shape[0]
        if num == 1 and self._device is None:
            return self._look_at_one(pyramid, locations[0])[None]
        row_size = self._channels * self._config.num_scales * self._config.patch_size**2
        if num * row_size <= VALUES_AT_ONCE:
            return self._look(pyramid, locations)
        parts = blocks(num, row_size, VALUES_AT_ONCE, pyramid)
        return by_blocks(self._look, parts, pyramid, locations)

    def _look(self, pyramid: Array, locations: Array) -> Array:
        """What `look` gives, all at once.

        Each row of a patch is copied as one run of sums, where that takes less time than to look each value up: not for
        few pyramids, since it takes some operations a scale, nor where most of a run's cache lines hold no value.
        """
        num, channels, length = pyramid.shape
        side, xp, constants = self._config.patch_size, namespace(self._device), self._constants
        if constants is None or constants.starts.shape[0] != num:
            constants = self._constants = _constants(self._config, (num, channels, length), xp, self._device)
        pixels = location_to_pixel(locations, self._config.canvas_size)[:, None]  # (N, 1, 2)
        if constants.has_even_sides and constants.has_odd_sides:
            centres = xp.where(constants.is_even, patch_centres(pixels, 2), patch_centres(pixels, 1))  # (N, K, 2)
        else:
            centres = patch_centres(pixels, 2 if constants.has_even_sides else 1)
        centres = xp.astype(centres, constants.starts.dtype)
        starts = (centres[..., 1:] * self._row + centres[..., :1]) + constants.starts  # (N, K, C * P)
        glimpses = xp.empty((num, len(self._levels), channels * side, side), dtype=xp.float32, device=self._device)
        table = pyramid.reshape(-1)
        if num >= RUNS_FROM and self._levels[-1].block * table.itemsize < CACHE_LINE:
            for scale, (block, _) in enumerate(self._levels):
                runs = _runs(table, starts[:, scale].reshape(-1), (side - 1) * block + 1)
                runs = runs.reshape(num, channels * side, -1)[..., ::block]
                _divide(runs, constants.divisors[scale], glimpses[:, scale])
        elif num:
            places = starts[..., None] + constants.steps  # (N, K, C * P, P)
            _divide(_look_up(table, places.reshape(num, -1)).reshape(glimpses.shape), constants.divisors, glimpses)
        return glimpses.reshape(num, len(self._levels) * channels, side, side)

    def _look_at_one(self, pyramid: np.ndarray, location: np.ndarray) -> np.ndarray:
        """The glimpse of one pyramid at a location (2,), float32 (K * C, P, P): a view with strides instead of runs."""
        side, channels, row = self._config.patch_size, self._channels, self._row
        x, y = location_to_pixel(location, self._config.canvas_size).tolist()
        glimpse = np.empty((self._config.num_scales, channels, side, side), np.float32)
        size = pyramid.itemsize
        for scale, (block, origin) in enumerate(self._levels):
            span = side * block
            nearest = int if span % 2 else round  # Python rounds ties to even, as `patch_origins` does
            first = origin + (nearest(y) - span // 2) * row + nearest(x) - span // 2
            start, strides = size * first, (size * self._length, size * row * block, size * block)
            sums: np.ndarray = np.ndarray((channels, side, side), pyramid.dtype, pyramid, start, strides)
            np.divide(sums, 255 * block**2, out=glimpse[scale], dtype=np.float32, casting="same_kind")
        return glimpse.reshape(-1, side, side)


@cache
def namespace(device: Any) -> Any:
    """The array API of NumPy, where the device is None, else of PyTorch."""
    if device is None:
        return array_namespace(np.empty(0))
    import torch

    return array_namespace(torch.empty(0, device="cpu"))


def _rows(pyramid: Array, start: int, number: int, row: int) -> Array:
    """A view (N, C, number, row) of the numbers from `start` on."""
    run = pyramid[:, :, start : start + number * row]
    return array_namespace(pyramid).reshape(run, (*run.shape[:2], number, row))


def _add_all(terms: list[Array], out: Array) -> Array:
    """The sum of two or more arrays of one shape, into `out`."""
    xp = array_namespace(terms[0])
    total = xp.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        total += term
    return total


class _Constants(NamedTuple):
    """What a look at pyramids (N, C, L) on a device needs; K scales of P x P values. Integers unless noted."""

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


def blocks(num_rows: int, row_size: int, at_once: int, like: Array) -> list[slice]:
    """Slices that cover all rows, of at most `at_once` numbers each (or one row); elsewhere than on a CPU of more."""
    is_on_cpu = not is_torch_array(like) or like.device.type == "cpu"
    step = max((at_once if is_on_cpu else AT_ONCE_ELSEWHERE) // row_size, 1)
    return [slice(start, min(start + step, num_rows)) for start in range(0, max(num_rows, 1), step)]


def by_blocks(function: Callable[..., Array], parts: list[slice], *arrays: Array) -> Array:
    """A function's results for each block of its arguments' rows, one after the other."""
    if len(parts) == 1:
        return function(*arrays)
    return array_namespace(*arrays).concat([function(*(array[part] for array in arrays)) for part in parts])
