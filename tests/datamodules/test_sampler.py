from lightning.pytorch import Trainer
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset
from toys import QUIET, Foreign, in_processes, toy_data, trainer

from lit_distill.datamodules import DigitsDataModule, IndexedDataset, KeyedSampler


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


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [24, 29])
def test_without_repeats_it_is_torchs_sampler(rows: int, ranks: int, drop_last: bool) -> None:
    for rank in range(ranks):
        ours = KeyedSampler(range(rows), seed=5, num_replicas=ranks, rank=rank, drop_last=drop_last)
        torchs = DistributedSampler(range(rows), ranks, rank, seed=ours.seed, drop_last=drop_last)
        for epoch in range(3):
            ours.set_epoch(epoch)
            torchs.set_epoch(epoch)
            assert list(ours) == [(epoch, row) for row in torchs]
            assert len(list(ours)) == len(ours) == len(torchs)


@pytest.mark.parametrize("repeats", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 5, 24, 50])  # DeiT's own sampler has no sample at all below 256 rows
def test_repeats_a_row_as_distinct_views_and_keeps_the_length_of_an_epoch(rows: int, repeats: int) -> None:
    sampler, plain = KeyedSampler(range(rows), seed=5, repeats=repeats), KeyedSampler(range(rows), seed=5)
    keys: list[tuple[int, int]] = []
    for epoch in range(120):
        sampler.set_epoch(epoch)
        plain.set_epoch(epoch)
        now = list(sampler)
        assert len(now) == len(sampler) == rows
        chosen = [row for _, row in plain][: -(-rows // repeats)]
        assert now == [(epoch * repeats + copy, row) for row in chosen for copy in range(repeats)][:rows]
        keys += now
    assert len(set(keys)) == len(keys)  # no view twice, in no epoch
    assert {row for _, row in keys} == set(range(rows))


def test_the_views_of_a_row_are_on_as_many_ranks() -> None:
    parts = [list(KeyedSampler(range(50), seed=5, num_replicas=3, rank=rank, repeats=3)) for rank in range(3)]
    steps = list(zip(*parts, strict=True))
    for step in steps[:-1]:
        assert [view for view, _ in step] == [0, 1, 2]
        assert len({row for _, row in step}) == 1
    assert steps[-1] == (parts[0][-1], (1, parts[0][-1][1]), parts[0][0])  # 50 samples are padded to 51
    whole = list(KeyedSampler(range(50), seed=5, repeats=3))
    assert [key for step in steps for key in step][:50] == whole


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [24, 25, 29])
def test_goes_on_within_an_epoch_for_any_number_of_ranks(ranks: int, rows: int, repeats: int) -> None:
    """The rest of the epoch's order is dealt out in turn, evenly, and the epochs after it are whole."""
    samplers = [KeyedSampler(range(rows), 5, num_replicas=ranks, rank=rank, repeats=repeats) for rank in range(ranks)]
    for epoch in range(2):
        whole = KeyedSampler(range(rows), seed=5, repeats=repeats)
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


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("ranks", [1, 3])
def test_goes_on_within_an_epoch_of_a_set_that_has_grown(ranks: int, repeats: int, drop_last: bool) -> None:
    before = list(KeyedSampler(range(40), seed=5, repeats=repeats))
    for done in range(0, 41, 5):
        parts = []
        for rank in range(ranks):
            sampler = KeyedSampler(range(47), 5, True, ranks, rank, drop_last, repeats)
            sampler.resume(0, done, length=40)
            parts.append(list(sampler))
        dealt = [key for group in zip(*parts, strict=True) for key in group]
        left = 47 - done
        assert len(dealt) == (left // ranks * ranks if drop_last else -(-left // ranks) * ranks)
        assert len(set(dealt)) == min(left, len(dealt))  # the rest pads
        assert set(dealt).isdisjoint(before[:done])
        assert {view for view, _ in dealt} <= set(range(repeats))


def test_refuses_to_repeat_a_row_less_than_once() -> None:
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        KeyedSampler(range(3), repeats=0)


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


def test_a_sampler_made_before_the_processes_shares_out_among_them() -> None:
    sampler = KeyedSampler(range(33), seed=5)
    loader = DataLoader(IndexedDataset(toy_data(33)), batch_size=4, sampler=sampler)
    alone = list(sampler)
    assert len(sampler) == len(alone) == 33

    def work(rank: int) -> tuple[list[tuple[int, int]], int, int]:
        return list(sampler), len(sampler), len(loader)

    parts = in_processes(2, work)
    assert [part[1:] for part in parts] == [(17, 5)] * 2
    assert [key for group in zip(parts[0][0], parts[1][0], strict=True) for key in group] == [*alone, alone[0]]
    assert list(sampler) == alone


@pytest.mark.parametrize("made_by", ["hand", "data module"])
def test_a_loader_made_before_the_processes_gives_each_rank_its_share(tmp_path, made_by: str) -> None:
    class Rows(Foreign):
        def on_train_start(self) -> None:
            self.rows: list[int] = []

        def training_step(self, batch, batch_idx: int):
            self.rows += batch.index.tolist()
            return self.net(batch.image.flatten(1)[:, :6] / 16).sum()

        def on_train_end(self) -> None:
            torch.save(self.rows, tmp_path / f"{self.global_rank}.pt")

    if made_by == "hand":
        data = IndexedDataset(toy_data(32))
        loader = DataLoader(data, batch_size=4, sampler=KeyedSampler(data))
    else:
        module = DigitsDataModule(batch_size=4)
        module.setup("fit")
        module.train_set = Subset(module.train_set, range(32))
        loader = module.train_dataloader()
    Trainer(**{**QUIET, "max_epochs": 1, "devices": 2, "strategy": "ddp_fork"}).fit(Rows(), loader)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [len(part) for part in parts] == [16, 16]
    assert sorted(parts[0] + parts[1]) == list(range(32))


def test_a_rank_is_one_of_the_ranks() -> None:
    with pytest.raises(ValueError, match=r"Invalid rank 2, rank should be in the interval \[0, 1\]"):
        KeyedSampler(range(3), num_replicas=2, rank=2)


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("rows", [5, 24, 50, 101])
def test_views_come_again_after_their_number_of_epochs(rows: int, repeats: int) -> None:
    sampler, epochs = KeyedSampler(range(rows), seed=5, repeats=repeats, views=6), []
    for epoch in range(18):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert sorted(key for keys in epochs[:6] for key in keys) == [
        (view, row) for view in range(6) for row in range(rows)
    ]
    for epoch in range(6, 18):
        assert sorted(epochs[epoch]) == sorted(epochs[epoch % 6])
        assert rows < 100 or epochs[epoch] != epochs[epoch % 6]
        assert rows < 100 or epochs[epoch] != epochs[(epoch + 6) % 18]


def test_before_views_come_again_the_order_is_the_usual_one() -> None:
    usual, cycling = KeyedSampler(range(50), seed=5), KeyedSampler(range(50), seed=5, views=4)
    for epoch in range(4):
        usual.set_epoch(epoch)
        cycling.set_epoch(epoch)
        assert list(usual) == list(cycling)


def test_all_rows_get_as_many_views() -> None:
    with pytest.raises(ValueError, match="views must be a multiple of repeats=3, so that all rows have as many, got 4"):
        KeyedSampler(range(8), repeats=3, views=4)
    assert [*KeyedSampler(range(3), shuffle=False, views=1)] == [(0, 0), (0, 1), (0, 2)]
