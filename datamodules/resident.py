"""Small images that lie as one tensor on the device that trains, and are augmented there, a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from typing_extensions import override

from lit_distill.batch import Batch, IndexedSample
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.mixing import Mixing, mix
from lit_distill.datamodules.partners import Key, Partners, as_keys
from lit_distill.datamodules.resuming import ResumableLoader

Storage = Literal["auto", "device", "host", "files"]

# Values of the images that are made at once. Batches of fewer are made several at a time: small ones cost as little.
_VALUES_AT_ONCE = 1 << 21

BatchTransform = Callable[[Tensor, Draws], Tensor]


class StackedImages(NamedTuple):
    """Images of one size as one tensor, and what is to become of them.

    Attributes:
        images: ``(N, C, H, W)``, ``uint8`` or float.
        targets: ``(N,)`` int64.
        transform: From a batch of them and its `Draws` to what the network sees; None for nothing.
    """

    images: Tensor
    targets: Tensor
    transform: BatchTransform | None = None


@runtime_checkable
class Stackable(Protocol):
    """A data set whose images may be one tensor."""

    def stacked(self) -> StackedImages | str:
        """Return the images, or why they cannot be one tensor that is augmented as a whole."""


def stack(dataset: Any) -> tuple[StackedImages | str, Tensor | None]:
    """Return what a data set's images are as one tensor, or why they are none; and the rows of a ``Subset``."""
    rows = None
    if type(dataset) is Subset:
        dataset, rows = dataset.dataset, torch.as_tensor(dataset.indices)
    if not isinstance(dataset, Stackable):
        return f"a {type(dataset).__name__} is read sample by sample", rows
    return dataset.stacked(), rows


class ResidentDataset(IndexedDataset):
    """An `IndexedDataset` that makes whole batches of images on their device.

    What it makes of a key ``(view, sample)`` is a pure function of ``(seed, view, row)``, whatever else is in the batch.
    Read sample by sample, it reads the data set behind it.

    Args:
        dataset: The data set behind it.
        stacked: Its images; moved to ``device``.
        device: Where the batches are made.
        seed: As of `IndexedDataset`.
        rows: As of `IndexedDataset`.
        mixing: How images are mixed, or None.
        num_classes: K, for mixed targets.
        repeats: Views of a sample in an epoch.
    """

    def __init__(
        self,
        dataset: Any,
        stacked: StackedImages,
        device: torch.device,
        seed: int = 0,
        rows: Tensor | None = None,
        mixing: Mixing | None = None,
        num_classes: int = 0,
        repeats: int = 1,
    ) -> None:
        super().__init__(dataset, seed, rows=rows, with_view=True)
        self.images = stacked.images.to(device)
        self.targets = stacked.targets.to(device)
        self.transform = stacked.transform
        self.mixing = mixing
        self.num_classes = num_classes
        self.partners = Partners(len(self), seed, repeats)

    def make(self, keys: Sequence[int | Key]) -> Batch | IndexedSample:
        """Return the batch of these keys, on the device; one of samples without views has none."""
        if self.mixing is None:
            batch, row = self._read(as_keys(keys))
            return batch if isinstance(keys[0], tuple) else IndexedSample(*batch[:3])
        wanted, own, other = self.partners.join(as_keys(keys))
        batch, row, view = self._read(wanted)
        ...


class ResidentLoader(ResumableLoader):
    """A loader of a `ResidentDataset`; no process waits for another, and no batch is copied to the device."""
