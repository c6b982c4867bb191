"""Scenes: which picture an episode shows, as a pure function of (dataset, split, image index, scene seed).

And of the task's canvas, clutter and composition: another canvas is another picture.

Every random choice is a counter-based hash in 64-bit integer arithmetic, which NumPy and PyTorch compute alike, so
scene 17 of the test split is the same picture in every environment, batch, device and library. The hash is the output
function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from ram_gym.config import SPLITS, GlimpseConfig
from ram_gym.coordinates import Array, as_numpy, pixel_to_location

# Draw numbers: what each number drawn for a scene is used for. Those of clutter piece j follow CLUTTER + 5 * j, so a
# scene with more clutter has the same digit and the same first pieces.
DIGIT, CLUTTER = 0, 1_000
LOCATION = 2_000_000_000
EPISODE_INDEX, EPISODE_SCENE_SEED = 3_000_000_000, 3_000_000_001


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _mix(z: Array) -> Array:
    """SplitMix64's bijection of 64-bit numbers, held as int64. The masks make arithmetic shifts logical ones."""
    z = _wrap((z ^ ((z >> 30) & (2**34 - 1))) * _MULTIPLIER_1)
    z = _wrap((z ^ ((z >> 27) & (2**37 - 1))) * _MULTIPLIER_2)
    return z ^ ((z >> 31) & (2**33 - 1))


def _wrap(z: Array) -> Array:
    """Python's integers do not wrap around; arrays did already."""
    return _signed(z & (2**64 - 1)) if isinstance(z, int) else z


def hash_with(keys: Array, numbers: Array) -> Array:
    """New keys from keys and numbers, each int64 (...) or an int: int64 (...) or an int, all 64 bits random."""
    if isinstance(numbers, int):
        return _mix(_wrap(keys + _signed((numbers + 1) * _GOLDEN & (2**64 - 1))))
    return _mix(keys + (numbers + 1) * _GOLDEN)


def draw_integers(keys: Array, draw: Array, bound: Array) -> Array:
    """Uniform integers in [0, bound), shaped like the keys. `bound` is below 2^31, the bias at most bound / 2^31."""
    return (((hash_with(keys, draw) >> 33) & (2**31 - 1)) * bound) >> 31


NUMPY_UP_TO = 2048
"""How many scenes on the host at most are drawn with NumPy though tensors come in. Drawing is tens of operations on few
numbers, each of which NumPy starts in less than half of PyTorch's time; with more scenes PyTorch may use threads."""

Draw = TypeVar("Draw", bound=Callable[..., Any])


def _in_numpy_if_few(draw: Draw) -> Draw:
    """Draws for few scenes on the host with NumPy: the same numbers, sooner."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        first: Any = args[0] if args else None
        is_on_host = is_torch_array(first) and first.device.type == "cpu"
        if not is_on_host or not first.ndim or first.numel() > NUMPY_UP_TO:
            return draw(*args, **kwargs)
        from torch import from_numpy

        arrays = draw(*map(as_numpy, args), **{name: as_numpy(value) for name, value in kwargs.items()})
        if not isinstance(arrays, tuple):
            return from_numpy(arrays)
        return Placement(*map(from_numpy, arrays)) if isinstance(arrays, Placement) else tuple(map(from_numpy, arrays))

    return cast(Draw, drawn)


@_in_numpy_if_few
def scene_keys(indices: Array, scene_seeds: Array, split: str) -> Array:
    """The keys that all draws of scenes start from. int64 (N,), int64 (N,) -> int64 (N,), or ints -> int."""
    return hash_with(hash_with(hash_with(scene_seeds, 0), SPLITS.index(split)), indices)


@_in_numpy_if_few
def episode_scenes(keys: Array, episodes: Array, num_images: int) -> tuple[Array, Array]:
    """The image index and the fresh scene seed of each environment's next episode.

    Args:
        keys: int64 (N,) or int, the environments' seeds.
        episodes: int64 (N,) or int, how many episodes each has begun since it was seeded.
        num_images: number of images in the split.

    Returns:
        indices in [0, num_images) and scene seeds in [0, 2^31), int64 (N,) or int.
    """
    keys = hash_with(hash_with(keys, EPISODE_INDEX), episodes)
    return draw_integers(keys, 0, num_images), draw_integers(keys, EPISODE_SCENE_SEED, 2**31 - 1)


@_in_numpy_if_few
def first_locations(keys: Array, rollout: Array | int = 0) -> Array:
    """Uniformly random first locations of scenes. int64 (N,) -> float32 (N, 2) in [-1, 1); an int -> float32 (2,).

    Args:
        keys: int64 (N,), or an int, from `scene_keys`.
        rollout: int or int64 (N,); different rollouts of the same scene begin at different places. Environments
            use rollout 0.
    """
    if isinstance(keys, int):
        drawn = [(hash_with(keys, draw + 2 * rollout) >> 40) & (2**24 - 1) for draw in (LOCATION, LOCATION + 1)]
        return np.array([number - 2**23 for number in drawn], np.float32) * np.float32(2.0**-23)
    xp = array_namespace(keys)
    draws, _ = _pairs((LOCATION, LOCATION + 1), (0, 0), xp, device(keys))
    if not isinstance(rollout, int):
        rollout = rollout[:, None]
    drawn = (hash_with(keys[:, None], draws + 2 * rollout) >> 40) & (2**24 - 1)
    return xp.astype(drawn - 2**23, xp.float32) * 2.0**-23


class Placement(NamedTuple):
    """Where everything of N scenes lies, in pixels; J pieces of clutter. All int64."""

    digit: Array
    """(N, 2), (x, y) of the image's top-left pixel on the canvas."""
    clutter_source: Array
    """(N, J), index of the image each piece is cut from, never the scene's own."""
    clutter_crop: Array
    """(N, J, 2), (x, y) of the piece's top-left pixel in its image."""
    clutter: Array
    """(N, J, 2), (x, y) of the piece's top-left pixel on the canvas."""


def are_images(image_shape: tuple[int, ...], config: GlimpseConfig) -> bool:
    """Whether a scene is an image and nothing else: there is no clutter, and one place where it fits, (0, 0)."""
    return not config.num_clutter and fill_canvas(image_shape, config)


def fill_canvas(image_shape: tuple[int, ...], config: GlimpseConfig) -> bool:
    """Whether images are as large as the canvas. Images of the caller's own are scenes then, ready made."""
    return image_shape[2] == image_shape[3] == config.canvas_size


@_in_numpy_if_few
def place(indices: Array, keys: Array, image_shape: tuple[int, ...], config: GlimpseConfig) -> Placement:
    """Draws the places of digits and clutter, each uniform over all places that fit, edges included.

    Args:
        indices: int64 (N,), the images shown.
        keys: int64 (N,), from `scene_keys`.
        image_shape: shape (num_images, C, H, W) of the split's images.
        config: canvas and clutter sizes.
    """
    num_images, _, height, width = image_shape
    size, piece, num = config.canvas_size, config.clutter_size, config.num_clutter
    xp = array_namespace(keys)
    if are_images(image_shape, config):
        none = xp.zeros((keys.shape[0], 0, 2), dtype=xp.int64, device=device(keys))
        return Placement(xp.zeros((keys.shape[0], 2), dtype=xp.int64, device=device(keys)), none[..., 0], none, none)
    draws = [DIGIT, DIGIT + 1]
    bounds = [size - width + 1, size - height + 1]
    for first in range(CLUTTER, CLUTTER + 5 * num, 5):
        draws += range(first, first + 5)
        bounds += [max(num_images - 1, 1), width - piece + 1, height - piece + 1, size - piece + 1, size - piece + 1]
    # All numbers of all scenes at once, (N, 2 + 5 J).
    drawn = draw_integers(keys[:, None], *_pairs(tuple(draws), tuple(bounds), xp, device(keys)))
    pieces = xp.reshape(drawn[:, 2:], (drawn.shape[0], num, 5))
    source = (indices[:, None] + 1 + pieces[..., 0]) % num_images
    return Placement(drawn[:, :2], source, pieces[..., 1:3], pieces[..., 3:])


@lru_cache(maxsize=64)
def _pairs(draws: tuple[int, ...], bounds: tuple[int, ...], xp: Any, where: Any) -> tuple[Array, Array]:
    """Draw numbers and their bounds as arrays, int64, kept: they are the same for every batch."""
    return xp.asarray(draws, dtype=xp.int64, device=where), xp.asarray(bounds, dtype=xp.int64, device=where)


def digit_locations(placement: Placement, image_shape: tuple[int, ...], config: GlimpseConfig) -> Array:
    """Locations of the images' centres, which no observation tells. float32 (N, 2) in [-1, 1]."""
    xp = array_namespace(placement.digit)
    pixels = xp.astype(placement.digit, xp.float32)
    height, width = image_shape[2:]
    pixels = xp.stack((pixels[:, 0] + width / 2, pixels[:, 1] + height / 2), axis=-1)
    return pixel_to_location(pixels, config.canvas_size)


def compose(
    images: Array, indices: Array, placement: Placement, config: GlimpseConfig, out: Array | None = None
) -> Array:
    """The scenes' canvases.

    Clutter pieces are summed; the digit is added to them and the sum clipped at 255 (composition "add": clutter may
    cover the digit), or the digit's box replaces what is under it ("overwrite").

    Args:
        images: uint8 (num_images, C, H, W), the split's images.
        indices: int64 (N,), the images shown.
        placement: from `place`.
        config: canvas size, clutter size and composition.
        out: integers (N, C, S, R), a canvas's rows without gaps: where to put the canvases, in the first S of R
            columns. The others must be zero, and stay it.

    Returns:
        The first S columns of `out`; without it uint8 (N, C, S, S).
    """
    xp = array_namespace(images)
    num, size, piece = indices.shape[0], config.canvas_size, config.clutter_size
    channels, height, width = images.shape[1:]
    digits = _take(images, indices)  # (N, C, H, W)
    if are_images(images.shape, config):
        if out is None:
            return digits
        out[..., :size] = digits
        return out[..., :size]
    # The sum of all pieces and the digit, unclipped, has to fit.
    largest = 255 * (config.num_clutter + 1)
    if out is not None and xp.iinfo(out.dtype).max >= largest:
        sums = out
        sums[...] = 0
    else:
        dtype = xp.int16 if largest < 2**15 else xp.int32
        sums = xp.zeros((num, channels, size, size), dtype=dtype, device=device(images))
    columns = sums.shape[-1]
    if config.num_clutter:
        sources = placement.clutter_source[..., None] * (channels * height * width)
        crops = xp.reshape(sources + _box_places(placement.clutter_crop, width, piece, piece), (-1,))
        places = xp.reshape(_box_places(placement.clutter, columns, piece, piece), (num, -1))
    box = _box_places(placement.digit, columns, height, width)
    for channel in range(channels):
        flat = _rows_as_one(sums[:, channel])
        if config.num_clutter:
            pieces = _take(xp.reshape(images, (-1,)), crops + channel * height * width if channel else crops)
            _add_at(flat, places, xp.astype(xp.reshape(pieces, (num, -1)), sums.dtype))
        put = _add_at if config.num_clutter and config.composition == "add" else _put_at
        put(flat, box, xp.astype(xp.reshape(digits[:, channel], (num, -1)), sums.dtype))
    if config.num_clutter:
        _cap(sums)
    if out is None:
        return xp.astype(sums, xp.uint8)
    if sums is not out:
        out[..., :size] = sums
    return out[..., :size]


def _box_places(origins: Array, columns: int, height: int, width: int) -> Array:
    """Flat indices of boxes in canvases whose rows have `columns`. int64 (..., 2) -> int64 (..., height * width)."""
    inside = _box(columns, height, width, array_namespace(origins), device(origins))
    return (origins[..., 1] * columns + origins[..., 0])[..., None] + inside


@lru_cache(maxsize=64)
def _box(columns: int, height: int, width: int, xp: Any, where: Any) -> Array:
    """Flat indices of the box whose top-left pixel is (0, 0). int64 (height * width,)."""
    y, x = (xp.arange(n, dtype=xp.int64, device=where) for n in (height, width))
    return xp.reshape(y[:, None] * columns + x, (-1,))


# Scatter has no place in the array API standard yet, and `take` of PyTorch is slow where indices may be negative, so
# these are written twice, like a cap without the checks of array_api_compat; the parity tests cover both.
def _take(table: Array, indices: Array) -> Array:
    """Rows of a table at indices (M,)."""
    return table.index_select(0, indices) if is_torch_array(table) else table.take(indices, axis=0)


def _rows_as_one(canvases: Array) -> Array:
    """Canvases (N, S, R), whose rows have no gaps, as (N, S * R); the same memory, never a copy."""
    shape = (len(canvases), canvases.shape[1] * canvases.shape[2])
    if is_torch_array(canvases):
        return canvases.view(shape)
    return array_namespace(canvases).reshape(canvases, shape, copy=False)


def _add_at(flat: Array, places: Array, values: Array) -> None:
    """Adds values (N, M) to `flat` (N, L) at places (N, M), in place; repeated places add up."""
    if is_torch_array(flat):
        flat.scatter_add_(1, places, values)
    else:
        xp = array_namespace(flat)
        xp.add.at(flat, (xp.arange(flat.shape[0])[:, None], places), values)


def _put_at(flat: Array, places: Array, values: Array) -> None:
    """Writes values (N, M) to `flat` (N, L) at places (N, M), in place; no place is repeated within a row."""
    if is_torch_array(flat):
        flat.scatter_(1, places, values)
    else:
        array_namespace(flat).put_along_axis(flat, places, values, axis=1)


def _cap(sums: Array) -> None:
    """Makes whatever is above 255 be it, in place."""
    if is_torch_array(sums):
        sums.clamp_(max=255)
    else:
        array_namespace(sums).minimum(sums, 255, out=sums)
