"""Random crops and flips of a batch.

Own code, because torchvision draws one crop for a whole batch.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_distill.datamodules.batched.draws import CROP, FLIP, Draws, integers
from lit_distill.datamodules.batched.groups import by_group
from lit_distill.datamodules.batched.resize import resized_crop, windows
from lit_distill.preprocessing import Interpolation

_ATTEMPTS = 10  # of v2.RandomResizedCrop to find a box inside the image


class PaddedCrop:
    """Cut ``size`` x ``size`` pixels out of each padded image, as ``v2.RandomCrop(size, padding)`` does.

    Args:
        size: Side of the crop in pixels.
        padding: Pixels on each side.
        padding_mode: ``"constant"``, which is black, or ``"reflect"``.
        hflip: Probability of a flip from left to right: the same images as from `HorizontalFlip` after the crop, in
            less time on a CPU.

    Example:
        >>> images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
        >>> PaddedCrop(32, padding=4)(images, Draws(0, torch.arange(2), torch.arange(2))).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, size: int, padding: int, padding_mode: Literal["constant", "reflect"] = "constant", hflip: float = 0.0
    ) -> None:
        self.size, self.padding, self.padding_mode, self.hflip = size, padding, padding_mode, hflip

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the crops.

        Raises:
            ValueError: If a padded image is smaller than the crop.
        """
        padded = self._padded(images)
        height, width = padded.shape[2:]
        if min(height, width) < self.size:
            raise ValueError(f"images with their padding must have at least {self.size} px, got {height} x {width}")
        tops, lefts = draws.uniform(CROP, 2).T
        tops, lefts = integers(tops, height - self.size + 1), integers(lefts, width - self.size + 1)
        if not self.hflip:
            return windows(padded, tops, lefts, self.size, self.size)
        # Each window is copied once, from the image or from its mirror image.
        flips = _flips(draws, self.hflip)
        owners = torch.arange(len(images)) + len(images) * flips
        lefts = torch.where(flips, width - self.size - lefts, lefts)
        return windows(padded, tops, lefts, self.size, self.size, owners)

    def _padded(self, images: Tensor) -> Tensor:
        """Return the padded images, and then their mirror images if any are flipped."""
        sources = [images, images.flip(3)] if self.hflip else [images]
        (batch, channels, height, width), edge = images.shape, self.padding
        if self.padding_mode == "reflect" and edge:
            stacked = torch.cat(sources).index_select(2, _reflected(height, edge, images))
            columns = _reflected(width, edge, images)
            ends = [stacked.index_select(3, end) for end in (columns[:edge], columns[-edge:])]
            return torch.cat([ends[0], stacked, ends[1]], dim=3)
        padded = images.new_zeros(len(sources), batch, channels, height + 2 * edge, width + 2 * edge)
        for source, canvas in zip(sources, padded, strict=True):
            canvas[:, :, edge : edge + height, edge : edge + width] = source
        return padded.flatten(0, 1)


class RandomResizedCrop:
    """Resize a random box of each image, as ``v2.RandomResizedCrop`` draws it and Pillow resizes it.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest part of the area, in 0..1.
        ratio: Smallest and largest width / height.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.

    Example:
        >>> images = torch.full((2, 3, 48, 64), 255, dtype=torch.uint8)
        >>> RandomResizedCrop(32)(images, Draws(0, torch.arange(2), torch.arange(2))).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.size, self.scale, self.ratio, self.interpolation = size, scale, ratio, interpolation

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the crops, resized."""
        height, width = images.shape[2:]
        return resized_crop(images, self.boxes(draws, height, width), (self.size, self.size), self.interpolation)

    def boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw ``(top, left, height, width)`` for each image of ``height`` x ``width`` pixels: int64 ``(B, 4)``."""
        numbers = draws.uniform(CROP, 2 * _ATTEMPTS + 2)
        part, shape = numbers[:, :_ATTEMPTS], numbers[:, _ATTEMPTS:-2]
        (least, most), (narrowest, widest) = self.scale, (math.log(ratio) for ratio in self.ratio)
        area = height * width * (least + (most - least) * part)
        ratio = (narrowest + (widest - narrowest) * shape).exp()
        widths = (area * ratio).sqrt().round().long()
        heights = (area / ratio).sqrt().round().long()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.long().argmax(1, keepdim=True)
        has_box = fits.any(1)
        whole_height, whole_width = self._largest(height, width)
        heights = torch.where(has_box, heights.gather(1, first)[:, 0], whole_height)
        widths = torch.where(has_box, widths.gather(1, first)[:, 0], whole_width)
        tops = torch.where(has_box, integers(numbers[:, -2], height - heights + 1), (height - heights) // 2)
        lefts = torch.where(has_box, integers(numbers[:, -1], width - widths + 1), (width - widths) // 2)
        return torch.stack([tops, lefts, heights, widths], dim=1)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the largest box in the middle whose aspect ratio is allowed."""
        narrowest, widest = self.ratio
        if width / height < narrowest:
            return round(width / narrowest), width
        if width / height > widest:
            return height, round(height * widest)
        return height, width


class CenterCrop:
    """Cut ``size`` x ``size`` pixels out of the middle, as ``v2.CenterCrop(size)`` does; nothing is drawn.

    Example:
        >>> images = torch.arange(3, dtype=torch.uint8).view(1, 1, 1, 3)
        >>> CenterCrop(1)(images, Draws(0, torch.arange(1), torch.arange(1)))
        tensor([[[[1]]]], dtype=torch.uint8)
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the middles.

        Raises:
            ValueError: If the images are smaller than the crop.
        """
        height, width = images.shape[2:]
        if min(height, width) < self.size:
            raise ValueError(f"images must have at least {self.size} px, got {height} x {width}")
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return images[:, :, top : top + self.size, left : left + self.size]


class HorizontalFlip:
    """Flip each image from left to right with a probability, as ``v2.RandomHorizontalFlip`` does.

    Example:
        >>> images = torch.arange(3, dtype=torch.uint8).view(1, 1, 1, 3)
        >>> HorizontalFlip(1.0)(images, Draws(0, torch.arange(1), torch.arange(1)))
        tensor([[[[2, 1, 0]]]], dtype=torch.uint8)
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, some of them flipped."""
        flips = _flips(draws, self.probability)
        return by_group(images, flips.long(), [None, lambda flipped, rows: flipped.flip(3)])


def _flips(draws: Draws, probability: float) -> Tensor:
    """Return which images are flipped, bool ``(B,)``."""
    return draws.uniform(FLIP, 1)[:, 0] < probability


def _reflected(side: int, padding: int, images: Tensor) -> Tensor:
    """Return which pixel each of a padded side shows, on the device of the images."""
    return torch.from_numpy(np.pad(np.arange(side), padding, "reflect")).to(images.device, non_blocking=True)
