"""Scenes: which picture an episode shows, as a pure function of (dataset, split, image index, scene seed).

Every random choice is a counter-based hash in 64-bit integer arithmetic, which NumPy and PyTorch compute alike, so
scene 17 of the test split is the same picture in every environment, batch, device and library. The hash is the output
function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device, is_torch_array

from ram_gym.config import SPLITS, GlimpseConfig
from ram_gym.coordinates import Array, pixel_to_location

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


def scene_keys(indices: Array, scene_seeds: Array, split: str) -> Array:
    """The keys that all draws of scenes start from. int64 (N,), int64 (N,) -> int64 (N,), or ints -> int."""
    return hash_with(hash_with(hash_with(scene_seeds, 0), SPLITS.index(split)), indices)


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


def first_locations(keys: Array, rollout: Array | int = 0) -> Array:
    """Uniformly random first locations of scenes. int64 (N,) -> float32 (N, 2) in [-1, 1).

    Args:
        keys: int64 (N,), from `scene_keys`.
        rollout: int or int64 (N,); different rollouts of the same scene begin at different places. Environments
            use rollout 0.
    """
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
    if not num and height == width == size:  # one place fits, (0, 0)
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


def compose(images: Array, indices: Array, placement: Placement, config: GlimpseConfig) -> Array:
    """The scenes' canvases.

    Clutter pieces are summed; the digit is added to them and the sum clipped at 255 (composition "add": clutter may
    cover the digit), or the digit's box replaces what is under it ("overwrite").

    Args:
        images: uint8 (num_images, C, H, W), the split's images.
        indices: int64 (N,), the images shown.
        placement: from `place`.
        config: canvas size, clutter size and composition.

    Returns:
        uint8 (N, C, S, S).
    """
    xp = array_namespace(images)
    _, channels, height, width = images.shape
    size, piece, num = config.canvas_size, config.clutter_size, indices.shape[0]
    digits = _take(images, indices)  # (N, C, H, W)
    if not config.num_clutter and height == width == size:
        return digits
    # The sum of all pieces and the digit, unclipped, has to fit.
    dtype = xp.int16 if 255 * (config.num_clutter + 1) < 2**15 else xp.int32
    flat = xp.zeros((num, channels * size * size), dtype=dtype, device=device(images))
    if config.num_clutter:
        crops = _box_indices(placement.clutter_crop, channels, height, width, piece, piece)  # (N, J, C * piece^2)
        crops = placement.clutter_source[..., None] * (channels * height * width) + crops
        pieces = xp.astype(_take(xp.reshape(images, (-1,)), xp.reshape(crops, (-1,))), dtype)
        places = _box_indices(placement.clutter, channels, size, size, piece, piece)
        _add_at(flat, xp.reshape(places, (num, -1)), xp.reshape(pieces, (num, -1)))
    box = _box_indices(placement.digit, channels, size, size, height, width)  # (N, C * H * W)
    values = xp.astype(xp.reshape(digits, (num, -1)), dtype)
    if config.composition == "add":
        _add_at(flat, box, values)
    else:
        _put_at(flat, box, values)
    return xp.reshape(xp.astype(xp.clip(flat, 0, 255), xp.uint8), (num, channels, size, size))


def _box_indices(origins: Array, channels: int, rows: int, columns: int, height: int, width: int) -> Array:
    """Flat indices of boxes in (channels, rows, columns) arrays. int64 (..., 2) -> int64 (..., C * height * width)."""
    inside = _box(channels, rows * columns, columns, height, width, array_namespace(origins), device(origins))
    return (origins[..., 1] * columns + origins[..., 0])[..., None] + inside


@lru_cache(maxsize=64)
def _box(channels: int, area: int, columns: int, height: int, width: int, xp: Any, where: Any) -> Array:
    """Flat indices of the box whose top-left pixel is (0, 0). int64 (channels * height * width,)."""
    y, x, c = (xp.arange(n, dtype=xp.int64, device=where) for n in (height, width, channels))
    return xp.reshape(c[:, None, None] * area + y[:, None] * columns + x, (-1,))


# Scatter has no place in the array API standard yet, and `take` of PyTorch is slow where indices may be negative, so
# these three are written twice; the parity tests cover both.
def _take(table: Array, indices: Array) -> Array:
    """Rows of a table at indices (M,)."""
    return table.index_select(0, indices) if is_torch_array(table) else table.take(indices, axis=0)


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
