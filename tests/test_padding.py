"""Each sample counts once, whatever the number of ranks."""

import pytest
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from lit_distill.padding import SampleCounter


def counted(loader: DataLoader, counter: SampleCounter) -> list[int]:
    """The samples that count of one pass."""
    batches = enumerate(batch.tolist() for batch in loader)
    return [i for number, batch in batches for i in batch[: counter.count(loader, number, len(batch))]]


@pytest.mark.parametrize("samples", [1, 2, 5, 7, 8, 13])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"shuffle": True, "seed": 3}, {"drop_last": True}])
def test_every_sample_counts_once(samples: int, ranks: int, options: dict) -> None:
    data, counter = range(samples), SampleCounter()
    seen = []
    for rank in range(ranks):
        sampler = DistributedSampler(data, ranks, rank, **{"shuffle": False, **options})
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        first, again = counted(loader, counter), counted(loader, counter)  # a new pass counts anew
        assert first == again
        seen += first
    left_out = samples % ranks if options.get("drop_last") else 0
    assert len(set(seen)) == len(seen) == samples - left_out


def test_loaders_are_counted_apart() -> None:
    counter, data = SampleCounter(), range(5)
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 2, 1, shuffle=False))
    assert [counter.count(loader, 0, 2, which) for which in (0, 1)] == [2, 2]
    assert [counter.count(loader, 1, 1, which) for which in (0, 1)] == [0, 0]


class Mine(DistributedSampler):
    """A sampler that pads by rules of its own, or not at all."""


class Buckets(BatchSampler):
    """Batches in another order than the sampler's."""


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(range(5), sampler=Mine(range(5), 2, 1, shuffle=False), batch_size=2),
        DataLoader(range(5), batch_sampler=Buckets(DistributedSampler(range(5), 2, 1, shuffle=False), 2, False)),
        DataLoader(range(3), sampler=SequentialSampler(range(3)), batch_size=2),
        None,
    ],
)
def test_all_that_another_sampler_gives_counts(loader: DataLoader | None) -> None:
    counter = SampleCounter()
    assert [counter.count(loader, 0, 2), counter.count(loader, 1, 1)] == [2, 1]
