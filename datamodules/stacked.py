"""Images of one size as one tensor, and the data sets that have them."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Subset

from lit_distill.datamodules.batched.draws import BatchTransform


class StackedImages(NamedTuple):
    """Images of one size as one tensor, and what is to become of them.

    Attributes:
        images: ``(M, C, H, W)``, ``uint8`` or float.
        targets: ``(N,)`` int64, of each row.
        transform: From a batch of them and its `Draws` to what the network sees; None for nothing.
        place: ``(N,)`` int64 on the host, where the image of each row is among the M; None if M = N.
    """

    images: Tensor
    targets: Tensor
    transform: BatchTransform | None = None
    place: Tensor | None = None


@runtime_checkable
class Stackable(Protocol):
    """A data set whose images may be one tensor."""

    def stacked(self) -> StackedImages | str:
        """Return the images, or why they are not augmented as batches.

        Raises:
            ValueError: If they are of several sizes.
        """
        ...


def stack(dataset: Any) -> StackedImages | str:
    """Return the images of a data set, or of a ``Subset`` of one, as one tensor; or why they are not.

    Raises:
        ValueError: If they are of several sizes.
    """
    if type(dataset) is Subset:
        whole, rows = stack(dataset.dataset), torch.as_tensor(dataset.indices)
        if isinstance(whole, str):
            return whole
        place = rows if whole.place is None else whole.place[rows]
        return whole._replace(targets=whole.targets[rows], place=place)
    if not isinstance(dataset, Stackable):
        return f"{type(dataset).__name__} gives them so"
    return dataset.stacked()
