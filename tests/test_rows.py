"""Values and classes come back where they were; all other classes share one value."""

import pytest
import torch

from lit_distill.rows import class_dtype, keep_largest, spread


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_largest_come_back_in_place(count: int) -> None:
    values = torch.randn(20, 7)
    largest, classes = keep_largest(values, count)
    assert largest.shape == classes.shape == (20, count)
    whole = spread(largest, classes, torch.full((20, 1), -9.0), 7)
    kept = values >= values.sort(dim=1, descending=True).values[:, count - 1 : count]
    assert torch.equal(whole, torch.where(kept, values, -9.0))


def test_class_ids_take_two_bytes_where_they_can() -> None:
    assert class_dtype(2**15) == torch.int16
    assert class_dtype(2**15 + 1) == torch.int32
    last = torch.zeros(1, 2**15)
    last[0, -1] = 1
    values, classes = keep_largest(last, 1)
    assert torch.equal(spread(values, classes, torch.zeros(1, 1), 2**15), last)
