"""A sampler that says which view of which sample is wanted."""

from collections.abc import Iterator, Sized
from itertools import cycle, islice
from typing import Any

from torch import distributed
from torch.utils.data import DistributedSampler

from lit_distill.keys import derive_seed

# Apart from the keys of the samples, which are (seed, view, index).
_ORDER = 0x0BDE


class KeyedSampler(DistributedSampler[Any]):
    """Yield ``(view, index)``: the epoch, and the row in the epoch's keyed order.

    The order is a pure function of ``(seed, epoch)``, and the ranks deal it out among themselves in turn, so that the
    global batch is the same for any number of them. A `DistributedSampler`, so Lightning keeps it under DDP and tells
    it the epoch.

    Args:
        dataset: Only its length is used.
        seed: Seed of the order.
        shuffle: False keeps the data set's own order.
        num_replicas: Ranks; by default those of the running process group, or one.
        rank: This rank, 0..num_replicas-1.
        drop_last: Leave out the last rows instead of repeating the first when the ranks cannot share evenly.

    Example:
        >>> sampler = KeyedSampler(range(4), seed=1)
        >>> sampler.set_epoch(3)
        >>> sorted(sampler)
        [(3, 0), (3, 1), (3, 2), (3, 3)]
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        if num_replicas is None or rank is None:
            running = distributed.is_available() and distributed.is_initialized()
            if num_replicas is None:
                num_replicas = distributed.get_world_size() if running else 1
            if rank is None:
                rank = distributed.get_rank() if running else 0
        super().__init__(dataset, num_replicas, rank, shuffle, derive_seed(seed, _ORDER), drop_last)  # type: ignore[arg-type]

        self._resumed = (0, 0, len(dataset))

    def resume(self, epoch: int, done: int, length: int | None = None) -> None:
        """Begin in ``epoch``, and in that epoch alone leave out the first ``done`` samples of its order.

        The rest is dealt out anew among the ranks there are now. Where they cannot share it evenly, samples repeat as
        at the end of an epoch, or are left out with ``drop_last``.

        Args:
            epoch: Counted from 0.
            done: Samples of all ranks.
            length: Rows that the data set had then, if it has grown since.
        """
        self.set_epoch(epoch)
        self._resumed = (epoch, done, len(self.dataset) if length is None else length)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done, length = self._resumed
        indices = super().__iter__() if self.epoch != epoch or not done else self._rest(done, length)
        for index in indices:
            yield self.epoch, index

    def _rest(self, done: int, length: int) -> Iterator[int]:
        rest = self._order(len(self.dataset))  # type: ignore[arg-type]
        if length == len(rest):
            rest = list(islice(cycle(rest), done, max(done, self.total_size)))
        else:
            trained = set(self._order(length)[:done])
            rest = [index for index in rest if index not in trained]
        ranks = self.num_replicas
        each = len(rest) // ranks if self.drop_last else -(-len(rest) // ranks)
        return islice(cycle(rest or [0]), self.rank, each * ranks, ranks)

    def _order(self, length: int) -> list[int]:
        """Return the epoch's order of that many rows, over all ranks."""
        whole: DistributedSampler[Any] = DistributedSampler(range(length), 1, 0, self.shuffle, self.seed)  # type: ignore[arg-type]
        whole.set_epoch(self.epoch)
        return list(whole)
