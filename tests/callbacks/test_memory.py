import pytest
import torch

from lit_distill.callbacks import SoftLabelMemory


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
    read, recorded = memory.resize(4).read(torch.arange(4), epoch=2)
    assert torch.equal(read[:2], rows)
    assert recorded.tolist() == [True, True, False, False]
    assert memory.resize(2) is memory
    with pytest.raises(ValueError, match="are for 2 samples, the training set has 1"):
        memory.resize(1)


def test_refuses_an_empty_table() -> None:
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        SoftLabelMemory(0, 3)
    with pytest.raises(ValueError, match="num_classes must be >= 1, got 0"):
        SoftLabelMemory(3, 0)
