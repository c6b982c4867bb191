"""What all drawings share: one palette, one look of lines, and where the patches of a path lie on the canvas.

For frames of an episode, plots and pages of a comparison, and figures of runs. Colours are "#rrggbb", as Pillow,
matplotlib and HTML take them. Loads no drawing library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ram_gym.config import GlimpseConfig
from ram_gym.coordinates import Array, location_to_pixel, patch_origins
from ram_gym.files import printable

COLOURS = ("#0077bb", "#d55e00", "#009e73", "#cc6fa5", "#8a6fd8", "#b58900", "#33a5d8", "#555555")
"""Of lines: policies or runs."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")

RIGHT, WRONG, GREY = "#00734f", "#c22f00", "#777777"
"""Of right and wrong answers, and of side notes, on a light page."""
RIGHT_ON_DARK, WRONG_ON_DARK = "#60dc78", "#ff6060"

BACKGROUND, TEXT = "#181a20", "#e6e8ee"
"""Of frames."""
PATH, FIRST = "#ffc440", "#ffffff"
"""On a canvas: the path of glimpses, and its first location."""
SCALES = ("#48caff", "#ba78ff", "#ff78be", "#ffa05a", "#a0e65a", "#7896ff")
"""On a canvas: the patches' squares, the finest first."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Of all plots, for matplotlib's `rc_context`."""


def line(number: int, *, marked: bool = False) -> dict[str, Any]:
    """How matplotlib draws the line of a number: colours first, then line styles.

    Args:
        number: 0, 1, ...
        marked: with a marker, and with a line style of its own, for those who see no colours: of few points each.
    """
    colour = COLOURS[number % len(COLOURS)]
    if marked:
        style, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        return {"color": colour, "linestyle": style, "linewidth": 1.5, "marker": marker, "markersize": 5}
    return {"color": colour, "linestyle": LINES[number // len(COLOURS) % len(LINES)], "linewidth": 1.2}


def scale_colour(scale: int) -> str:
    """The colour of the square of the patch at a scale."""
    return SCALES[scale % len(SCALES)]


def short_name(name: str, longest: int) -> str:
    """A name that can be drawn: printable, and only its end if it is too long."""
    name = printable(name)
    return name if len(name) <= longest else "…" + name[1 - longest :]


def class_name(label: int | None, class_names: Sequence[str] | None, longest: int = 24) -> str:
    """What a drawing calls a class: its name, or its number where it has none; only the beginning if it is too long."""
    if label is None or class_names is None:
        return str(label)
    name = printable(class_names[label])
    return name if len(name) <= longest else name[: longest - 1] + "…"


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """A grey or colour picture as colours. (C, H, W), C 1 or 3 -> (H, W, 3), a view."""
    return np.broadcast_to(np.moveaxis(pixels, 0, -1), (*pixels.shape[1:], 3))


def path_and_corners(locations: Array, config: GlimpseConfig, scale: int = 0) -> tuple[Array, Array]:
    """Where a path and the squares of its patches lie on the canvas.

    Args:
        locations: float32 (T, 2) in [-1, 1].
        config: canvas size, and the patches' sides.
        scale: which patches.

    Returns:
        In canvas pixels, of the locations' kind: the points, float32 (T, 2), and the squares' top-left corners, int64
        (T, 2).
    """
    points = location_to_pixel(locations, config.canvas_size)
    return points, patch_origins(points, config.patch_side(scale))
