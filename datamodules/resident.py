"""Small images that lie as one tensor on the device that trains, and are augmented there, a batch at a time."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from typing_extensions import override

from lit_distill.batch import Batch, IndexedSample
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.mixing import Mixing, MixPlan
from lit_distill.datamodules.partners import Key, MixableBatch, Partners, as_keys
from lit_distill.datamodules.resuming import ResumableLoader
from lit_distill.datamodules.stacked import StackedImages

# Values of the images that are made at once. Batches of fewer are made several at a time: small ones cost as little.
_VALUES_AT_ONCE = 1 << 21


class ResidentDataset(IndexedDataset):
    """An `IndexedDataset` that makes whole batches of images on their device.

    What it makes of a key ``(view, sample)`` is a pure function of ``(seed, view, row)``, whatever else the batch has.
    Read sample by sample, it reads the data set behind it.

    Args:
        dataset: The data set behind it.
        stacked: Its images, where the batches are made.
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
        seed: int = 0,
        rows: Tensor | None = None,
        mixing: Mixing | None = None,
        num_classes: int = 0,
        repeats: int = 1,
    ) -> None:
        super().__init__(dataset, seed, rows=rows, with_view=True)
        self.images, self.targets, self.transform, self.place = stacked
        self.mixing = mixing
        self.num_classes = num_classes
        self.partners = Partners(len(self), seed, repeats)

    def make(self, keys: Sequence[int | Key]) -> Batch | IndexedSample:
        """Return the batch of these keys, on the device; the batch of samples without views has none."""
        if self.mixing is None:
            batch, _ = self._read(as_keys(keys))
        else:
            unique_keys, own, other = self.partners.join(as_keys(keys))
            whole, draws = self._read(unique_keys)
            height, width = whole.image.shape[-2:]
            plan = self.mixing.plan(draws.rows(own), (height, width))
            own, other, *parts = (_sent(part, self.images.device) for part in (own, other, *plan))
            view, index = whole.view_and_index()
            mixable = MixableBatch(whole.image, whole.target, index, view, own, other, MixPlan(*parts))
            batch = mixable.mixed(self.num_classes)
        if isinstance(keys[0], tuple):
            return batch
        return IndexedSample(batch.image, batch.target, batch.view_and_index()[1])

    def _read(self, keys: Sequence[Key]) -> tuple[Batch, Draws]:
        view, sample = torch.tensor(keys).unbind(dim=1)
        row = sample if self.rows is None else self.rows[sample]
        draws = Draws(self.seed, view, row)
        place = row if self.place is None else self.place[row]
        place, row, view = (_sent(part, self.images.device) for part in (place, row, view))
        image = self.images[place]
        if self.transform is not None:
            image = self.transform(image, draws)
        return Batch(image, self.targets[row], row, view), draws


class ResidentLoader(ResumableLoader):
    """A loader of a `ResidentDataset`, which makes several batches at once where they are small."""

    dataset: ResidentDataset
    batch_sampler: BatchSampler

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a DataLoader's own iterator reads sample by sample
        batches = iter(self.batch_sampler)
        several = max(1, _VALUES_AT_ONCE // max(1, self.dataset.images[0].numel() * self.batch_sampler.batch_size))
        while ahead := list(islice(batches, several)):
            whole: Any = self.dataset.make([*chain(*ahead)])  # a named tuple of tensors
            sizes = [*map(len, ahead)]
            yield from map(whole._make, zip(*(part.split(sizes) for part in whole), strict=True))


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on a device; neither waits for the other."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
