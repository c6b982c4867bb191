"""Pictures of an episode: the canvas with the path and the patches' squares, and what the agent sees."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ram_gym import drawing
from ram_gym.config import GlimpseConfig
from ram_gym.coordinates import location_to_pixel
from ram_gym.files import write_file

CANVAS_PIXELS = 420
"""The drawn canvas is as near to this many pixels wide as a whole number of pixels per canvas pixel allows."""
_MARGIN, _CAPTION = 12, 34


def render_frame(
    canvas: np.ndarray,
    path: np.ndarray,
    glimpse: np.ndarray,
    config: GlimpseConfig,
    prediction: int | None = None,
    label: int | None = None,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """One frame of an episode.

    Args:
        canvas: uint8 (C, S, S).
        path: float32 (t, 2), the locations looked at so far, the current one last.
        glimpse: float32 (K * C, P, P) in [0, 1], taken at the last of them.
        config: the environment's.
        prediction: the answer, once given.
        label: the right answer; shown with the prediction.
        class_names: names of the labels; None shows their numbers.

    Returns:
        uint8 (height, width, 3), writable; the same size for every frame of one environment.
    """
    from PIL import Image, ImageDraw

    size = config.canvas_size
    zoom = max(1, round(CANVAS_PIXELS / size))
    side = size * zoom
    top, left = _MARGIN + _CAPTION, _MARGIN
    gap = 8
    scales = config.num_scales
    # Patches stand in one column beside the canvas, or in as many as keep them from getting tiny.
    columns = 1 if scales <= 4 else 2
    rows = -(-scales // columns)
    patch_zoom = max(1, min((side - (rows - 1) * gap) // rows, side // 2) // config.patch_size)
    patch_side = patch_zoom * config.patch_size
    width = left + side + 2 * _MARGIN + columns * patch_side + (columns - 1) * gap + _MARGIN
    height = max(side, rows * patch_side + (rows - 1) * gap)
    image = Image.new("RGB", (width, top + height + _MARGIN), drawing.BACKGROUND)
    draw = ImageDraw.Draw(image)

    image.paste(_picture(canvas, zoom), (left, top))
    overlay = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(overlay)
    for scale in reversed(range(scales)):
        patch = config.patch_side(scale)
        x, y = (drawing.path_and_corners(path[-1:], config, scale)[1][0] * zoom).tolist()
        box = (x, y, x + patch * zoom - 1, y + patch * zoom - 1)
        pen.rectangle(box, outline=drawing.scale_colour(scale), width=3)
    image.paste(overlay, (left, top), overlay)
    # On the frame itself, not on the overlay, so that marks at the canvas's edge are whole.
    points = [(left + x * zoom, top + y * zoom) for x, y in location_to_pixel(path, size).tolist()]
    if len(points) > 1:
        draw.line(points, fill=drawing.PATH, width=2)
    for number, (x, y) in enumerate(points):
        is_last = number == len(points) - 1
        radius = 7 if is_last else 4
        fill = drawing.PATH if is_last else drawing.FIRST if number == 0 else drawing.BACKGROUND
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=drawing.PATH, width=2)

    channels = canvas.shape[0]
    patches = np.rint(glimpse * 255).astype(np.uint8).reshape(scales, channels, *glimpse.shape[1:])
    for scale in range(scales):
        column, row = divmod(scale, rows)
        x = left + side + 2 * _MARGIN + column * (patch_side + gap)
        y = top + row * (patch_side + gap)
        image.paste(_picture(patches[scale], patch_zoom), (x, y))
        draw.rectangle(
            (x - 3, y - 3, x + patch_side + 2, y + patch_side + 2), outline=drawing.scale_colour(scale), width=3
        )

    caption, colour = f"glimpse {len(path)} of {config.num_glimpses}", drawing.TEXT
    if prediction is not None:
        is_right = prediction == label
        answer, right = (drawing.class_name(number, class_names, 14) for number in (prediction, label))
        caption = f"answer {answer}: right" if is_right else f"answer {answer}: wrong, it is {right}"
        colour = drawing.RIGHT_ON_DARK if is_right else drawing.WRONG_ON_DARK
    draw.text((left, _MARGIN - 2), caption, fill=colour, font=_font())
    return np.array(image)  # a copy: np.asarray gives a read-only array


def save_gif(
    frames: list[np.ndarray], path: str | os.PathLike[str], milliseconds: int = 500, last_milliseconds: int = 1500
) -> None:
    """Writes frames as an endless GIF; frames that end an episode may be repeated to be seen longer.

    Args:
        frames: uint8 (height, width, 3), all of one size.
        path: the file, written whole or not at all; its folder is made if need be.
        milliseconds: how long each frame is shown.
        last_milliseconds: how long the last one is shown.

    Raises:
        ValueError: there are no frames.
        OSError: the file cannot be written.
    """
    from PIL import Image

    if not frames:
        raise ValueError("frames must hold at least one picture, got none")
    images = [Image.fromarray(frame).quantize(64, method=Image.Quantize.MEDIANCUT) for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [last_milliseconds]
    file = io.BytesIO()
    images[0].save(file, save_all=True, append_images=images[1:], duration=durations, loop=0, format="GIF")
    write_file(path, file.getvalue())


def _picture(pixels: np.ndarray, zoom: int) -> Any:
    """uint8 (C, H, W), C 1 or 3, as an RGB image of H * zoom by W * zoom pixels."""
    from PIL import Image

    return Image.fromarray(drawing.as_rgb(pixels).repeat(zoom, axis=0).repeat(zoom, axis=1))


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=22)
