"""A sampler that says which view of which sample is wanted."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any

from torch import Tensor, distributed
from torch.utils.data import DistributedSampler

from lit_distill.keys import derive_seed

# Apart from the keys of the samples, which are (seed, view, index).
_ORDER = 0x0BDE


class KeyedSampler(DistributedSampler[Any]):
    """Yield ``(view, index)``: the view, which is the epoch, and the row in the epoch's keyed order.

    The order is a pure function of ``(seed, epoch)``, and the ranks deal it out among themselves in turn, so that the
    global batch is the same for any number of them. A `DistributedSampler`, so Lightning keeps it under DDP and tells
    it the epoch.

    With ``repeats`` = R, repeated augmentation, an epoch of N samples is the first N / R rows of the order, rounded up,
    R times each: next to one another, so that R ranks have one each, and as distinct views, ``epoch * R + r`` for r in
    0..R-1. The other rows have their turn in other epochs.

    Args:
        dataset: Only its length is used, and not even that with ``rows``.
        seed: Seed of the order.
        shuffle: False keeps the data set's own order.
        num_replicas: Ranks; by default those of the running process group, or one.
        rank: This rank, 0..num_replicas-1.
        drop_last: Leave out the last rows instead of repeating the first when the ranks cannot share evenly.
        repeats: R >= 1, views of a row in an epoch; 3 in DeiT.
        rows: The rows to draw from, where some of the data set are left out.

    Raises:
        ValueError: If ``repeats`` is < 1.

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
        rows: Sequence[int] | Tensor | None = None,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats must be >= 1, got {repeats}")
        if num_replicas is None or rank is None:
            running = distributed.is_available() and distributed.is_initialized()
            if num_replicas is None:
                num_replicas = distributed.get_world_size() if running else 1
            if rank is None:
                rank = distributed.get_rank() if running else 0
        drawn: Any = dataset if rows is None else range(len(rows))
        super().__init__(drawn, num_replicas, rank, shuffle, derive_seed(seed, _ORDER), drop_last)
        self.repeats = repeats
        self.rows = rows
        self._resumed = (0, 0, len(drawn))

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
        order = self._order(len(self.dataset))  # type: ignore[arg-type]
        epoch, done, length = self._resumed
        places = self._rest(order, done, length) if self.epoch == epoch and done else range(len(order))
        rows = self.rows.tolist() if isinstance(self.rows, Tensor) else self.rows
        ranks = self.num_replicas
        each = len(places) // ranks if self.drop_last else -(-len(places) // ranks)
        for nth in range(self.rank, each * ranks, ranks):
            place = places[nth % len(places)] % len(order)
            yield self.epoch * self.repeats + place % self.repeats, order[place] if rows is None else rows[order[place]]

    def _rest(self, order: list[int], done: int, length: int) -> Sequence[int]:
        """Return the places of the order that are left after ``done`` samples of ``length`` rows."""
        if length == len(order):
            return range(done, max(done, self.total_size))
        trained = {(row, place % self.repeats) for place, row in enumerate(self._order(length)[:done])}
        places = [place for place, row in enumerate(order) if (row, place % self.repeats) not in trained]
        return places[: max(0, len(order) - done)]

    def _order(self, length: int) -> list[int]:
        """Return the row at each place of the epoch's order, over all ranks, if the data set had that many rows."""
        whole: DistributedSampler[Any] = DistributedSampler(range(length), 1, 0, self.shuffle, self.seed)  # type: ignore[arg-type]
        whole.set_epoch(self.epoch)
        rows = list(whole)
        return rows if self.repeats == 1 else [row for row in rows for _ in range(self.repeats)][:length]
