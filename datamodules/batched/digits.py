"""The augmentation of the digits, for a batch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill.datamodules.batched.draws import DIGITS, Draws
from lit_distill.datamodules.batched.groups import to_device

# Degrees, pixels to the right and down, size, degrees: those of `lit_distill.datamodules.DigitsDataModule`.
_LEAST = torch.tensor([-10, -0.8, -0.8, 0.9, -5], dtype=torch.float64)
_SPREAD = torch.tensor([10, 0.8, 0.8, 1.1, 5], dtype=torch.float64) - _LEAST


def move_digits(images: Tensor, draws: Draws) -> Tensor:
    """Move, turn, shear and scale each digit a little, as ``v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 5)`` does.

    Args:
        images: Float ``(B, 1, 8, 8)``, on any device.
        draws: Of the batch.

    Returns:
        The same shape and type; what comes from outside an image is 0.

    Example:
        >>> images = torch.ones(2, 1, 8, 8)
        >>> move_digits(images, Draws(0, torch.arange(2), torch.arange(2))).shape
        torch.Size([2, 1, 8, 8])
    """
    return transform_digits(images, _LEAST + _SPREAD * draws.uniform(DIGITS, 5))


def transform_digits(images: Tensor, parameters: Tensor) -> Tensor:
    """Move, turn, shear and scale each digit as its parameters say.

    Args:
        images: Float ``(B, 1, 8, 8)``, on any device.
        parameters: Degrees of the turn, pixels to the right and down, which are rounded, size, and degrees of the
            shear: float64 ``(B, 5)`` on the CPU.
    """
    angle, x, y, scale, shear = parameters.T
    x, y = x.round(), y.round()
    turn, lean = angle * (math.pi / 180), (shear * (math.pi / 180)).tan()
    # From a pixel of the result to its place in the image, in halves of a side: the inverse of all four.
    cos, sin = turn.cos() / (4 * scale), turn.sin() / (4 * scale)
    a, b, c, d = cos - lean * sin, sin + lean * cos, -sin, cos
    coefficients = torch.stack([a, b, -a * x - b * y, c, d, -c * x - d * y]).float()
    a, b, x, c, d, y = to_device(coefficients, images)[:, :, None, None]
    right = torch.linspace(-3.5, 3.5, 8, device=images.device)
    down = right[:, None]
    # No matrix product: its last bits could depend on the batch, and TF32 would round the places.
    grid = torch.stack([a * right + b * down + x, c * right + d * down + y], dim=-1)
    both = torch.cat([images, torch.ones_like(images)], dim=1)
    moved = F.grid_sample(both, grid, padding_mode="zeros", align_corners=False)
    return moved[:, :1] * moved[:, 1:]
