"""Locations in [-1, 1]^2 and pixels, and what lies beyond the border. Public: `from ram_gym.coordinates import ...`.

A location is always (x, y): x to the right, y down, (-1, -1) the canvas's top-left corner and (0, 0) its centre. A
pixel coordinate is measured from the same corner, so pixel column j covers [j, j + 1). Everything outside the
canvas is zero.

Every function takes NumPy arrays or PyTorch tensors and gives back the same kind, with the same bits: each is a chain
of single float32 operations that rounds the same way everywhere.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

__all__ = ["clip_locations", "location_to_pixel", "patch_centres", "patch_origins", "pixel_to_location"]

Array = Any
"""A NumPy array or a PyTorch tensor; functions return the kind they are given."""


def as_numpy(value: Any) -> Any:
    """A tensor as an array, whatever its device and gradient; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    try:
        return value.numpy(force=True)
    except TypeError:  # NumPy has neither bfloat16 nor float8
        return value.float().numpy(force=True)


def clip_locations(locations: Array) -> Array:
    """Locations moved to the nearest point of the canvas. Floats (..., 2) -> the same kind, in [-1, 1]."""
    return locations.clip(-1.0, 1.0)


def location_to_pixel(locations: Array, canvas_size: int) -> Array:
    """Pixel coordinates of locations. float32 (..., 2) in [-1, 1] -> float32 (..., 2) in [0, canvas_size]."""
    return (locations + 1.0) * (canvas_size / 2.0)


def pixel_to_location(pixels: Array, canvas_size: int) -> Array:
    """Locations of pixel coordinates. float32 (..., 2) in [0, canvas_size] -> float32 (..., 2) in [-1, 1]."""
    return pixels * (2.0 / canvas_size) - 1.0


def patch_origins(pixels: Array, side: int) -> Array:
    """Top-left pixels of the squares of `side` pixels that lie nearest around points.

    An even square is centred on a corner between pixels (a tie goes to the even corner), an odd one on a pixel.

    Args:
        pixels: float32 (..., 2), pixel coordinates (x, y).
        side: the squares' side in pixels.

    Returns:
        int64 (..., 2), (x, y) of the top-left pixel; negative or past the edge where the square leaves the canvas.
    """
    xp = array_namespace(pixels)
    return xp.astype(patch_centres(pixels, side), xp.int64) - side // 2


def patch_centres(pixels: Array, side: int) -> Array:
    """The pixels on which, or at whose top-left corner, the squares of `patch_origins` are centred.

    Whole numbers, float32 (..., 2).
    """
    return pixels.round() if side % 2 == 0 else array_namespace(pixels).floor(pixels)
