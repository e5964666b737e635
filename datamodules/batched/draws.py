"""The random numbers of one batch, as a pure function of the samples' keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lit_distill.keys import sample_states, uniform_at

# What a step's numbers are for. No two steps of a pipeline share one, so their draws are independent.
CROP = 1
FLIP = 2
JITTER = 3
ERASING = 4
NOISE = 5
DIGITS = 6
MIXING = 7
POLICY = 64  # layer l of a policy uses POLICY + l


@dataclass(frozen=True, eq=False)
class Draws:
    """The draws of one batch.

    Parameters are drawn on the CPU, where the keys are: every device then has the same ones, and the rows that an
    operation applies to are known without waiting for the device.

    Args:
        seed: Seed of the run.
        view: Views of the samples, int64 ``(B,)`` on the CPU.
        index: Their indices, int64 ``(B,)`` on the CPU.

    Example:
        >>> draws = Draws(42, view=torch.tensor([0, 0]), index=torch.tensor([7, 8]))
        >>> draws.uniform(CROP, 3).shape
        torch.Size([2, 3])
        >>> second = draws.rows(torch.tensor([1]))
        >>> bool((second.uniform(CROP, 3) == draws.uniform(CROP, 3)[1:]).all())
        True
    """

    seed: int
    view: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.view)

    @cached_property
    def states(self) -> Tensor:
        """What all operations share, for `lit_distill.keys.uniform_at`: int64 ``(B,)``."""
        return sample_states(self.seed, self.view, self.index)

    def uniform(self, operation: int, count: int) -> Tensor:
        """Return float64 ``(B, count)`` in [0, 1), as `lit_distill.keys.uniform` draws them."""
        return uniform_at(self.states[:, None], operation, torch.arange(count))

    def rows(self, chosen: Tensor) -> "Draws":
        """Return the draws of a part of the batch, which are the same for the same samples.

        Args:
            chosen: Rows, int64, or a mask ``(B,)``, on the CPU.
        """
        return Draws(self.seed, self.view[chosen], self.index[chosen])


class BatchTransform(Protocol):
    """From ``uint8`` images ``(B, C, H, W)``, on any device, to ``uint8`` ``(B, C, h, w)``; C is 1 or 3."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, transformed. The ones given are left as they are."""
        ...


def integers(uniform: Tensor, bounds: Tensor | int) -> Tensor:
    """Return int64 in [0, bounds), all equally likely, from numbers in [0, 1).

    Example:
        >>> integers(torch.tensor([0.0, 0.34, 0.99]), 3)
        tensor([0, 1, 2])
    """
    return (uniform * bounds).to(torch.int64)  # never reaches the bound: the largest number is 1 - 2**-53


def chain(steps: Sequence[BatchTransform]) -> BatchTransform:
    """Return one transform that applies several in turn."""

    def apply_all(images: Tensor, draws: Draws) -> Tensor:
        for step in steps:
            images = step(images, draws)
        return images

    return apply_all
