"""One image file as an array, and what is refused: each error names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ram_gym.files import printable
from ram_gym.sources import DatasetError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of image files, in any case; those of torchvision's ImageFolder."""

Result = TypeVar("Result")


def read_bytes(path: str) -> bytes:
    """What a file holds."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error


def has_colours(path: str) -> bool:
    """Whether an image file has more than grey; reads its header only."""
    return _with_image(path, lambda image: image.mode not in ("1", "L", "LA") and not image.mode.startswith("I"))


def read_image(path: str, channels: int, image_size: int | None) -> np.ndarray:
    """An image file as uint8 (C, H, W).

    Raises:
        DatasetError: it is damaged or no image, or of a form that has no such array; the message names it.
    """

    def read(image: Any) -> np.ndarray:
        from PIL import ImageOps

        if problem := _problem(image):
            raise DatasetError(f"{path} {problem}")
        ImageOps.exif_transpose(image, in_place=True)
        picture = image.convert("L" if channels == 1 else "RGB")
        if image_size is not None and picture.size != (image_size, image_size):
            picture = resize(picture, image_size)
        pixels = np.asarray(picture)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    return _with_image(path, read)


def _with_image(path: str, use: Callable[[Any], Result]) -> Result:
    """What a function makes of the Pillow image in a file; its errors name the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return use(image)
    except DatasetError:
        raise
    except Exception as error:  # broken files raise errors of many kinds
        why = "it is no image that Pillow reads" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DatasetError(f"{path} cannot be read: {printable(str(why))}") from error


def _problem(image: Any) -> str:
    """Why an image has no array of 8-bit grey or colours; empty if it has."""
    if image.mode.startswith("I") or any(_is_deep(tile) for tile in image.tile):
        return "has 16 or more bits a channel; save it with 8"
    if image.has_transparency_data and not (
        image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255)
    ):
        return "has transparent pixels; save it on a background, as grey or RGB"
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        return f"has mode {image.mode!r}; save it as grey or RGB"
    return ""


def _is_deep(tile: Any) -> bool:
    """Whether part of a file has more than 8 bits a channel, of which Pillow would read 8 only."""
    codec, *_, arguments = tile
    largest = arguments[-1] if codec.startswith("ppm") and isinstance(arguments, tuple) else 0
    return ";16" in str(arguments) or (isinstance(largest, int) and largest > 255)


def resize(picture: Any, image_size: int) -> Any:
    """A Pillow image as a square one of that side; its aspect ratio is not kept.

    Bilinear over the area of each new pixel, as torchvision's Resize, in Pillow's integer arithmetic.
    """
    from PIL.Image import Resampling

    return picture.resize((image_size, image_size), Resampling.BILINEAR)
