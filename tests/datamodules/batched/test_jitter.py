"""Exact: equal to `v2.ColorJitter` on PIL images at the same factors and order."""

from typing import Any

import pytest
from scipy.stats import chisquare, kstest
from shapes import SIZES, images_of, pictures
import torch
from torchvision.transforms import v2

from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.batched.jitter import ColorJitter


def draws_of(count: int, seed: int = 42) -> Draws:
    return Draws(seed, view=torch.arange(count) % 3, index=torch.arange(count))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.7])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_torchvisions(size: tuple[int, int], strength: float) -> None:
    jitter = ColorJitter(strength)
    theirs = v2.ColorJitter(strength, strength, strength)
    for mode in ("RGB", "L"):
        images = [picture.image for picture in pictures([size]) if picture.image.mode == mode] * 6
        draws = draws_of(len(images))
        order, factors = jitter.draw(draws)
        result = jitter(images_of(images), draws)
        for row, image in enumerate(images):
            names = ("brightness_factor", "contrast_factor", "saturation_factor")
            params: dict[str, Any] = dict(zip(names, factors[row].tolist(), strict=True))
            expected = theirs.transform(image, {**params, "fn_idx": order[row], "hue_factor": None})
            assert torch.equal(result[row], images_of([expected])[0])


def test_the_draws_are_torchvisions() -> None:
    """6,000 draws each; p above 0.001.

    The chi-squared test finds an order that is 20 % more frequent than the others, and the Kolmogorov-Smirnov test a
    shift of the factors by 4 % of their range, each with a probability above 0.9.
    """
    order, factors = ColorJitter(0.4).draw(draws_of(6_000))
    theirs = v2.ColorJitter(0.4, 0.4, 0.4)
    torch.manual_seed(0)
    params = [theirs.make_params([]) for _ in range(6_000)]
    for number, name in enumerate(("brightness_factor", "contrast_factor", "saturation_factor")):
        assert kstest(factors[:, number].numpy(), [row[name] for row in params]).pvalue > 0.001
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert chisquare(counts.numpy()).pvalue > 0.001


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, draws, jitter = images.clone(), draws_of(20), ColorJitter(0.5)
    whole = jitter(images, draws)
    assert torch.equal(images, before)
    for rows in (torch.arange(20).flip(0), torch.tensor([7]), torch.arange(3, 12)):
        assert torch.equal(jitter(images[rows], draws.rows(rows)), whole[rows])
