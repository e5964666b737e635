"""torchvision's color jitter for a batch, each image with its own factors in its own order."""

from itertools import permutations

import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_distill.datamodules.batched.color import brightness, contrast, saturation
from lit_distill.datamodules.batched.draws import JITTER, Draws, integers
from lit_distill.datamodules.batched.groups import Part, by_group

_FUNCTIONS = (brightness, contrast, saturation)
_ORDERS = torch.tensor(list(permutations(range(len(_FUNCTIONS)))))


class ColorJitter:
    """Change brightness, contrast and saturation in a random order, as ``v2.ColorJitter`` does to PIL images.

    The pixels equal torchvision's to the last bit, given the same factors and order.

    Args:
        strength: Of all three, >= 0: factors are uniform in 1 -+ strength, and not below 0.

    Example:
        >>> draws = Draws(42, view=torch.tensor([0, 0]), index=torch.tensor([7, 8]))
        >>> images = torch.full((2, 3, 1, 1), 100, dtype=torch.uint8)
        >>> ColorJitter(0.4)(images, draws).flatten(1)[:, 0]
        tensor([131, 125], dtype=torch.uint8)
    """

    def __init__(self, strength: float) -> None:
        jitter = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)
        ranges = [chosen or (1.0, 1.0) for chosen in (jitter.brightness, jitter.contrast, jitter.saturation)]
        self.lowest, self.highest = torch.tensor(ranges, dtype=torch.float64).unbind(1)

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the order of brightness 0, contrast 1 and saturation 2, and their factors: ``(B, 3)`` each."""
        numbers = draws.uniform(JITTER, 4)
        factors = self.lowest + (self.highest - self.lowest) * numbers[:, 1:]
        return _ORDERS[integers(numbers[:, 0], len(_ORDERS))], factors

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, transformed."""
        order, factors = self.draw(draws)
        parts = [_part(number, factors[:, number]) for number in range(len(_FUNCTIONS))]
        for chosen in order.unbind(1):
            images = by_group(images, chosen, parts)
        return images


def _part(number: int, factors: Tensor) -> Part:
    return lambda images, rows: _FUNCTIONS[number](images, factors[rows])
