"""The glimpse sensor: canvases and locations -> glimpses.

A glimpse is `num_scales` square patches around one location, each `scale_factor` times as wide as the one before, all
average-pooled to `patch_size` pixels.

Source: Mnih et al. 2014, section 3.1 (glimpse sensor, figure 1A).
Differs: nothing in what is seen. The sums that pooling needs are made once a scene for every place (a pyramid of box
sums), so that a glimpse is one lookup per value whatever its scale. On a GPU, where reading memory is what takes time,
a kernel pools as it reads, and the pyramid is the canvases themselves.

Numbers are exact: box sums are integers below 2^24 and are divided once, so a glimpse has the same bits from NumPy
and PyTorch, on every device and in every batch size.
"""

from __future__ import annotations

import itertools
import os
import shutil
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from ram_gym.config import GlimpseConfig
from ram_gym.coordinates import Array, location_to_pixel, patch_centres


class _Level(NamedTuple):
    """Where one scale's box sums lie in a pyramid: a square of `width` from `start` on, row by row.

    Its entry (x, y) is the sum of the b x b pixels whose top-left pixel is (x - before, y - before), b the block.
    """

    block: int
    before: int
    """Rows and columns before pixel 0; all zero, like those after the last pixel."""
    width: int
    start: int


@lru_cache(maxsize=64)
def _levels(config: GlimpseConfig) -> tuple[_Level, ...]:
    levels, start = [], 0
    for scale in range(config.num_scales):
        block, following = config.block_side(scale), config.block_side(scale + 1)
        # Wide enough that no patch leaves it, wherever the location; and that the next scale's sums are sums of
        # shifted copies, without a case for the border.
        half, is_last = (config.patch_side(scale) + 1) // 2, scale == config.num_scales - 1
        before = max(half, block if is_last else following)
        width = before + config.canvas_size + max(half, 1 if is_last else following - block + 1)
        levels.append(_Level(block, before, width, start))
        start += width * width
    return tuple(levels)


def _square(pyramid: Array, level: _Level) -> Array:
    """A level of a pyramid as a view. (N, C, L) -> (N, C, width, width)."""
    flat = pyramid[:, :, level.start : level.start + level.width**2]
    return array_namespace(pyramid).reshape(flat, (*flat.shape[:2], level.width, level.width))


def new_pyramid(num: int, channels: int, config: GlimpseConfig, like: Array) -> Array:
    """An empty pyramid for `build_pyramid`: zeros, of the kind and on the device of `like`."""
    xp = array_namespace(like)
    if _has_kernel(like):
        return xp.zeros((num, channels, config.canvas_size, config.canvas_size), dtype=xp.uint8, device=device(like))
    last = _levels(config)[-1]
    largest = 255 * last.block**2
    dtype = xp.uint8 if largest < 2**8 else xp.int16 if largest < 2**15 else xp.int32
    return xp.zeros((num, channels, last.start + last.width**2), dtype=dtype, device=device(like))


def build_pyramid(canvases: Array, config: GlimpseConfig, pyramid: Array | None = None) -> Array:
    """Box sums of canvases at every place and scale.

    Args:
        canvases: uint8 (N, C, S, S).
        config: gives the number of scales and their factor.
        pyramid: one that was built before for as many canvases; it is overwritten, which saves its allocation.

    Returns:
        (N, C, L) of uint8, int16 or int32, whichever holds the largest sum; all scales one after the other. Where the
        sensor is a kernel: `canvases`, or the given pyramid with their pixels.
    """
    if _has_kernel(canvases):
        if pyramid is None:
            return canvases
        pyramid[...] = canvases
        return pyramid
    levels, size, factor = _levels(config), config.canvas_size, config.scale_factor
    if pyramid is None:
        pyramid = new_pyramid(canvases.shape[0], canvases.shape[1], config, canvases)
    pixels = slice(levels[0].before, levels[0].before + size)
    _square(pyramid, levels[0])[:, :, pixels, pixels] = canvases
    for fine, coarse in itertools.pairwise(levels):
        # Sums that begin at pixels from -coarse.block to size - 1; those further out stay zero.
        first, length = fine.before - coarse.block, coarse.block + size
        windows = [slice(first + copy * fine.block, first + copy * fine.block + length) for copy in range(factor)]
        inside = slice(coarse.before - coarse.block, coarse.before + size)
        sums = _square(pyramid, fine)
        sums = _add_all([sums[..., window] for window in windows])
        _add_all([sums[:, :, window] for window in windows], _square(pyramid, coarse)[:, :, inside, inside])
    return pyramid


def _add_all(terms: list[Array], out: Array | None = None) -> Array:
    """The sum of two or more arrays of one shape, into `out` where given."""
    xp = array_namespace(terms[0])
    total = xp.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        total += term
    return total


def canvases_of(pyramid: Array, config: GlimpseConfig) -> Array:
    """The canvases that a pyramid was built from: a copy, uint8 (N, C, S, S)."""
    xp = array_namespace(pyramid)
    if _is_canvases(pyramid):
        return xp.asarray(pyramid, copy=True)
    level = _levels(config)[0]
    pixels = slice(level.before, level.before + config.canvas_size)
    return xp.astype(_square(pyramid, level)[:, :, pixels, pixels], xp.uint8, copy=True)


class _Constants(NamedTuple):
    """What `sense` needs for a configuration on a device; K scales of P x P values. int64 unless noted."""

    has_even_sides: bool
    has_odd_sides: bool
    """Whether some patch has an even side in canvas pixels, and whether some has an odd one."""
    is_even: Array
    """bool (K,), whether a scale's patches have even sides."""
    widths: Array
    """(K,), of the levels."""
    offsets: Array
    """(K, P * P), from where a patch's centre pixel would lie in its level, were that all there is, to its values."""
    divisors: Array
    """float32 (K, 1, 1), what white sums up to."""


@lru_cache(maxsize=64)
def _constants(config: GlimpseConfig, xp: Any, where: Any) -> _Constants:
    levels = _levels(config)
    is_even = [config.patch_side(scale) % 2 == 0 for scale in range(config.num_scales)]
    steps = np.arange(config.patch_size)
    firsts = [
        level.start + (level.before - config.patch_side(scale) // 2) * (level.width + 1)
        for scale, level in enumerate(levels)
    ]
    offsets = [
        (steps[:, None] * level.width + steps).ravel() * level.block + first
        for level, first in zip(levels, firsts, strict=True)
    ]
    return _Constants(
        any(is_even),
        not all(is_even),
        xp.asarray(is_even, device=where),
        xp.asarray([level.width for level in levels], dtype=xp.int64, device=where),
        xp.asarray(np.stack(offsets), dtype=xp.int64, device=where),
        # Divided by an array, not by a number: some devices turn the latter into a rounded reciprocal.
        xp.asarray([255.0 * level.block**2 for level in levels], dtype=xp.float32, device=where)[:, None, None],
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
    xp = array_namespace(locations)
    known = _constants(config, xp, device(locations))
    num, channels = pyramid.shape[:2]
    pixels = location_to_pixel(locations, config.canvas_size)  # (N, 2)
    if known.has_even_sides and known.has_odd_sides:
        centres = xp.where(known.is_even, patch_centres(pixels, 2)[..., None], patch_centres(pixels, 1)[..., None])
    else:
        centres = patch_centres(pixels, 2 if known.has_even_sides else 1)[..., None]  # (N, 2, K or 1)
    flat = (centres[:, 1] * known.widths + centres[:, 0])[..., None] + known.offsets  # (N, K, P * P)
    sums = _look_up(pyramid, xp.reshape(flat, (num, 1, scales * side * side)))
    sums = xp.permute_dims(xp.reshape(sums, (num, channels, scales, side * side)), (0, 2, 1, 3))
    glimpses = xp.astype(sums, xp.float32) / known.divisors
    return xp.reshape(glimpses, (num, scales * channels, side, side))


@cache
def _has_triton() -> bool:
    """Whether Triton is installed, and with it a C compiler, without which it cannot start a kernel."""
    compilers = (os.environ.get("CC", "gcc"), "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(compiler) for compiler in compilers)


def _has_kernel(array: Array) -> bool:
    """Whether the sensor is one kernel where an array is: on a GPU, where Triton is installed."""
    return is_torch_array(array) and array.is_cuda and _has_triton()


def _is_canvases(pyramid: Array) -> bool:
    """Whether a pyramid is canvases (N, C, S, S), for the kernel, and not box sums (N, C, L)."""
    return len(pyramid.shape) == 4


def sense_one(pyramid: np.ndarray, location: np.ndarray, config: GlimpseConfig) -> np.ndarray:
    """The glimpse that `sense` gives, of a single canvas in NumPy: slices instead of lookups.

    Args:
        pyramid: what `build_pyramid` gave for one canvas of C channels.
        location: float32 (2,) in [-1, 1].
        config: as `sense`.

    Returns:
        float32 (K * C, P, P) in [0, 1].
    """
    side, channels = config.patch_size, pyramid.shape[1]
    x, y = location_to_pixel(location, config.canvas_size).tolist()
    glimpse = np.empty((config.num_scales, channels, side, side), np.float32)
    for scale, level in enumerate(_levels(config)):
        span = side * level.block
        # Python rounds ties to even, as `patch_origins` does.
        column, row = ((round(at) if span % 2 == 0 else int(at)) - span // 2 + level.before for at in (x, y))
        sums = pyramid[0, :, level.start : level.start + level.width**2].reshape(channels, level.width, level.width)
        sums = sums[:, row : row + span : level.block, column : column + span : level.block]
        np.divide(sums, 255 * level.block**2, out=glimpse[scale], dtype=np.float32, casting="same_kind")
    return glimpse.reshape(-1, side, side)


# `take_along_axis` of array_api_compat spends more on its checks than PyTorch on the lookup.
def _look_up(table: Array, places: Array) -> Array:
    """Entries of table (N, C, L) at places (N, 1, M), the same for all channels: (N, C, M)."""
    if is_torch_array(table):
        return table.gather(2, places.expand(-1, table.shape[1], -1))
    return array_namespace(table).take_along_axis(table, places, axis=2)


def take_glimpses(canvases: Array, locations: Array, config: GlimpseConfig) -> Array:
    """The glimpses of canvases at locations: `sense` of `build_pyramid`, for a single look.

    Args:
        canvases: uint8 (N, C, S, S).
        locations: float32 (N, 2) in [-1, 1].
        config: the sensor's patch size and scales, and the canvas size S.

    Returns:
        float32 (N, K * C, P, P) in [0, 1].

    Raises:
        ValueError: canvases or locations of another type, shape or range.

    Example:
        >>> import numpy as np
        >>> white = np.full((1, 1, 28, 28), 255, np.uint8)
        >>> take_glimpses(white, np.zeros((1, 2), np.float32), GlimpseConfig()).mean()
        np.float32(1.0)
    """
    xp = array_namespace(canvases, locations)
    size = config.canvas_size
    if canvases.dtype != xp.uint8 or len(canvases.shape) != 4 or tuple(canvases.shape[2:]) != (size, size):
        raise ValueError(
            f"canvases must be uint8 (N, C, {size}, {size}), got {canvases.dtype} of shape {tuple(canvases.shape)}"
        )
    if locations.dtype != xp.float32 or tuple(locations.shape) != (canvases.shape[0], 2):
        raise ValueError(
            f"locations must be float32 ({canvases.shape[0]}, 2), got {locations.dtype} of shape "
            f"{tuple(locations.shape)}"
        )
    if not xp.all(xp.abs(locations) <= 1):
        raise ValueError("locations must lie in [-1, 1]; clip them with ram_gym.coordinates.clip_locations")
    return sense(build_pyramid(canvases, config), locations, config)
