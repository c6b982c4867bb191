"""Distorted copies of training images: data augmentation against overfitting.

Source: the idea of Simard, Steinkraus and Platt 2003, "Best practices for convolutional neural networks applied to
visual document analysis": a digit that is rotated, scaled, sheared, shifted and bent a little is still the same digit.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

TURN = math.radians(10)
"""Largest rotation, in radians."""
STRETCH = 0.12
"""Largest change of the width and of the height, as a share of it."""
SHEAR = 0.15
"""Largest horizontal shear: shift per height."""
SHIFT = 1.5
"""Largest shift along each axis, in pixels of a 28x28 image."""
BEND = 0.6
"""Standard deviation of the elastic displacement, in pixels of a 28x28 image."""
BENDS = 7
"""Side of the grid on which the displacement is drawn; bicubic interpolation fills the pixels between."""
BATCH_SIZE = 5_000
"""Images that are distorted at once."""


def with_distorted_copies(images: np.ndarray, copies: int, seed: int, device: str | torch.device = "cpu") -> np.ndarray:
    """The images, followed by their copies, each with its own random distortion.

    Args:
        images: uint8 (N, C, H, W).
        copies: number of distorted copies of each image.
        seed: seed of the distortions.
        device: PyTorch device to compute on; the draws do not depend on it, pixels may differ by rounding.

    Returns:
        uint8 (N * (1 + copies), C, H, W): entry i is image i, and entry i + N * k its copy number k.
    """
    generator = torch.Generator().manual_seed(seed)
    all_images = np.empty((1 + copies, *images.shape), np.uint8)
    all_images[0] = images
    for copy in range(1, 1 + copies):
        for start in range(0, len(images), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            all_images[copy, part] = distort(torch.tensor(images[part], device=device), generator).cpu().numpy()
    return all_images.reshape(-1, *images.shape[1:])


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with a random distortion; 0 outside the image. uint8 (N, C, H, W) -> uint8 (N, C, H, W).

    The generator must be on the CPU; the images may be on any device.
    """
    num, _, height, width = images.shape
    drawn = torch.rand(6, num, generator=generator).to(images.device)
    turn, *stretch, shear, shift_x, shift_y = (drawn * 2 - 1).unbind()
    angle = turn * TURN
    scale_x, scale_y = (1 + STRETCH * factor for factor in stretch)
    cos, sin, slant = angle.cos(), angle.sin(), SHEAR * shear
    # Maps coordinates in the copy to coordinates in the image, both in [-1, 1]. Differs: an exact rotation after
    # stretch and shear would have sin * scale_y for the second sin. The trained weights were trained with this matrix.
    matrix = torch.stack((cos * scale_x, cos * slant - sin, sin * scale_x, sin * slant + cos * scale_y), -1)
    shift = torch.stack((shift_x, shift_y), -1) * (SHIFT * 2 / 28)
    grid = functional.affine_grid(
        torch.cat((matrix.reshape(num, 2, 2), shift[..., None]), -1), [num, 1, height, width], align_corners=False
    )
    field = torch.randn(num, 2, BENDS, BENDS, generator=generator).to(images.device) * (BEND * 2 / 28)
    field = functional.interpolate(field, (height, width), mode="bicubic", align_corners=False)
    moved = functional.grid_sample(images.float(), grid + field.permute(0, 2, 3, 1), align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)
