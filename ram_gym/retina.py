"""The glimpse sensor: canvases and locations -> glimpses.

A glimpse is `num_scales` square patches around one location, each `scale_factor` times as wide as the one before, all
average-pooled to `patch_size` pixels.

Source: Mnih et al. 2014, section 3.1 (glimpse sensor, figure 1A).
Differs: nothing in what is seen. The sums that pooling needs are made once a scene for every place (a pyramid of box
sums), so that a glimpse is one lookup per value whatever its scale.

Numbers are exact: box sums are integers below 2^24 and are divided once, so a glimpse has the same bits from NumPy
and PyTorch, on every device and in every batch size.
"""

from __future__ import annotations

from array_api_compat import array_namespace, device

from ram_gym.config import GlimpseConfig
from ram_gym.coordinates import Array, location_to_pixel, patch_origins

Pyramid = tuple[Array, ...]
"""Box sums of canvases, one integer array (N, C, S + b + 1, S + b + 1) a scale, b the scale's block side.

Entry [n, c, y + b, x + b] is the sum of the b x b pixels whose top-left pixel is (x, y), for x and y from -b to S;
the first and the last row and column lie outside the canvas and are zero.
"""


def build_pyramid(canvases: Array, config: GlimpseConfig) -> Pyramid:
    """Box sums of canvases at every place and scale.

    Args:
        canvases: uint8 (N, C, S, S).
        config: gives the number of scales and their factor.

    Returns:
        One array a scale: uint8 for the first, int16 or int32 after it; see `Pyramid`.
    """
    xp = array_namespace(canvases)
    num, channels, size, _ = canvases.shape
    sums = xp.zeros((num, channels, size + 2, size + 2), dtype=xp.uint8, device=device(canvases))
    sums[:, :, 1 : size + 1, 1 : size + 1] = canvases
    pyramid = [sums]
    for scale in range(1, config.num_scales):
        block = config.block_side(scale - 1)
        dtype = xp.int16 if 255 * config.block_side(scale) ** 2 < 2**15 else xp.int32
        sums = _add_shifted(sums, block, config.scale_factor, dtype, axis=2)
        sums = _add_shifted(sums, block, config.scale_factor, dtype, axis=3)
        pyramid.append(sums)
    return tuple(pyramid)


def _add_shifted(sums: Array, shift: int, copies: int, dtype: object, axis: int) -> Array:
    """The sum of `copies` copies of an array, each `shift` further along `axis` than the one before."""
    xp = array_namespace(sums)
    shape = list(sums.shape)
    length = shape[axis]
    shape[axis] += (copies - 1) * shift
    total = xp.zeros(tuple(shape), dtype=dtype, device=device(sums))
    for copy in range(copies):
        window = slice(copy * shift, copy * shift + length)
        total[(slice(None), slice(None), window) if axis == 2 else (Ellipsis, window)] += sums
    return total


def sense(pyramid: Pyramid, locations: Array, config: GlimpseConfig) -> Array:
    """The glimpses at locations, one a scene.

    Args:
        pyramid: what `build_pyramid` gave for N canvases of C channels.
        locations: float32 (N, 2), (x, y) in [-1, 1].
        config: the sensor's patch size and scales, and the canvas size.

    Returns:
        float32 (N, K * C, P, P) in [0, 1]; channel k * C + c is scale k of the canvas's channel c.
    """
    xp = array_namespace(locations)
    where = device(locations)
    size, side = config.canvas_size, config.patch_size
    num, channels = pyramid[0].shape[:2]
    pixels = location_to_pixel(locations, size)  # (N, 2)
    steps = xp.arange(side, dtype=xp.int64, device=where)
    glimpses = xp.empty((num, config.num_scales, channels, side * side), dtype=xp.float32, device=where)
    for scale, sums in enumerate(pyramid):
        block = config.block_side(scale)
        width = size + block + 1
        origins = patch_origins(pixels, config.patch_side(scale))  # (N, 2)
        places = xp.clip(origins[:, :, None] + steps * block, -block, size) + block  # (N, 2, P)
        flat = places[:, 1, :, None] * width + places[:, 0, None, :]  # (N, P, P)
        flat = xp.broadcast_to(xp.reshape(flat, (num, 1, side * side)), (num, channels, side * side))
        glimpses[:, scale] = xp.take_along_axis(xp.reshape(sums, (num, channels, width * width)), flat, axis=2)
        # Divided by an array, not by a number: some devices turn the latter into a rounded reciprocal.
        glimpses[:, scale] /= xp.full((1,), 255.0 * block * block, dtype=xp.float32, device=where)
    return xp.reshape(glimpses, (num, config.num_scales * channels, side, side))


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
