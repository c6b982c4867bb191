"""Drawn pictures of four classes that differ in shape alone, and folders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("circle", "cross", "square", "triangle")


def draw_shape(name: str, rng: np.random.Generator, side: int = 32) -> Image.Image:
    """An RGB picture of `side` pixels: a shape of a third of them somewhere, in a random colour on another one."""
    dark, light = rng.integers(0, 100, 3), rng.integers(156, 256, 3)
    back, ink = (tuple(colour.tolist()) for colour in rng.permutation([dark, light]))
    size = side // 3
    left, top = rng.integers(0, side - size + 1, 2).tolist()
    right, bottom, third = left + size - 1, top + size - 1, size // 3
    image = Image.new("RGB", (side, side), back)
    pen = ImageDraw.Draw(image)
    if name == "circle":
        pen.ellipse((left, top, right, bottom), fill=ink)
    elif name == "square":
        pen.rectangle((left, top, right, bottom), fill=ink)
    elif name == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=ink)
    else:
        pen.rectangle((left + third, top, right - third, bottom), fill=ink)
        pen.rectangle((left, top + third, right, bottom - third), fill=ink)
    return image


def write_shapes(folder: Path, each: int, seed: int = 0, side: int = 32, mode: str = "RGB") -> Path:
    """Writes `each` PNG files of every class to folder/CLASS, and gives the folder."""
    rng = np.random.default_rng(seed)
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            draw_shape(name, rng, side).convert(mode).save(folder / name / f"{number:05d}.png")
    return folder
