"""Several processes that each record a share of the rows come to hold the table of one that recorded them all."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from toys import Foreign, in_processes, toy_data, trainer

from lit_distill.callbacks import LearningWithRetrospection, SoftLabelMemory
from lit_distill.callbacks.exchange import RowExchange
from lit_distill.datamodules import IndexedDataset, KeyedSampler

ROWS, CLASSES, BATCH = 41, 7, 3


def history(world: int, steps: int = 30) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Epoch, rows and soft labels of every global batch: with repetitions, gaps and vectors that are not finite."""
    generator = torch.Generator().manual_seed(world)
    made = []
    for step in range(steps):
        soft_labels = torch.randn(world * BATCH, CLASSES, generator=generator).softmax(dim=1)
        soft_labels[torch.rand(world * BATCH, generator=generator) < 0.1, 0] = float("nan")
        made.append((1 + step // 5, torch.randint(ROWS, (world * BATCH,), generator=generator), soft_labels))
    return made


def record(
    memory: SoftLabelMemory, exchange: RowExchange, index: torch.Tensor, soft_labels: torch.Tensor, epoch: int
) -> None:
    exchange.note(index, memory.record(index, soft_labels, epoch), epoch)


def states(memory: SoftLabelMemory) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in memory.state_dict().items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(
    ("world", "top_k", "dtype", "chunk"),
    [
        (2, None, torch.float32, 1 << 25),
        (2, 2, torch.float16, 500),
        (3, None, torch.float16, 1),
        (4, 2, torch.float16, 500),
        pytest.param(2, None, torch.float16, 1, marks=pytest.mark.slow),
        pytest.param(3, None, torch.float32, 1 << 25, marks=pytest.mark.slow),
        pytest.param(3, 2, torch.float16, 500, marks=pytest.mark.slow),
        pytest.param(4, None, torch.float32, 1 << 25, marks=pytest.mark.slow),
        pytest.param(4, None, torch.float16, 1, marks=pytest.mark.slow),
    ],
)
def test_equals_one_process(world: int, top_k: int | None, dtype: torch.dtype, chunk: int) -> None:
    alone = SoftLabelMemory(ROWS, CLASSES, top_k, dtype)
    for epoch, index, soft_labels in history(world):
        alone.record(index, soft_labels, epoch)

    def work(rank: int) -> Any:
        memory, exchange, recorded = SoftLabelMemory(ROWS, CLASSES, top_k, dtype), RowExchange(chunk=chunk), []
        for step, (epoch, index, soft_labels) in enumerate(history(world)):
            record(memory, exchange, index[rank::world], soft_labels[rank::world], epoch)
            if step % 5 == 4 or step == 12:  # when the epoch ends, and once for a checkpoint within an epoch
                exchange.run(memory)
            recorded.append(int(memory.read(torch.arange(ROWS), epoch)[1].sum()))
        return states(memory), recorded

    tables = in_processes(world, work)
    for table, recorded in tables:
        assert recorded == tables[0][1]
        for name, value in states(alone).items():
            assert torch.equal(value, table[name]), name


@pytest.mark.parametrize(
    ("world", "repeats"),
    [(1, 2), (1, 3), (2, 3), (3, 2), *(pytest.param(n, n, marks=pytest.mark.slow) for n in (2, 3))],
)
def test_of_repeated_views_the_first_in_the_order_is_remembered_for_any_number_of_processes(
    world: int, repeats: int
) -> None:
    epoch = 2

    def work(rank: int) -> Any:
        memory, exchange = SoftLabelMemory(ROWS, CLASSES, dtype=torch.float32), RowExchange()
        sampler = KeyedSampler(range(ROWS), 5, num_replicas=world, rank=rank, repeats=repeats)
        sampler.set_epoch(epoch)
        keys = torch.tensor(list(sampler))
        for part in keys.split(BATCH):
            copy = part[:, 0] - epoch * repeats
            record(memory, exchange, part[:, 1], torch.nn.functional.one_hot(copy, CLASSES).float(), epoch=1)
        if world > 1:
            exchange.run(memory)
        soft_labels, recorded = memory.read(torch.arange(ROWS), epoch=2)
        return keys[:, 1], soft_labels, recorded

    results = in_processes(world, work) if world > 1 else [work(0)]
    seen = torch.cat([rows for rows, _, _ in results]).unique()
    assert len(seen) == -(-ROWS // repeats)
    for _, soft_labels, recorded in results:
        assert torch.equal(recorded.nonzero().flatten(), seen)
        assert (soft_labels[seen].argmax(dim=1) == 0).all()  # copy 0 of each


def test_a_vector_that_is_not_finite_has_no_place_in_the_order() -> None:
    """Process 1 sees row 2 not finite and then finite, process 0 finite in between: its place is the earliest."""
    bad, early, late = torch.tensor([float("nan"), 0.0]), torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])

    def work(rank: int) -> Any:
        memory, exchange = SoftLabelMemory(4, 2), RowExchange()
        rows = [(0, late), (2, early), (1, late)] if rank == 0 else [(2, bad), (3, late), (2, late)]
        index, soft_labels = (list(parts) for parts in zip(*rows, strict=True))
        record(memory, exchange, torch.tensor(index), torch.stack(soft_labels), epoch=1)
        exchange.run(memory)
        return memory.read(torch.tensor([2]), epoch=2)

    for soft_labels, recorded in in_processes(2, work):
        assert recorded.tolist() == [True]
        assert soft_labels[0].tolist() == early.tolist()


def test_one_process_that_recorded_nothing_gets_everything() -> None:
    def work(rank: int) -> Any:
        memory, exchange = SoftLabelMemory(4, 2), RowExchange()
        if rank == 1:
            record(memory, exchange, torch.tensor([2]), torch.tensor([[0.25, 0.75]]), epoch=3)
        exchange.run(memory)
        exchange.run(memory)  # nothing is new: nothing changes
        return memory.read(torch.arange(4), epoch=4)

    for soft_labels, recorded in in_processes(2, work):
        assert recorded.tolist() == [False, False, True, False]
        assert soft_labels[2].tolist() == [0.25, 0.75]


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")  # Lightning counts the other process
def test_runs_of_one_process_each_exchange_nothing() -> None:
    """Two processes that know of each other, but train a network each."""

    def work(rank: int) -> Any:
        callback = LearningWithRetrospection(1)
        loader = DataLoader(IndexedDataset(toy_data()), 8)
        trainer(max_epochs=2, limit_train_batches=1 + rank, callbacks=callback).fit(Foreign(), loader)
        return int(callback.memory.read(torch.arange(30), epoch=2)[1].sum())

    assert in_processes(2, work) == [8, 16]
