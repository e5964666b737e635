"""Pillow's Gaussian blur for a batch, each image with its own radius.

Own code, because torchvision's kernel is a true Gaussian, while Pillow's is three box blurs in fixed point: they differ
by several levels. Everything here equals Pillow to the last bit, on every device.
"""

import torch
from torch import Tensor

_PASSES = 3


def gaussian_blur(images: Tensor, radii: Tensor) -> Tensor:
    """Blur, as ``ImageFilter.GaussianBlur`` does.

    Args:
        images: ``uint8`` ``(B, C, H, W)``, on any device.
        radii: Standard deviation in pixels of each image, >= 0, ``(B,)`` on the CPU.

    Returns:
        ``uint8`` ``(B, C, H, W)``.

    Source:
        Gwosdek, Grewenig, Bruhn and Weickert, "Theoretical foundations of Gaussian convolution by extended box
        filtering", SSVM 2011, as Pillow's ``BoxBlur.c`` has it.

    Example:
        >>> image = torch.tensor([0, 0, 90, 0, 0], dtype=torch.uint8).view(1, 1, 1, 5)
        >>> gaussian_blur(image, torch.tensor([1.0])).flatten()
        tensor([ 5, 21, 37, 21,  5], dtype=torch.uint8)
    """
    taps = [tap.view(-1, 1, 1, 1).to(images.device, non_blocking=True) for tap in _box_weights(radii)]
    for dim in (3, 2):
        side = images.shape[dim]
        # The outermost pixels repeat beyond the edge.
        places = torch.arange(-len(taps) + 1, side + len(taps) - 1, device=images.device).clamp_(0, side - 1)
        for _ in range(_PASSES):
            images = _box_blur(images.index_select(dim, places), taps, dim)
    return images


def _box_blur(padded: Tensor, taps: list[Tensor], dim: int) -> Tensor:
    """Return one pass along ``dim``, without the padding, which is as wide as there are taps beside the middle one."""
    padded = padded.to(torch.int32)
    reach = len(taps) - 1
    side = padded.shape[dim] - 2 * reach
    # Sums may pass 2**31 and wrap around; the bits that are read are right nevertheless.
    total = (padded.narrow(dim, reach, side) * taps[0]).add_(1 << 23)
    for distance, tap in enumerate(taps[1:], start=1):
        pair = padded.narrow(dim, reach - distance, side) + padded.narrow(dim, reach + distance, side)
        total += pair.mul_(tap)
    return total.bitwise_right_shift_(24).to(torch.uint8)


def _box_weights(radii: Tensor) -> list[Tensor]:
    """Return the weights, in 2**-24, of the pixels at distance 0, 1, ... : int32 ``(B,)`` each.

    The steps and their precisions are those of ``_gaussian_blur_radius`` and ``ImagingHorizontalBoxBlur``.
    """
    radius = radii.to(torch.float32)
    variance = radius * radius / _PASSES
    length = (12 * variance.to(torch.float64) + 1).sqrt().to(torch.float32)
    whole = ((length.to(torch.float64) - 1) / 2).floor().to(torch.float32)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    box = whole + part
    reach = box.to(torch.int32)
    near = (torch.tensor(2.0**24) / (box * 2 + 1)).to(torch.int32)
    far = (2**24 - (reach * 2 + 1) * near).div_(2, rounding_mode="floor")
    distances = range(max(reach.tolist()) + 2)
    return [torch.where(reach >= distance, near, torch.where(reach + 1 == distance, far, 0)) for distance in distances]
