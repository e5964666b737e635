"""Which samples of an evaluation batch count when several processes share a data set."""

from collections.abc import Sized
from typing import cast

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DistributedSampler

_PADDED = (DistributedSampler, DistributedSamplerWrapper)


class SampleCounter:
    """Count each sample of a data set once, whatever the number of ranks.

    PyTorch's ``DistributedSampler`` repeats the first samples at the end of some ranks' share, so that all ranks make
    the same number of steps. This counter recognises repeated samples by their position. So batches need no row
    numbers, and the device is not waited for. All samples of any other kind of sampler count.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> data, counter = range(5), SampleCounter()
        >>> loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 2, rank=1, shuffle=False))
        >>> [batch.tolist() for batch in loader]  # 0 pads the share of rank 1
        [[1, 3], [0]]
        >>> [counter.count(loader, number, len(batch)) for number, batch in enumerate(loader)]
        [2, 0]
    """

    def __init__(self) -> None:
        self._done: dict[int, int] = {}

    def count(self, loader: object, batch_idx: int, size: int, dataloader_idx: int = 0) -> int:
        """Return how many samples of this batch count, its first ones; call this once a batch, in order.

        Args:
            loader: The loader of the batch.
            batch_idx: Number of the batch on this rank, from 0, which begins a new pass.
            size: Samples in the batch.
            dataloader_idx: Number of the loader, if there are several.
        """
        before = self._done.get(dataloader_idx, 0) if batch_idx else 0
        self._done[dataloader_idx] = before + size
        batches = getattr(loader, "batch_sampler", None)
        sampler = batches.sampler if type(batches) is BatchSampler else None
        # Not a subclass, which may order or repeat samples otherwise.
        if not isinstance(sampler, DistributedSampler) or type(sampler) not in _PADDED:
            return size
        share = len(range(sampler.rank, len(cast(Sized, sampler.dataset)), sampler.num_replicas))
        return min(size, max(0, share - before))
