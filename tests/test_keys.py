from itertools import product
import random

import numpy as np
import pytest
import torch

from lit_distill.keys import GENERATORS, derive_seed, global_seed, seeded


def test_seeds_are_the_same_everywhere_and_differ_between_keys() -> None:
    assert derive_seed(42, 0, 7) == 5525473658276002072  # a change here would change every run
    keys = list(product(range(5), range(20), range(50)))
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1) != derive_seed(1, 0) != derive_seed(0, 1)
    assert derive_seed(-1, 2**70) >= 0


def test_neighbouring_keys_give_unrelated_seeds() -> None:
    bits = torch.tensor(
        [[int(b) for b in f"{derive_seed(0, e, i):063b}"] for e in range(30) for i in range(30)]
    ).float()
    assert (bits.mean(dim=0) - 0.5).abs().max() < 0.1
    flips = (bits[1:] != bits[:-1]).float().mean()
    assert 0.45 < flips < 0.55


def draw() -> tuple[float, ...]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_seeds_all_generators_and_puts_their_states_back() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with seeded(5):
        first = draw()
    with seeded(5):
        second = draw()
    with seeded(6):
        third = draw()
    assert first == second
    assert all(a != b for a, b in zip(first, third, strict=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_puts_states_back_after_an_error() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError), seeded(5):
        _ = draw()[0] / 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_leaves_the_generators_that_are_not_asked_for_alone(name: str) -> None:
    with seeded(5, [name]):
        first = draw()
    with seeded(5, [name]):
        second = draw()
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == [generator == name for generator in GENERATORS]


def test_global_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert global_seed(7) == 7
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert global_seed(7) == 11
