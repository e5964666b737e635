from lightning.pytorch import Trainer
import pytest
from torch.utils.data import DataLoader, DistributedSampler
from toys import Foreign, toy_data, trainer

from lit_distill.datamodules import IndexedDataset, KeyedSampler


def test_yields_the_epoch_with_every_row_in_another_order_each_epoch() -> None:
    sampler, orders = KeyedSampler(range(50), seed=1), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {view for view, _ in keys} == {epoch}
        assert sorted(index for _, index in keys) == list(range(50))
        orders.append([index for _, index in keys])
    assert orders[0] != orders[1] != orders[2]
    sampler.set_epoch(1)
    assert [index for _, index in sampler] == orders[1]


def test_neighbouring_seeds_share_no_order() -> None:
    """torch's own sampler seeds with seed + epoch, so that seed 1 repeats seed 0 an epoch earlier."""
    first, second = KeyedSampler(range(50), seed=0), KeyedSampler(range(50), seed=1)
    first.set_epoch(1)
    assert [index for _, index in first] != [index for _, index in second]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_ranks_share_out_the_order_of_one_process(ranks: int) -> None:
    whole = list(KeyedSampler(range(24), seed=5))
    parts = [list(KeyedSampler(range(24), seed=5, num_replicas=ranks, rank=rank)) for rank in range(ranks)]
    assert [key for group in zip(*parts, strict=True) for key in group] == whole


def test_pads_with_the_first_rows_or_drops_the_last() -> None:
    parts = [list(KeyedSampler(range(5), num_replicas=2, rank=rank)) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    assert len({*parts[0], *parts[1]}) == 5
    dropped = [list(KeyedSampler(range(5), num_replicas=2, rank=rank, drop_last=True)) for rank in range(2)]
    assert [len(part) for part in dropped] == [2, 2]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [24, 25, 29])
def test_goes_on_within_an_epoch_for_any_number_of_ranks(ranks: int, rows: int) -> None:
    """The rest of the epoch's order is dealt out in turn, evenly, and the epochs after it are whole."""
    samplers = [KeyedSampler(range(rows), seed=5, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    for epoch in range(2):
        whole = KeyedSampler(range(rows), seed=5)
        whole.set_epoch(epoch)
        for done in range(rows):
            for sampler in samplers:
                sampler.resume(epoch, done)
            parts = [list(sampler) for sampler in samplers]
            dealt = [key for group in zip(*parts, strict=True) for key in group]
            assert dealt[: rows - done] == list(whole)[done:]
            assert len(dealt) - (rows - done) < ranks + (-rows % ranks)
        for sampler in samplers:
            sampler.set_epoch(epoch + 1)
            assert len(list(sampler)) == len(sampler)


def test_without_shuffling_the_order_is_the_data_sets() -> None:
    assert list(KeyedSampler(range(3), shuffle=False)) == [(0, 0), (0, 1), (0, 2)]


def test_lightning_keeps_it_and_tells_it_the_epoch() -> None:
    views: list[set[int]] = []

    class Spy(IndexedDataset):
        def __getitem__(self, key):
            views[-1].add(key[0])
            return super().__getitem__(key)

    class Epochs(Foreign):
        def on_train_epoch_start(self) -> None:
            views.append(set())

    data = Spy(toy_data())
    sampler = KeyedSampler(data)
    views.append(set())
    run: Trainer = trainer(max_epochs=3)
    run.fit(Epochs(), DataLoader(data, batch_size=8, sampler=sampler))
    assert isinstance(sampler, DistributedSampler)
    assert run.train_dataloader.sampler is sampler
    assert views[1:] == [{0}, {1}, {2}]
