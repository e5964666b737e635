"""A sampler that says which view of which sample is wanted."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler

from lit_distill.checks import check_at_least
from lit_distill.identity import check_rows
from lit_distill.keys import derive_seed

STEP = 8  # places from a sample to its partner for mixing
_ORDER = 0x0BDE  # keeps the order's key apart from those of the samples, which are (seed, view, index)


def order_seed(seed: int) -> int:
    """Return the seed of the order of a run with ``seed``."""
    return derive_seed(seed, _ORDER)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of ``count`` samples in an epoch, int64, as ``DistributedSampler`` draws it.

    Args:
        count: Samples.
        seed: As `order_seed` returns it.
        epoch: Counted from 0.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))


class KeyedSampler(DistributedSampler[Any]):
    """Yield ``(view, index)``: the view, which is the epoch, and the row in the epoch's keyed order.

    The order is a pure function of ``(seed, epoch)``, and the ranks deal it out among themselves in turn, so that the
    global batch is the same for any number of them. A `DistributedSampler`, so Lightning keeps it under DDP and tells
    it the epoch.

    With ``repeats`` = R, repeated augmentation, an epoch of N samples is the first N / R rows of the order, rounded up,
    R times each: next to one another, so that R ranks have one each, and as distinct views, ``epoch * R + r`` for r in
    0..R-1. The other rows have their turn in other epochs.

    With ``views`` = V, epoch e has the views of epoch ``e mod V`` again, in another order: what was computed from a
    view can be used again. Samples that are partners for mixing stay near each other. V epochs have each pair of the V
    views and N rows once; with repeats a row then has R views in every R epochs.

    Args:
        dataset: Only its length is used.
        seed: Seed of the order.
        shuffle: False keeps the data set's own order.
        num_replicas: Ranks; by default those of the process group that runs when the sampler is read, or one.
        rank: This rank, 0..num_replicas-1; by default likewise.
        drop_last: Leave out the last rows instead of repeating the first when the ranks cannot share evenly.
        repeats: R >= 1, views of a row in an epoch; 3 in DeiT.
        views: V >= 1, a multiple of R; None has another view in each epoch.

    Raises:
        ValueError: If ``repeats`` or ``views`` is < 1, V is no multiple of R, ``rank`` is none of the ranks, or
            ``dataset`` is a part of an `IndexedDataset` or joins several.

    Source:
        Berman et al., "MultiGrain", arXiv 1902.05509; Hoffer et al., "Augment your batch", arXiv 1901.09335. DeiT's
        ``RASampler`` keeps the length of an epoch likewise, but rounds it down to a multiple of 256.

    Example:
        >>> sampler = KeyedSampler(range(4), seed=1)
        >>> sampler.set_epoch(3)
        >>> sorted(sampler)
        [(3, 0), (3, 1), (3, 2), (3, 3)]
        >>> list(KeyedSampler(range(4), shuffle=False, repeats=2))
        [(0, 0), (1, 0), (0, 1), (1, 1)]
        >>> sampler = KeyedSampler(range(2), shuffle=False, views=3)
        >>> sampler.set_epoch(4)
        >>> list(sampler)
        [(1, 0), (1, 1)]
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        repeats: int = 1,
        views: int | None = None,
    ) -> None:
        check_rows(dataset)
        check_at_least(1, repeats=repeats, views=views)
        if views is not None and views % repeats:
            raise ValueError(
                f"views must be a multiple of repeats={repeats}, so that all rows have as many, got {views}"
            )
        self.samples = dataset
        super().__init__(cast("Any", dataset), num_replicas or 1, rank or 0, shuffle, order_seed(seed), drop_last)
        self.repeats = repeats
        self.views = views
        self._fixed_ranks = num_replicas, rank
        self._resumed: tuple[int, int, list[int] | None] = (0, 0, None)  # epoch, samples done, keys trained
        self.share_out()

    def ranks(self) -> tuple[int, int]:
        """Return how many ranks there are now, and which of them this is."""
        world = 1, 0
        if distributed.is_available() and distributed.is_initialized():
            world = distributed.get_world_size(), distributed.get_rank()
        count, rank = (now if fixed is None else fixed for fixed, now in zip(self._fixed_ranks, world, strict=True))
        return count, rank

    def share_out(self) -> None:
        """Share the samples out among the ranks there are now: the sampler may be older than the processes."""
        self.num_replicas, self.rank = self.ranks()
        self.num_samples = self._share(len(self.samples))
        self.total_size = self.num_samples * self.num_replicas

    def resume(self, epoch: int, done: int, length: int | None = None, trained: Sequence[int] | None = None) -> None:
        """Begin in ``epoch``, and in that epoch alone leave out the samples that were trained before.

        The rest is dealt out anew among the ranks there are now. Where they cannot share it evenly, samples repeat as
        at the end of an epoch, or are left out with ``drop_last``.

        Args:
            epoch: Counted from 0.
            done: Samples of all ranks, the first of the epoch's order.
            length: Samples that the data set had then, if it has grown since.
            trained: Instead of the first ``done``, where the data set has changed: ``sample * repeats + r`` of each.
        """
        self.set_epoch(epoch)
        samples = len(self.samples)
        if trained is None and length not in (None, samples):
            trained = [key for key in self.keys(length)[:done] if key < samples * self.repeats]
        self._resumed = (epoch, done, None if trained is None else list(trained))

    def __len__(self) -> int:
        self.share_out()
        return super().__len__()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.share_out()
        keys = self.keys_left()
        for place in range(self.rank, self._share(len(keys)) * self.num_replicas, self.num_replicas):
            sample, view = divmod(keys[place % len(keys)], self.repeats)
            yield self.first_view() + view, sample

    def first_view(self) -> int:
        """Return the first view of the epoch, which has ``repeats`` of them."""
        return self._block() * self.repeats

    def _block(self) -> int:
        """Return the number of the order whose rows have the epoch's views."""
        return self.epoch if self.views is None else self.epoch % self.views // self.repeats

    def keys(self, length: int | None = None) -> list[int]:
        """Return ``sample * repeats + r`` in the epoch's order, over all ranks, if there were ``length`` samples."""
        length = len(self.samples) if length is None else length
        samples = epoch_order(length, self.seed, self._block()) if self.shuffle else torch.arange(length)
        keys = (samples[:, None] * self.repeats + torch.arange(self.repeats)).flatten()
        if self.views is None:
            return keys[:length].tolist()
        # R epochs share out an order of R views a row.
        start = self.epoch % self.views % self.repeats * length
        keys = keys[start : start + length]
        if self.shuffle and self.epoch >= self.views:
            keys = self._reordered(keys, start)
        return keys.tolist()

    def _reordered(self, keys: Tensor, start: int) -> Tensor:
        """Return the keys in an order of this epoch, which keeps partners as near each other as they are.

        Args:
            keys: Part of an order, a multiple of its ``repeats`` or less.
            start: Where it starts there.
        """
        size = 2 * STEP * self.repeats  # of a group of rows in which each has its partner
        head = min(-start % size, len(keys))
        whole = (len(keys) - head) // size * size
        pairs = keys[head : head + whole].view(-1, 2, STEP, self.repeats).transpose(1, 2).reshape(-1, 2, self.repeats)
        pairs = pairs[epoch_order(len(pairs), self.seed, self.epoch)]
        body = pairs.view(-1, STEP, 2, self.repeats).transpose(1, 2).flatten()
        return torch.cat([keys[:head], body, keys[head + whole :]])

    def keys_left(self) -> list[int]:
        """Return the keys of the epoch that are to be dealt out: all, or those that were not trained before."""
        keys = self.keys()
        epoch, done, trained = self._resumed
        if self.epoch != epoch:
            return keys
        if trained is None:
            return [keys[place % len(keys)] for place in range(done, max(done, self.total_size))]
        removed = set(trained)
        return [key for key in keys if key not in removed][: max(0, len(keys) - len(trained))]

    def _share(self, count: int) -> int:
        """Return how many of ``count`` samples each rank has."""
        return count // self.num_replicas if self.drop_last else -(-count // self.num_replicas)
