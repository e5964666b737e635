"""Logits come back to float16 rounding; of those not kept, the sum of their exponentials does."""

import pytest
import torch

from lit_distill.models.answer_rows import AnswerRows


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_all_logits_come_back_to_float16_rounding(classes: int) -> None:
    rows, logits = AnswerRows(classes), 5 * torch.randn(64, classes)
    packed = rows.pack(logits)
    assert packed.shape == (64, 2 * classes) == (64, rows.stride)
    assert torch.equal(rows.unpack(packed), logits.half().float())
    assert torch.equal(rows.pack(rows.unpack(packed)), packed)


@pytest.mark.parametrize("classes", [9, 100, 1000, 2**15, 40_000])
def test_of_the_largest_logits_the_probabilities_are_kept(classes: int) -> None:
    rows, logits = AnswerRows(classes, top_k=8), 3 * torch.randn(16, classes)
    restored = rows.unpack(rows.pack(logits))
    values, places = logits.topk(8, dim=1)
    assert torch.equal(restored.gather(1, places), values.half().float())
    expected, actual = logits.softmax(dim=1), restored.softmax(dim=1)
    torch.testing.assert_close(actual.gather(1, places), expected.gather(1, places), rtol=5e-3, atol=1e-5)
    torch.testing.assert_close(restored.logsumexp(dim=1), logits.logsumexp(dim=1), rtol=1e-3, atol=5e-3)


def test_a_row_of_eight_classes_takes_36_bytes_at_most() -> None:
    assert AnswerRows(1000, top_k=8).stride == 34
    assert AnswerRows(2, top_k=8).stride == 4
    assert AnswerRows(2).is_dense
    assert str(AnswerRows(1000, 8)) == "top 8 of 1000 classes"


@pytest.mark.parametrize("top_k", [None, 2])
def test_extreme_logits_stay_what_they_are(top_k: int | None) -> None:
    logits = torch.tensor([[1e6, -1e6, 0.0, 3.0], [float("nan"), 0.0, 1.0, 2.0]])
    restored = AnswerRows(4, top_k).unpack(AnswerRows(4, top_k).pack(logits))
    assert restored[0].argmax() == 0
    assert restored[0].isfinite().all()
    assert restored[1].isnan().any()
    assert torch.equal(AnswerRows(4).unpack(AnswerRows(4).pack(torch.zeros(0, 4))), torch.zeros(0, 4))


def test_sizes_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        AnswerRows(3, top_k=0)


def test_what_is_not_finite_stays_so_and_what_is_beyond_the_range_becomes_its_end() -> None:
    logits = torch.tensor([[torch.inf, -torch.inf, 7e4, -7e4], [torch.nan, 0, 1, 2]])
    restored = AnswerRows(4).unpack(AnswerRows(4).pack(logits))
    expected = torch.tensor([[torch.inf, -torch.inf, 65504, -65504], [torch.nan, 0, 1, 2]])
    torch.testing.assert_close(restored, expected, rtol=0, atol=0, equal_nan=True)
