"""The form for batches of each recipe has the recipe's steps; evaluation is equal to the last bit."""

from typing import Any

from PIL import Image
import pytest
import torch
from toys import photo, seed_all

from lit_distill.datamodules import Augmentation
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.batched.forms import batch_form
from lit_distill.preprocessing import pixels_of

DRAWS = Draws(3, torch.zeros(600, dtype=torch.int64), torch.arange(600))


def batch(count: int, mode: str, size: tuple[int, int]) -> tuple[list[Image.Image], torch.Tensor]:
    images = [photo(*size, seed=number, mode=mode) for number in range(count)]
    return images, torch.stack([pixels_of(image) for image in images])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(40, 32), (32, 32), (20, 33), (9, 9)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_evaluation_is_the_same_to_the_last_bit(mode: str, size: tuple[int, int], crop_pct: float) -> None:
    evaluate = Augmentation(crop_pct=crop_pct).evaluate(16, 3 if mode == "RGB" else 1)
    images, pixels = batch(5, mode, size)
    form = batch_form(evaluate)
    assert not isinstance(form, str)
    expected = torch.stack([evaluate(image) for image in images])
    assert torch.equal(form(pixels, DRAWS.rows(torch.arange(5))), expected)


STEPS: dict[str, dict[str, Any]] = {
    "padded": {"crop": "padded"},
    "reflect": {"crop": "padded", "padding_mode": "reflect", "padding": 3},
    "simple": {"crop": "simple"},
    "none": {"crop": "none", "crop_pct": 0.8},
    "resized": {"crop": "resized"},
    "no flip": {"crop": "padded", "hflip": 0.0},
    "jitter": {"crop": "none", "color_jitter": 0.5},
    "erasing": {"crop": "none", "erasing": 0.8},
    "three-augment": {"crop": "none", "policy": "three-augment"},
    "trivial": {"crop": "none", "policy": "trivial-wide"},
    "rand": {"crop": "none", "policy": "rand-m9-mstd0.5-inc1"},
    "auto": {"crop": "none", "policy": "original-mstd0.5"},
    "all": {"policy": "rand-m5-n3", "color_jitter": 0.3, "erasing": 0.3},
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", STEPS)
def test_on_average_a_recipe_makes_the_same_pixels(name: str, mode: str) -> None:
    """Means of 600 views of one image, pixel by pixel, differ by what chance makes of them: 5 standard errors.

    A step that is missing, or drawn half as often, moves some pixel by 20 levels or more, of which 4 would be found.
    """
    recipe = Augmentation(**{"interpolation": "bilinear", **STEPS[name]})
    transform, image = recipe.train(16), photo(24, 20, mode=mode)
    form = batch_form(transform)
    assert not isinstance(form, str)
    ours = form(pixels_of(image).expand(600, -1, -1, -1), DRAWS).double()
    seed_all(0)
    theirs = torch.stack([transform(image) for _ in range(600)]).double()
    assert ours.shape == theirs.shape
    error = ((ours.var(dim=0) + theirs.var(dim=0)) / 600).sqrt() + 0.2
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() / error).max() < 5
    spread = (ours.std(dim=0) + 2) / (theirs.std(dim=0) + 2)
    assert spread.min() > 0.6
    assert spread.max() < 1.6


def test_what_has_no_form_for_batches_is_named() -> None:
    assert (
        batch_form(Augmentation(policy="augmix-m3-w3").train(8)) == "the policy 'augmix-m3-w3' has no form for batches"
    )
    assert batch_form(torch.nn.Flatten()) == "the transform Flatten has no form for batches"
