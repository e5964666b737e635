"""timm's random erasing for a batch.

Own code, because timm draws from generators of the process, and erases one image of a batch after the other.
"""

import math

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
import torch
from torch import Tensor

from lit_distill.datamodules.batched.draws import ERASING, NOISE, Draws, integers
from lit_distill.datamodules.batched.groups import to_device
from lit_distill.keys import uniform_at

_ATTEMPTS = 10  # to find a rectangle inside the image, as in timm
_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))


class Erasing:
    """Replace a rectangle of some images by noise, as timm's ``RandomErasing(mode="pixel")`` does before rounding.

    The noise is normal with ImageNet's mean and standard deviation, or their average for a single channel, rounded to
    0..255; what lies outside that range ends at its ends. It is drawn on the device of the images, for the erased
    pixels alone.

    Args:
        probability: Of an image to be erased.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> erased = Erasing(1.0)(images, Draws(0, torch.arange(2), torch.arange(2)))
        >>> bool(erased.any(1).flatten(1).any(1).all()), bool(images.any())
        (True, False)
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, some of them erased."""
        channels, height, width = images.shape[1:]
        rows, boxes = self.boxes(draws, height, width)
        tops, lefts, heights, widths = boxes.T
        areas = heights * widths
        # One entry for each erased pixel: its image and its place there.
        erased = torch.arange(len(rows)).repeat_interleave(areas)
        inside = torch.arange(len(erased)) - (areas.cumsum(0) - areas)[erased]
        places = (tops[erased] + inside // widths[erased]) * width + lefts[erased] + inside % widths[erased]
        places, owners = to_device(places, images), to_device(rows[erased], images)
        states = to_device(draws.states, images)[owners]
        columns = torch.arange(channels, device=images.device)[:, None] * (height * width) + places
        noise = _grey_levels(uniform_at(states, NOISE, columns))
        result = images.flatten().clone()
        targets = columns + owners * (channels * height * width)
        return result.scatter_(0, targets.flatten(), noise.flatten()).view(images.shape)

    def boxes(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Draw the rectangles for images of ``height`` x ``width`` pixels.

        Returns:
            Rows that are erased, int64 ``(N,)``, and their ``(top, left, height, width)``, int64 ``(N, 4)``.
        """
        numbers = draws.uniform(ERASING, 2 * _ATTEMPTS + 3)
        part, shape = numbers[:, 3 : 3 + _ATTEMPTS], numbers[:, 3 + _ATTEMPTS :]
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * part)
        ratio = (_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * shape).exp()
        heights = (area * ratio).sqrt().round().long()
        widths = (area / ratio).sqrt().round().long()
        fits = (heights < height) & (widths < width)
        rows = ((numbers[:, 0] < self.probability) & fits.any(1)).nonzero()[:, 0]
        first = fits[rows].long().argmax(1, keepdim=True)
        heights, widths = heights[rows].gather(1, first)[:, 0], widths[rows].gather(1, first)[:, 0]
        tops = integers(numbers[rows, 1], height - heights + 1)
        lefts = integers(numbers[rows, 2], width - widths + 1)
        return rows, torch.stack([tops, lefts, heights, widths], dim=1)


def _grey_levels(uniform: Tensor) -> Tensor:
    """Return normal noise of each channel, ``uint8`` ``(C, N)``, from numbers in [0, 1).

    A level is the number of thresholds that the number reaches: the cumulated probabilities of the levels below.
    Comparing gives the same bits on every device; a quantile function would not.
    """
    mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD], dtype=torch.float64)
    if len(uniform) == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    between = (torch.arange(255, dtype=torch.float64) + 0.5) / 255
    thresholds = torch.special.ndtr((between - mean[:, None]) / std[:, None])
    return torch.searchsorted(to_device(thresholds, uniform), uniform, right=True).to(torch.uint8)
