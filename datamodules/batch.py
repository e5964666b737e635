"""What travels from the data to the module."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images, their targets, and the row of each sample in its data set.

    ``image`` is ``uint8`` 0..255 or float 0..1, ``(B, C, H, W)``; ``target`` is int64 ``(B,)`` or float ``(B, K)``;
    ``index`` is int64 ``(B,)``, 0..N-1.

    Example:
        >>> import torch
        >>> image, target, index = Batch(torch.rand(2, 1, 8, 8), torch.tensor([3, 5]), torch.tensor([0, 1]))
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a batch
