"""The partner of a sample is a pure function of its view, near it in the order, and never itself."""

import pytest
import torch

from lit_distill.datamodules import KeyedSampler, Mixing
from lit_distill.datamodules.partners import MixableDataset, Partners, as_keys


def partners_of(count: int, view: int = 0, repeats: int = 1) -> torch.Tensor:
    samples = torch.arange(count)
    return Partners(count, seed=3, repeats=repeats).of(torch.full_like(samples, view), samples)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 40, 1000])
def test_every_sample_has_a_partner_that_is_another_one(count: int) -> None:
    partner = partners_of(count)
    assert partner.min() >= 0
    assert partner.max() < count
    assert count == 1 or (partner != torch.arange(count)).all()
    whole = count // 16 * 16
    order = torch.tensor([sample for _, sample in KeyedSampler(range(count), seed=3)])[:whole]
    assert torch.equal(partner[partner[order]], order)  # each other's


def test_partners_change_with_the_epoch_and_are_those_of_all_views_of_one() -> None:
    assert torch.equal(partners_of(64, view=6, repeats=3), partners_of(64, view=8, repeats=3))
    assert (partners_of(64, view=5, repeats=3) != partners_of(64, view=6, repeats=3)).sum() > 50
    views, samples = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([5, 5, 5, 9, 9, 9])
    together = Partners(64, seed=3).of(views, samples)
    apart = [int(Partners(64, seed=3).of(views[i : i + 1], samples[i : i + 1])) for i in range(6)]
    assert together.tolist() == apart


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_partners_are_read_by_one_rank_for_one_batch(ranks: int) -> None:
    """So mixing reads no image more: an even share of 16 samples is a batch of its own."""
    partners = Partners(160, seed=3)
    for rank in range(ranks):
        keys = list(KeyedSampler(range(160), seed=3, num_replicas=ranks, rank=rank))
        for start in range(0, len(keys), 16 // ranks):
            batch = keys[start : start + 16 // ranks]
            assert len(partners.join(batch)[0]) == len(batch)


def test_a_batch_is_joined_by_the_partners_that_it_lacks() -> None:
    partners = Partners(40, seed=3)
    keys = [(2, 7), (2, 11), (2, 7)]
    joined, own, other = partners.join(keys)
    assert [joined[place] for place in own.tolist()] == keys
    expected = partners.of(torch.tensor([2, 2, 2]), torch.tensor([7, 11, 7])).tolist()
    assert [joined[place] for place in other.tolist()] == [(2, sample) for sample in expected]
    assert len(joined) == len(set(joined)) == 4


def test_rows_that_are_left_out_are_nobodys_partner() -> None:
    images = [(torch.full((1, 2, 2), float(row)), row % 3) for row in range(20)]
    rows = torch.tensor([row for row in range(20) if row != 4])
    data = MixableDataset(images, 1, rows, Mixing(mixup=1.0))
    batch = data.__getitems__([(0, sample) for sample in range(19)])
    assert sorted(batch.index.tolist()) == rows.tolist()
    mixed = batch.mixed(3)
    assert mixed.index.tolist() == rows.tolist()
    assert mixed.view.tolist() == [0] * 19
    share, other = batch.plan.share, batch.index[batch.other]
    torch.testing.assert_close(mixed.image[:, 0, 0, 0], share * mixed.index + (1 - share) * other)


def test_a_sample_without_a_view_has_the_first() -> None:
    assert as_keys([4, (3, 5)]) == [(0, 4), (3, 5)]


@pytest.mark.parametrize("repeats", [1, 2])
def test_partners_stay_in_one_batch_when_views_come_again(repeats: int) -> None:
    partners = Partners(160, seed=3, repeats=repeats)
    sampler = KeyedSampler(range(160), seed=3, repeats=repeats, views=2)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        keys, size = list(sampler), 16 * repeats
        for start in range(0, 160, size):
            assert len(partners.join(keys[start : start + size])[0]) == size
