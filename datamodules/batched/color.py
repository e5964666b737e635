"""Pillow's color operations for a batch, each image with its own level.

Own code, because torchvision's tensor kernels take one level for a whole batch, and weigh, round and stretch otherwise
than Pillow does. Everything here equals Pillow to the last bit, on every device: products are rounded before they are
added, and whole numbers in floats stay below 2**24.
"""

import torch
from torch import Tensor

_HIGHEST_BITS = torch.tensor([0, 128, 192, 224, 240, 248, 252, 254, 255], dtype=torch.uint8)  # 0 to 8 of them


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the levels, as ``ImageEnhance.Brightness`` does.

    Args:
        images: ``uint8`` ``(B, C, H, W)``, on any device; C is 1 or 3.
        factors: Of each image, ``(B,)``: 0 is black, 1 no change.

    Returns:
        ``uint8`` ``(B, C, H, W)``.

    Example:
        >>> images = torch.tensor([10, 200], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> brightness(images, torch.tensor([0.5, 1.5])).flatten()
        tensor([  5, 255], dtype=torch.uint8)
    """
    return _to_levels(images.to(torch.float32).mul_(_per_image(factors, images)))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move the levels away from the image's mean grey or towards it, as ``ImageEnhance.Contrast`` does.

    Args:
        images: As of `brightness`.
        factors: Of each image, ``(B,)``: 0 is the mean grey, 1 no change.

    Example:
        >>> image = torch.tensor([10, 30], dtype=torch.uint8).view(1, 1, 1, 2)
        >>> contrast(image, torch.tensor([0.5])).flatten()
        tensor([15, 25], dtype=torch.uint8)
    """
    levels = images.to(torch.float32)
    grey = _luma(levels)
    mean = grey.sum((1, 2, 3), dtype=torch.float64).div_(grey[0].numel()).add_(0.5).floor_()
    return _blend(_per_image(mean, images), levels, factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move the colors away from grey or towards it, as ``ImageEnhance.Color`` does.

    Args:
        images: As of `brightness`; images of one channel stay as they are.
        factors: Of each image, ``(B,)``: 0 is grey, 1 no change.

    Example:
        >>> image = torch.tensor([200, 100, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> saturation(image, torch.tensor([0.0])).flatten()
        tensor([118, 118, 118], dtype=torch.uint8)
    """
    if images.shape[1] == 1:
        return images
    levels = images.to(torch.float32)
    return _blend(_luma(levels), levels, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Sharpen or soften, as ``ImageEnhance.Sharpness`` does; the outermost pixels stay as they are.

    Args:
        images: As of `brightness`; images of fewer than 3 pixels a side stay as they are.
        factors: Of each image, ``(B,)``: 0 is Pillow's ``SMOOTH``, 1 no change.

    Example:
        >>> image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
        >>> image[0, 0, 1, 1] = 130
        >>> sharpness(image, torch.tensor([0.0]))[0, 0, 1]
        tensor([ 0, 50,  0], dtype=torch.uint8)
    """
    if min(images.shape[2:]) < 3:
        return images
    levels = images.to(torch.float32)
    middle = levels[..., 1:-1, 1:-1]
    rows = levels[..., :-2, :] + levels[..., 1:-1, :]
    rows += levels[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth += rows[..., 2:]
    # A thirteenth of a whole number is never near a half, so that rounding errors of floats change nothing.
    smooth.add_(middle, alpha=4).mul_(1 / 13).add_(0.5).floor_()
    result = images.clone()
    result[..., 1:-1, 1:-1] = _blend(smooth, middle, factors)
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each level, as ``ImageOps.posterize`` does.

    Args:
        images: As of `brightness`.
        bits: To keep, of each image, ``(B,)`` on the CPU: none for 0 and less, which is black; all for 8 and more.

    Example:
        >>> posterize(torch.full((3, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0, 1, 8])).flatten()
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return images & _per_image(_HIGHEST_BITS[bits.to(torch.int64).clamp_(0, 8)], images, torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the levels that are not below a threshold, as ``ImageOps.solarize`` does.

    Args:
        images: As of `brightness`.
        thresholds: Of each image, ``(B,)``: all levels are inverted for 0, none for 256.

    Example:
        >>> solarize(torch.full((2, 1, 1, 1), 200, dtype=torch.uint8), torch.tensor([201.0, 200.0])).flatten()
        tensor([200,  55], dtype=torch.uint8)
    """
    # Levels are at most 255: a threshold of 256 is the same as any above it.
    limits = _per_image(thresholds.clamp(0, 256).ceil(), images, torch.int16)
    # Bits are inverted by 255, which is minus 1. On a CPU, `torch.where` takes five times as long.
    return images ^ (images >= limits).view(torch.uint8).neg_()


def solarize_add(images: Tensor, additions: Tensor) -> Tensor:
    """Add to the levels below 128, as timm's ``solarize_add`` does.

    Args:
        images: As of `brightness`.
        additions: To each image, ``(B,)``, 0..128.

    Example:
        >>> images = torch.tensor([100, 200], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> solarize_add(images, torch.tensor([50, 50])).flatten()
        tensor([150, 200], dtype=torch.uint8)
    """
    # The sum is at most 127 + 128, which uint8 holds.
    return images + (images < 128).view(torch.uint8) * _per_image(additions, images, torch.uint8)


def invert(images: Tensor) -> Tensor:
    """Return 255 minus the levels, as ``ImageOps.invert`` does."""
    return 255 - images


def equalize(images: Tensor) -> Tensor:
    """Spread each channel's levels evenly, as ``ImageOps.equalize`` does.

    Example:
        >>> image = torch.arange(1020, dtype=torch.int32).remainder_(128).to(torch.uint8).view(1, 1, 30, 34)
        >>> equalize(image).flatten()[:4]
        tensor([0, 3, 5, 8], dtype=torch.uint8)
    """
    pixels = images.flatten(2).flatten(0, 1)
    values = pixels.to(torch.int64)
    counts = torch.zeros(len(pixels), 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(1, values, torch.ones((), dtype=torch.int32, device=images.device).expand_as(values))
    brightest = counts.gather(1, values.amax(1, keepdim=True))
    step = (pixels.shape[1] - brightest).div_(255, rounding_mode="floor")
    below = counts.cumsum(1, dtype=torch.int32) - counts
    unchanged = torch.arange(256, dtype=torch.int32, device=images.device)
    table = torch.where(step > 0, below.add_(step >> 1).div_(step.clamp(min=1), rounding_mode="floor"), unchanged)
    return table.clamp_(max=255).to(torch.uint8).gather(1, values).view_as(images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel's levels to 0..255, as ``ImageOps.autocontrast`` does.

    Example:
        >>> autocontrast(torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 3)).flatten()
        tensor([  0, 127, 255], dtype=torch.uint8)
    """
    darkest = images.amin((2, 3), keepdim=True).to(torch.float64)
    width = images.amax((2, 3), keepdim=True).to(torch.float64).sub_(darkest)
    # Not `255 / width`, which torch rounds twice. A single level stays: it is scaled by 1 and not shifted.
    flat = width == 0
    scale = torch.full_like(width, 255).div_(width).masked_fill_(flat, 1)
    return _to_levels(images.to(torch.float64).mul_(scale).sub_((darkest * scale).masked_fill_(flat, 0)))


def _per_image(values: Tensor, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one value for each image, on the images' device, to broadcast with them."""
    return values.to(dtype).to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _luma(levels: Tensor) -> Tensor:
    """Return Pillow's L of float levels ``(B, C, H, W)``, as whole floats ``(B, 1, H, W)``."""
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels.unbind(1)
    return (red * 19595 + green * 38470).add_(blue * 7471).add_(0x8000).mul_(2**-16).floor_().unsqueeze(1)


def _blend(start: Tensor, levels: Tensor, factors: Tensor) -> Tensor:
    """Return ``Image.blend`` of an image that has lost something, and the whole one."""
    return _to_levels((levels - start).mul_(_per_image(factors, levels)).add_(start))


def _to_levels(values: Tensor) -> Tensor:
    """Cut off what is no level 0..255, and what follows the point; writes to ``values``."""
    return values.clamp_(0, 255).to(torch.uint8)
