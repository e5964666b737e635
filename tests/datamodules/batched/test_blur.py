"""Exact: equal to Pillow in every pixel."""

from typing import Any

from PIL import ImageFilter
import pytest
from shapes import images_of, pictures
import torch

from lit_distill.datamodules.batched.blur import _box_weights, gaussian_blur

RADII = [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0, 1.2, 1.5, 1.9, 2.0, 2.3, 3.0, 6.5]


@pytest.mark.parametrize("picture", pictures(), ids=str)
def test_a_radius_for_each_image(picture: Any) -> None:
    result = gaussian_blur(images_of([picture.image] * len(RADII)), torch.tensor(RADII, dtype=torch.float64))
    for row, radius in zip(result, RADII, strict=True):
        assert torch.equal(row, images_of([picture.image.filter(ImageFilter.GaussianBlur(radius))])[0]), radius


def test_many_radii() -> None:
    """500 radii in the range of three-augment, on noise of 32 pixels."""
    image = next(picture.image for picture in pictures([(32, 32)]))
    radii = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.9 + 0.1
    expected = images_of([image.filter(ImageFilter.GaussianBlur(radius)) for radius in radii.tolist()])
    assert torch.equal(gaussian_blur(images_of([image] * 500), radii), expected)


def test_the_weights_add_up_to_one() -> None:
    """To less than a tenth of a millionth: Pillow cuts off what follows the point."""
    radii = torch.linspace(0, 50, 10_001, dtype=torch.float64)
    taps = torch.stack(_box_weights(radii)).to(torch.int64)
    totals = taps[0] + 2 * taps[1:].sum(0)
    assert int(taps.min()) >= 0
    assert int((2**24 - totals).min()) >= 0
    assert int((2**24 - totals).max()) <= 1


@pytest.mark.gpu
def test_the_device_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    radii = torch.rand(64, dtype=torch.float64, generator=generator) * 3
    assert torch.equal(gaussian_blur(images.cuda(), radii).cpu(), gaussian_blur(images, radii))
