import torch

from lit_distill.datamodules.batched import draws as draws_module
from lit_distill.datamodules.batched.draws import CROP, FLIP, Draws, chain, integers
from lit_distill.keys import uniform


def made(count: int = 100) -> Draws:
    return Draws(3, torch.full((count,), 2), torch.arange(count))


def test_draws_are_those_of_the_keys() -> None:
    draws = made()
    assert torch.equal(draws.uniform(CROP, 4), uniform(3, draws.view, draws.index, CROP, 4))
    assert not (draws.uniform(CROP, 1) == draws.uniform(FLIP, 1)).any()
    assert len(draws) == 100


def test_rows_keep_their_draws() -> None:
    draws = made()
    for chosen in (torch.tensor([5, 3, 99]), torch.arange(100) % 3 == 0):
        assert torch.equal(draws.rows(chosen).uniform(FLIP, 2), draws.uniform(FLIP, 2)[chosen])


def test_steps_have_numbers_of_their_own() -> None:
    numbers = [value for name, value in vars(draws_module).items() if name.isupper() and isinstance(value, int)]
    assert len(numbers) == len(set(numbers)) >= 6
    assert max(numbers) == draws_module.POLICY  # whose layers count on from it


def test_integers_stay_below_their_bound() -> None:
    largest = torch.tensor([1 - 2**-53], dtype=torch.float64)
    for bound in (1, 2, 3, 5, 7, 9, 1000, 2**20 + 1):
        assert integers(largest, bound).item() == bound - 1
    counts = torch.bincount(integers(made(9000).uniform(CROP, 1)[:, 0], 9), minlength=9)
    assert (counts - 1000).abs().max() < 4.5 * 30  # 4.5 standard deviations


def test_a_chain_applies_its_steps_in_turn() -> None:
    images = torch.ones(2, 1, 1, 1, dtype=torch.uint8)
    steps = chain([lambda images, draws: images + 1, lambda images, draws: images * len(draws)])
    assert steps(images, made(5)).flatten().tolist() == [10, 10]
