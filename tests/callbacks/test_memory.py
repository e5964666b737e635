from typing import Any

import pytest
import torch

from lit_distill.callbacks import SoftLabelMemory
from lit_distill.identity import grown


def probabilities(rows: int, classes: int = 4) -> torch.Tensor:
    return torch.randn(rows, classes).softmax(dim=1)


def test_what_an_epoch_records_is_read_in_the_next_one_only() -> None:
    memory = SoftLabelMemory(5, 4, dtype=torch.float32)
    index, first, second = torch.tensor([3, 1]), probabilities(2), probabilities(2)
    memory.record(index, first, epoch=2)
    assert not memory.read(index, epoch=2)[1].any()
    assert torch.equal(memory.read(index, epoch=3)[0], first)
    memory.record(index, second, epoch=3)
    assert torch.equal(memory.read(index, epoch=3)[0], first)
    assert torch.equal(memory.read(index, epoch=4)[0], second)
    assert memory.read(torch.tensor([0, 1, 2, 3, 4]), epoch=4)[1].tolist() == [False, True, False, True, False]


def test_equals_a_dictionary_over_a_random_history() -> None:
    memory, model = SoftLabelMemory(7, 3, dtype=torch.float32), {}
    for epoch in range(1, 40):
        pending: dict[int, torch.Tensor] = {}
        for _ in range(4):
            index = torch.randint(7, (3,))
            read, recorded = memory.read(index, epoch)
            for position, row in enumerate(index.tolist()):
                assert bool(recorded[position]) == (row in model)
                assert torch.equal(read[position], model.get(row, torch.zeros(3)))
            if epoch % 3 == 0:
                rows = probabilities(3, 3)
                memory.record(index, rows, epoch)
                for position, row in enumerate(index.tolist()):
                    pending.setdefault(row, rows[position])  # the earliest position is the one remembered
        model |= pending


def test_a_row_that_an_epoch_left_out_keeps_what_it_had() -> None:
    memory, rows = SoftLabelMemory(2, 4, dtype=torch.float32), probabilities(2)
    memory.record(torch.tensor([0, 1]), rows, epoch=1)
    for epoch in range(2, 6):
        memory.record(torch.tensor([0]), probabilities(1), epoch)
    assert torch.equal(memory.read(torch.tensor([1]), epoch=6)[0], rows[1:])


def test_a_vector_that_is_not_finite_is_not_recorded() -> None:
    memory, good = SoftLabelMemory(3, 2, dtype=torch.float32), torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.2, 0.8]])
    memory.record(torch.arange(3), good, epoch=1)
    bad = good.clone()
    bad[0, 0], bad[1, 1] = float("nan"), float("inf")
    memory.record(torch.arange(3), 1 - bad, epoch=2)
    assert torch.equal(memory.read(torch.arange(3), epoch=3)[0], torch.cat([good[:2], 1 - good[2:]]))


def test_float16_rounds_by_half_a_thousandth_at_most() -> None:
    memory, rows = SoftLabelMemory(100, 10), probabilities(100, 10)
    memory.record(torch.arange(100), rows, epoch=1)
    read, _ = memory.read(torch.arange(100), epoch=2)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, rows, rtol=5e-4, atol=1e-7)


def test_state_round_trips_through_a_safe_checkpoint(tmp_path) -> None:
    memory, rows = SoftLabelMemory(5, 4), probabilities(2)
    memory.record(torch.tensor([1, 3]), rows, epoch=1)
    memory.record(torch.tensor([3, 4]), rows, epoch=2)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    again = SoftLabelMemory.from_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    for epoch in (1, 2, 3):
        ours, theirs = memory.read(torch.arange(5), epoch), again.read(torch.arange(5), epoch)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_a_data_set_that_has_grown_keeps_its_rows() -> None:
    memory, rows = SoftLabelMemory(2, 4, dtype=torch.float32), probabilities(2)
    memory.record(torch.tensor([0, 1]), rows, epoch=1)
    read, recorded = memory.rearranged(grown(2, 4)).read(torch.arange(4), epoch=2)
    assert torch.equal(read[:2], rows)
    assert recorded.tolist() == [True, True, False, False]


def test_refuses_an_empty_table() -> None:
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        SoftLabelMemory(0, 3)
    with pytest.raises(ValueError, match="num_classes must be >= 1, got 0"):
        SoftLabelMemory(3, 0)


@pytest.mark.parametrize("classes", [10, 2**15, 2**15 + 1, 100_000])
def test_a_row_of_few_classes_is_exact_whatever_their_ids(classes: int) -> None:
    memory, index = SoftLabelMemory(6, classes, top_k=3, dtype=torch.float32), torch.arange(6)
    ids = torch.tensor([[0, 1, 2], [classes - 1, 0, 5], [classes - 1, classes - 2, classes - 3]]).repeat(2, 1)
    values = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]).repeat_interleave(3, dim=0)
    rows = torch.zeros(6, classes).scatter_(1, ids, values)
    memory.record(index, rows, epoch=1)
    assert torch.equal(memory.read(index, epoch=2)[0], rows)
    half = SoftLabelMemory(6, classes, top_k=3)
    half.record(index, rows, epoch=1)
    assert torch.equal(half.read(index, epoch=2)[0], rows.half().float())


def test_the_mass_left_is_spread_evenly_over_the_other_classes() -> None:
    memory, rows = SoftLabelMemory(50, 20, top_k=5, dtype=torch.float32), (3 * torch.randn(50, 20)).softmax(dim=1)
    memory.record(torch.arange(50), rows, epoch=1)
    read, _ = memory.read(torch.arange(50), epoch=2)
    values, classes = rows.topk(5, dim=1)
    expected = ((1 - values.sum(dim=1, keepdim=True)) / 15).expand(-1, 20).scatter(1, classes, values)
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(read.sum(dim=1), torch.ones(50))


@pytest.mark.parametrize("top_k", [4, 7])
def test_as_many_as_there_are_classes_is_the_dense_table(top_k: int) -> None:
    dense, memory, rows = SoftLabelMemory(5, 4), SoftLabelMemory(5, 4, top_k=top_k), probabilities(5)
    for table in (dense, memory):
        table.record(torch.arange(5), rows, epoch=1)
    assert torch.equal(*(table.read(torch.arange(5), epoch=2)[0] for table in (dense, memory)))
    assert memory.nbytes == dense.nbytes


@pytest.mark.parametrize(
    ("classes", "top_k", "dtype", "row"),
    [
        (1000, None, torch.float16, 2000),
        (1000, None, torch.float32, 4000),
        (1000, 5, torch.float16, 20),
        (32768, 5, torch.float16, 20),
        (32769, 5, torch.float16, 30),
        (100_000, 5, torch.float32, 40),
    ],
)
def test_nbytes_counts_both_slots_and_the_epochs(classes: int, top_k: int | None, dtype: torch.dtype, row: int) -> None:
    memory = SoftLabelMemory(7, classes, top_k, dtype)
    assert memory.nbytes == 7 * (2 * row + 2 * 4)
    assert memory.nbytes == sum(v.nbytes for v in memory.state_dict().values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_an_index_may_be_any_integer(dtype: torch.dtype) -> None:
    memory, rows = SoftLabelMemory(1000, 4, dtype=torch.float32), probabilities(2)
    memory.record(torch.tensor([3, 1], dtype=dtype), rows, epoch=1)
    assert torch.equal(memory.read(torch.tensor([3, 1], dtype=dtype), epoch=2)[0], rows)


def test_an_index_outside_the_table_is_left_out_and_counted() -> None:
    memory, rows = SoftLabelMemory(5, 4), probabilities(4)
    assert memory.record(torch.tensor([0, 5, -1, 4]), rows, epoch=1).tolist() == [True, False, False, True]
    read, recorded = memory.read(torch.tensor([0, 5, -1, 4]), epoch=2)
    assert recorded.tolist() == [True, False, False, True]
    assert torch.equal(read[[0, 3]], rows[[0, 3]].half().float())
    assert memory.read(torch.arange(5), epoch=2)[1].tolist() == [True, False, False, False, True]
    assert memory.refused.tolist() == [2, 0]


def test_counts_what_is_not_finite_and_remembers_the_first_that_is() -> None:
    memory, rows = SoftLabelMemory(3, 4, dtype=torch.float32), probabilities(3)
    rows[0] = float("nan")
    assert memory.record(torch.tensor([1, 1, 2]), rows, epoch=1).tolist() == [False, True, True]
    read, recorded = memory.read(torch.arange(3), epoch=2)
    assert recorded.tolist() == [False, True, True]
    assert torch.equal(read[1:], rows[1:])
    assert memory.refused.tolist() == [0, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [None, 5])
def test_never_waits_for_the_gpu(top_k: int | None) -> None:
    on_cpu, memory = SoftLabelMemory(100, 20, top_k), SoftLabelMemory(100, 20, top_k).to("cuda")
    index, soft_labels = torch.randperm(100)[:16], probabilities(16, 20)
    index_on_gpu, on_gpu = index.cuda(), soft_labels.cuda()
    on_cpu.record(index, soft_labels, epoch=1)
    memory.record(index_on_gpu, on_gpu, epoch=1)  # the first work on a device may wait
    memory.read(index_on_gpu, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        memory.record(index_on_gpu, on_gpu, epoch=1)
        read, recorded = memory.read(index_on_gpu, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not recorded.any()
    read, recorded = memory.read(index_on_gpu, 2)
    assert read.device.type == "cuda"
    assert recorded.all()
    torch.testing.assert_close(read.cpu(), on_cpu.read(index, 2)[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "before", [(None, torch.float32), (None, torch.float16), (3, torch.float16), (5, torch.float32)]
)
@pytest.mark.parametrize("after", [(None, torch.float32), (3, torch.float16), (2, torch.float32)])
def test_a_converted_table_is_one_that_had_recorded_what_it_reads(before: Any, after: Any) -> None:
    memory = SoftLabelMemory(11, 7, *before)
    for epoch in (1, 2):
        memory.record(torch.arange(0, 11, epoch), torch.randn(11, 7).softmax(dim=1)[::epoch], epoch)
    converted = memory.converted(*after, rows=4)
    assert (converted is memory) == (before == after)
    assert (converted.top_k, converted.dtype) == (after[0] or 7, after[1])
    for epoch in (1, 2, 3):
        soft_labels, recorded = memory.read(torch.arange(11), epoch)
        expected = SoftLabelMemory(11, 7, *after)
        expected.record(torch.arange(11)[recorded], soft_labels[recorded], 1)
        read, there = converted.read(torch.arange(11), epoch)
        assert torch.equal(there, recorded)
        torch.testing.assert_close(read, expected.read(torch.arange(11), 2)[0], rtol=1e-3, atol=1e-6)


def test_an_empty_batch_is_nothing_to_record() -> None:
    memory = SoftLabelMemory(3, 2)
    memory.record(torch.empty(0, dtype=torch.int64), torch.empty(0, 2), epoch=1)
    assert memory.read(torch.empty(0, dtype=torch.int64), epoch=2)[0].shape == (0, 2)
    assert memory.refused.tolist() == [0, 0]
