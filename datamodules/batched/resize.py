"""Pillow's resize for a batch, each image from its own box.

Own code, because torchvision's tensor kernels weigh and round otherwise than Pillow, by more than one grey level.
"""

from functools import lru_cache

import PIL
from PIL import Image
import torch
from torch import Tensor

from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.batched.groups import by_group, to_device
from lit_distill.preprocessing import Interpolation
from lit_distill.preprocessing import ShorterSide as PillowShorterSide

_VERTICAL_MAY_BE_FIRST = int(PIL.__version__.split(".")[0]) >= 13
_BITS = 22  # of Pillow's weights, after the point
_SMALL = 1 << 21  # entries of a table of weights that is kept: 16 MB


def resized_crop(
    images: Tensor, boxes: Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Cut a box out of each image, and resize it as ``image.crop(box).resize(size, interpolation)`` does.

    Equal to Pillow's result to the last bit: two passes, first horizontal and then vertical, with weights of 22
    fractional bits, each rounded to a grey level. (Pillow 13 takes the vertical pass first where it shrinks the height
    by more than twice as many pixels as the width.)

    Args:
        images: ``uint8`` ``(B, C, H, W)``, on any device.
        boxes: ``(top, left, height, width)`` of each image, inside it, int64 ``(B, 4)`` on the CPU.
        size: Height and width of the result.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``, the latter two with antialiasing.

    Returns:
        ``uint8`` ``(B, C, *size)``, on the device of ``images``.

    Example:
        >>> images = torch.tensor([0, 100, 200, 50], dtype=torch.uint8).view(1, 1, 1, 4)
        >>> resized_crop(images, torch.tensor([[0, 1, 1, 2]]), (1, 1), "bilinear")
        tensor([[[[150]]]], dtype=torch.uint8)
    """
    channels, height, width = images.shape[1:]
    (new_height, new_width), (tops, lefts, heights, widths) = size, boxes.T
    if interpolation == "nearest":
        rows = to_device(_nearest(height, new_height)[heights] + tops[:, None], images)
        columns = to_device(_nearest(width, new_width)[widths] + lefts[:, None], images)
        places = (rows[:, :, None] * width + columns[:, None]).flatten(1)[:, None].expand(-1, channels, -1)
        return images.flatten(2).gather(2, places).view(-1, channels, *size)
    shrunk = heights - new_height
    vertical_first = (shrunk > 0) & (shrunk > 2 * (widths - new_width)) & _VERTICAL_MAY_BE_FIRST

    def horizontally_first(part: Tensor, rows: Tensor) -> Tensor:
        return _in_two_passes(part, boxes[rows], size, interpolation)

    def vertically_first(part: Tensor, rows: Tensor) -> Tensor:
        return _in_two_passes(part.mT, boxes[rows][:, [1, 0, 3, 2]], (new_width, new_height), interpolation).mT

    return by_group(images, vertical_first.long(), [horizontally_first, vertically_first]).contiguous()


def _in_two_passes(images: Tensor, boxes: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize boxes first horizontally, then vertically."""
    batch, channels, height, width = images.shape
    (new_height, new_width), (tops, lefts, heights, widths) = size, boxes.T
    # Beyond the ends of a box the weights are 0, so it does not matter what the windows hold there.
    pixels = windows(images, tops, lefts, height, width).transpose(1, 2)
    pixels = pixels.to(torch.float64, memory_format=torch.contiguous_format)  # (B, height, C, width)
    across = _weights(widths, width, new_width, interpolation, images)
    wide = _rounded(pixels.flatten(1, 2) @ across.mT).view(batch, height, channels * new_width)
    down = _weights(heights, height, new_height, interpolation, images)
    resized = _rounded(down @ wide).to(torch.uint8)
    return resized.view(batch, new_height, channels, new_width).transpose(1, 2)


class ShorterSide:
    """Resize the shorter side of a batch, as `lit_distill.preprocessing.ShorterSide` does.

    Args:
        side: Pixels of the shorter side.
        interpolation: As of `resized_crop`.

    Example:
        >>> images = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
        >>> ShorterSide(8, "bilinear")(images, Draws(0, torch.arange(2), torch.arange(2))).shape
        torch.Size([2, 3, 8, 12])
    """

    def __init__(self, side: int, interpolation: Interpolation) -> None:
        self.side, self.interpolation = side, interpolation

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, resized; nothing is drawn."""
        height, width = images.shape[2:]
        shorter, longer = sorted((height, width))
        if shorter == self.side:
            return images
        length = self.side * longer // shorter
        size = (length, self.side) if height > width else (self.side, length)
        boxes = torch.tensor([0, 0, height, width]).expand(len(images), 4)
        resized = resized_crop(images, boxes, size, self.interpolation)
        kept = max(_resized_size(self.side, self.interpolation, height, width))
        return resized.narrow(2 if height > width else 3, (length - kept) // 2, kept)


@lru_cache(maxsize=16)
def _resized_size(side: int, interpolation: str, height: int, width: int) -> tuple[int, int]:
    """Return what the transform of a single image returns for this size; of a very long image it is the middle."""
    return PillowShorterSide(side, interpolation)(Image.new("L", (width, height))).size


def windows(
    images: Tensor, tops: Tensor, lefts: Tensor, height: int, width: int, owners: Tensor | None = None
) -> Tensor:
    """Cut windows of ``height`` x ``width`` pixels out of images.

    Args:
        images: ``(N, C, H, W)``, on any device.
        tops: First row of each window, int64 ``(B,)`` on the CPU.
        lefts: First column.
        owners: Image of each window; by default one window of each image in turn.
        height: Rows of a window; what lies below the image has arbitrary values.
        width: Columns of a window; what lies to the right of the image has arbitrary values.
    """
    batch, channels, full_height, full_width = images.shape
    spare = height * full_width + width  # for windows that reach beyond the last image
    pixels = images.contiguous().view(-1)
    inside = not batch or bool((tops + height <= full_height).all() and (lefts + width <= full_width).all())
    if not inside:
        pixels = torch.cat([pixels, pixels.new_zeros(spare)])
    # All windows that there are, which overlap in memory: whole rows are copied, without an index for each pixel.
    area = full_height * full_width
    count = len(pixels) - (channels - 1) * area - (height - 1) * full_width - (width - 1)
    every = pixels.as_strided((max(count, 0), channels, height, width), (1, area, full_width, 1))
    owners = torch.arange(batch) if owners is None else owners
    starts = owners * (channels * area) + tops * full_width + lefts
    return every.index_select(0, to_device(starts, images))


def _weights(lengths: Tensor, side: int, size: int, interpolation: str, images: Tensor) -> Tensor:
    """Return the weights for each length, integers as float64 ``(B, size, side)``, on the device of the images."""
    if (side + 1) * size * side <= _SMALL:
        return _all_weights(side, size, interpolation, images.device).index_select(0, to_device(lengths, images))
    different, which = torch.unique(lengths, return_inverse=True)
    calculated = to_device(_calculated_weights(different, side, size, interpolation), images)
    return calculated.index_select(0, to_device(which, images))


@lru_cache(maxsize=16)
def _all_weights(side: int, size: int, interpolation: str, device: torch.device) -> Tensor:
    return _calculated_weights(torch.arange(side + 1), side, size, interpolation).to(device)


def _calculated_weights(lengths: Tensor, side: int, size: int, interpolation: str) -> Tensor:
    """Return Pillow's weights of the first ``length`` of ``side`` pixels in ``size`` pixels."""
    reach, weigh = (1.0, _triangle) if interpolation == "bilinear" else (2.0, _cubic)
    length = lengths.double()[:, None, None]
    scale = length / size
    stretch = scale.clamp(min=1)
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    first = (centre - reach * stretch + 0.5).trunc().clamp(min=0)
    end = (centre + reach * stretch + 0.5).trunc().minimum(length)
    place = torch.arange(side, dtype=torch.float64)
    weights = weigh((place - centre + 0.5).mul_(1 / stretch).abs_())
    weights.masked_fill_((place < first) | (place >= end), 0)
    total = weights.cumsum(2)[..., -1:]  # in Pillow's order; sum() has another, and so other last bits
    exact = torch.where(total == 0, weights, weights / total) * (1 << _BITS)
    return (exact + torch.where(exact < 0, -0.5, 0.5)).trunc_()


def _triangle(distance: Tensor) -> Tensor:
    return torch.where(distance < 1, 1 - distance, 0.0)


def _cubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _rounded(sums: Tensor) -> Tensor:
    """Return grey levels from weighted sums, both float64, written in place."""
    return sums.add_(1 << (_BITS - 1)).mul_(0.5**_BITS).floor_().clamp_(0, 255)


@lru_cache(maxsize=16)
def _nearest(side: int, size: int) -> Tensor:
    """Return the pixel that each of ``size`` comes from, for every length up to ``side``; Pillow adds up the steps."""
    step = torch.arange(side + 1, dtype=torch.float64)[:, None] / size
    return torch.cat([0 + step * 0.5, step.expand(-1, size - 1)], dim=1).cumsum(1).long()
