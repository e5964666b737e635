"""A row that has two targets is found, whatever the order in which and the process by which they are seen."""

import random

import pytest
import torch
from toys import in_processes

from lit_distill.callbacks.row_targets import RowTargets, fingerprint

ROWS = 20


def seen(epoch: int, changed: set[int]) -> list[tuple[int, int]]:
    """Return row and target of an epoch's samples; some rows become another sample in epoch 2."""
    rows = random.Random(epoch).sample(range(ROWS), ROWS - 2)
    return [(row, row % 5 + (epoch >= 2 and row in changed)) for row in rows]


def expected(epochs: int, changed: set[int]) -> list[list[int]]:
    known: dict[int, int] = {}
    found = []
    for epoch in range(epochs):
        samples = seen(epoch, changed)
        found.append(sorted(row for row, target in samples if known.get(row, target) != target))
        known.update(samples)
    return found


def told(epochs: int, changed: set[int], rank: int = 0, ranks: int = 1, merge: bool = False) -> list[list[int]]:
    targets, found = RowTargets(ROWS), []
    for epoch in range(epochs):
        samples = torch.tensor(seen(epoch, changed)[rank::ranks])
        for batch in samples.split(4):
            targets.check(batch[:, 0], batch[:, 1])
            if merge:  # as for a checkpoint within the epoch
                targets.merge()
        found.append(targets.settle().nonzero().flatten().tolist())
    return found


def test_a_row_is_reported_in_the_epoch_in_which_its_target_is_another() -> None:
    changed = {1, 4, 7, 19}
    assert told(5, changed) == expected(5, changed)
    assert sum(map(len, expected(5, changed))) == 4
    assert told(5, set()) == [[]] * 5


@pytest.mark.parametrize("merge", [False, True])
def test_two_processes_report_what_one_does(merge: bool) -> None:
    changed = {1, 4, 7, 19}
    for found in in_processes(2, lambda rank: told(5, changed, rank, 2, merge)):
        assert found == expected(5, changed)


def test_two_processes_that_see_two_targets_of_a_row_find_out() -> None:
    """Two data sets that share rows, of which each process sees one."""

    def work(rank: int) -> list[int]:
        targets = RowTargets(4)
        assert targets.check(torch.tensor([0, 2]), torch.tensor([1, 1 + rank])).all()
        return targets.settle().nonzero().flatten().tolist()

    assert in_processes(2, work) == [[2], [2]]


def test_two_targets_within_an_epoch_are_found_at_once() -> None:
    targets = RowTargets(3)
    targets.check(torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert targets.check(torch.tensor([1, 0]), torch.tensor([3, 2])).tolist() == [False, True]
    assert targets.settle().tolist() == [False, True, False]
    assert targets.settle().tolist() == [False, False, False]


def test_an_index_outside_is_ignored() -> None:
    targets = RowTargets(2)
    for epoch in range(3):
        targets.check(torch.tensor([0, -1, 2]), torch.tensor([1, epoch, epoch + 5]))
        assert not targets.settle().any()


def test_a_rearranged_table_knows_the_targets_of_the_same_samples() -> None:
    targets = RowTargets(3)
    targets.check(torch.arange(3), torch.tensor([5, 6, 7]))
    targets.settle()
    targets = targets.rearranged(torch.tensor([2, -1, 0, -1]))
    assert targets.check(torch.arange(4), torch.tensor([7, 6, 5, 5])).all()
    assert not targets.settle().any()
    again = RowTargets.from_state_dict(targets.state_dict())
    assert again is not None
    assert again.check(torch.arange(4), torch.tensor([7, 6, 5, 4])).tolist() == [True, True, True, False]


def test_fingerprints_tell_probabilities_apart() -> None:
    soft = torch.cat([torch.eye(1000), torch.rand(1000, 1000)])
    assert len(fingerprint(soft).unique()) == 2000
    assert torch.equal(fingerprint(soft), fingerprint(soft.clone()))
    assert torch.equal(fingerprint(soft)[7:8], fingerprint(soft[7:8]))  # whatever the batch
    assert len(fingerprint(torch.tensor([-100, 0, 1, 999]).int()).unique()) == 4
