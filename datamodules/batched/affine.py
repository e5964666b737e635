"""Pillow's affine transforms for a batch, each image with its own matrix.

Own code, because ``F.grid_sample`` and torchvision's tensor kernels place, weigh and round otherwise than Pillow does.
"""

from collections.abc import Sequence
import math

import torch
from torch import Tensor

from lit_distill.preprocessing import Interpolation


def transform(images: Tensor, matrices: Tensor, interpolation: Interpolation, fill: Sequence[int]) -> Tensor:
    """Transform each image as ``Image.transform(size, AFFINE, matrix, interpolation, fillcolor=fill)`` does.

    The pixel ``(x, y)`` of the result shows the point ``(a x + b y + c, d x + e y + f)`` of the image, both measured
    from the upper left corner to the middles of pixels. The arithmetic is Pillow's, in its order: the result is equal
    to the last bit where neither compiler fuses multiplications with additions.

    Args:
        images: ``uint8`` ``(B, C, H, W)``, on any device.
        matrices: ``(a, b, c, d, e, f)`` of each image, float64 ``(B, 6)`` on the CPU.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"`` (a = -0.5).
        fill: Grey level 0..255 of each channel where the point lies outside the image.

    Returns:
        ``uint8`` ``(B, C, H, W)``, on the device of ``images``.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4)
        >>> transform(image, translate_x(torch.tensor([1.0])), "bilinear", fill=[9])
        tensor([[[[1, 2, 3, 9]]]], dtype=torch.uint8)
    """
    raise NotImplementedError


def rotate(degrees: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices of ``Image.rotate``: counterclockwise, about the middle.

    timm's ``rotate`` and torchvision's on a PIL image are this.

    Args:
        degrees: ``(B,)`` on the CPU.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        float64 ``(B, 6)``, as of `transform`.
    """
    raise NotImplementedError


def shear_x(factors: Tensor) -> Tensor:
    """Return the matrices of timm's ``shear_x``: float64 ``(B, 6)`` for ``factors`` ``(B,)`` on the CPU."""
    one, zero = torch.ones_like(factors), torch.zeros_like(factors)
    return torch.stack([one, factors, zero, zero, one, zero], dim=1).double()


def shear_y(factors: Tensor) -> Tensor:
    """Return the matrices of timm's ``shear_y``: float64 ``(B, 6)`` for ``factors`` ``(B,)`` on the CPU."""
    one, zero = torch.ones_like(factors), torch.zeros_like(factors)
    return torch.stack([one, zero, zero, factors, one, zero], dim=1).double()


def translate_x(pixels: Tensor) -> Tensor:
    """Return the matrices of timm's ``translate_x_abs``: float64 ``(B, 6)`` for ``pixels`` ``(B,)`` on the CPU.

    torchvision's ``"TranslateX"`` of magnitude m is ``translate_x(-int(m))``.
    """
    one, zero = torch.ones_like(pixels), torch.zeros_like(pixels)
    return torch.stack([one, zero, pixels, zero, one, zero], dim=1).double()


def translate_y(pixels: Tensor) -> Tensor:
    """Return the matrices of timm's ``translate_y_abs``: as `translate_x`."""
    one, zero = torch.ones_like(pixels), torch.zeros_like(pixels)
    return torch.stack([one, zero, zero, zero, one, pixels], dim=1).double()


def torchvision_shear_x(magnitudes: Tensor) -> Tensor:
    """Return the matrices of torchvision's policies' ``"ShearX"``, whose factor goes through degrees and back."""
    angles = [math.radians(math.degrees(math.atan(magnitude))) for magnitude in magnitudes.tolist()]
    return shear_x(torch.tensor([math.tan(angle) for angle in angles], dtype=torch.float64))


def torchvision_shear_y(magnitudes: Tensor) -> Tensor:
    """Return the matrices of torchvision's policies' ``"ShearY"``, whose factor goes through degrees and back."""
    angles = [math.radians(math.degrees(math.atan(magnitude))) for magnitude in magnitudes.tolist()]
    return shear_y(torch.tensor([math.sin(angle) / math.cos(angle) for angle in angles], dtype=torch.float64))
