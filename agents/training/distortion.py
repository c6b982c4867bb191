"""Distorted copies of training images, for networks that would learn 50,000 digits by heart.

Source: the idea is that of Simard, Steinkraus and Platt 2003 ("Best practices for convolutional neural networks applied
to visual document analysis"): handwriting, turned, scaled, sheared, shifted and bent a little, is handwriting still.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

TURN = math.radians(10)
"""Largest angle."""
STRETCH = 0.12
"""Largest change of the width, and of the height, as a share."""
SHEAR = 0.15
"""Largest shear, in widths for a height."""
SHIFT = 1.5
"""Largest shift along each axis, in pixels of a 28x28 image."""
BEND = 0.6
"""Standard deviation of the bending field, in pixels of a 28x28 image."""
BENDS = 7
"""The bending field is drawn on a grid of as many points a side and is smooth between them."""
AT_ONCE = 5_000


def with_distorted_copies(images: np.ndarray, copies: int, seed: int, device: str | torch.device = "cpu") -> np.ndarray:
    """Images, and behind them all of their copies, each distorted in its own way.

    Args:
        images: uint8 (N, C, H, W).
        copies: number of distorted copies of each.
        seed: of the distortions.
        device: where they are computed; the draws are the same, the pixels may differ by rounding.

    Returns:
        uint8 (N * (1 + copies), C, H, W); entry i + N * k is a copy of image i, for k = 0 the image itself.
    """
    generator = torch.Generator().manual_seed(seed)
    found = np.empty((1 + copies, *images.shape), np.uint8)
    found[0] = images
    for copy in range(1, 1 + copies):
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            found[copy, part] = distort(torch.tensor(images[part], device=device), generator).cpu().numpy()
    return found.reshape(-1, *images.shape[1:])


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image once, distorted; what lies outside an image is 0. uint8 (N, C, H, W) -> the same.

    The generator is of the CPU, wherever the images are.
    """
    num, _, height, width = images.shape
    drawn = torch.rand(6, num, generator=generator).to(images.device)
    turn, *stretch, shear, shift_x, shift_y = (drawn * 2 - 1).unbind()
    angle = turn * TURN
    scale_x, scale_y = (1 + STRETCH * each for each in stretch)
    cos, sin, slant = angle.cos(), angle.sin(), SHEAR * shear
    # From places in the copy to places in the image, both in [-1, 1]. Almost a stretch and shear and then a turn: that
    # would have sin * scale_y for the second sin. The trained networks here have seen this.
    matrix = torch.stack((cos * scale_x, cos * slant - sin, sin * scale_x, sin * slant + cos * scale_y), -1)
    shift = torch.stack((shift_x, shift_y), -1) * (SHIFT * 2 / 28)
    grid = functional.affine_grid(
        torch.cat((matrix.reshape(num, 2, 2), shift[..., None]), -1), [num, 1, height, width], align_corners=False
    )
    field = torch.randn(num, 2, BENDS, BENDS, generator=generator).to(images.device) * (BEND * 2 / 28)
    field = functional.interpolate(field, (height, width), mode="bicubic", align_corners=False)
    moved = functional.grid_sample(images.float(), grid + field.permute(0, 2, 3, 1), align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)
