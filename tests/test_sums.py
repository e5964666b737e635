from typing import Any

import torch
from toys import trainer

from lit_distill.sums import EpochSums


def gathered(sums: EpochSums, run: Any = None) -> dict[str, float]:
    return {name: value.item() for name, value in sums.gather(run or trainer()).items()}


def test_sums_rows_or_the_means_of_batches() -> None:
    by_row, by_batch = EpochSums(), EpochSums()
    for values in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0])):
        by_row.add({"kl": values, "positive": values > 1})
        by_batch.add({"kl": values.mean(), "positive": (values > 1).float().mean()}, weight=len(values))
        by_row.end_step(), by_batch.end_step()
    assert gathered(by_row) == {"kl": 10.0, "positive": 3.0, "rows": 4.0}
    torch.testing.assert_close(gathered(by_batch), gathered(by_row))


def test_a_step_counts_when_it_has_ended_and_sums_go_on_from_a_checkpoint() -> None:
    sums, again = EpochSums(), EpochSums()
    assert gathered(sums) == {}
    sums.add({"loss": torch.tensor(2.0)}, weight=8)
    assert gathered(sums) == {}
    sums.end_step()
    again.load(sums.gather(trainer()))
    for both in (sums, again):
        both.add({"loss": torch.tensor(1.0)}, weight=2)
        both.end_step()
        assert gathered(both) == {"loss": 18.0, "rows": 10.0}


def test_many_small_values_are_not_lost() -> None:
    sums = EpochSums()
    sums.load({"loss": torch.tensor(1e8, dtype=torch.float64), "rows": torch.tensor(1.0, dtype=torch.float64)})
    for _ in range(100):
        sums.add({"loss": torch.tensor(0.5, dtype=torch.bfloat16)})
        sums.end_step()
    assert gathered(sums) == {"loss": 1e8 + 50, "rows": 101.0}
