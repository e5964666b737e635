"""Every function is exact: equal to Pillow, timm and torchvision on PIL images in every pixel."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest
from shapes import images_of, pictures
from timm.data import auto_augment
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lit_distill.datamodules.batched import color

FACTORS = [0.0, 0.1, 0.5, 0.9, 1.0, 1.1, 1.3371, 1.9, 2.5, 7.0]
BITS = list(range(9))
THRESHOLDS = [0, 1, 77, 128, 255, 256, 300]
FLOAT_THRESHOLDS = [0.0, 0.4, 76.99, 77.0, 127.5, 255.0]
ADDITIONS = [0, 1, 55, 110, 128]


def black_or_posterized(image: Image.Image, bits: int) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


@pytest.mark.parametrize("picture", pictures(), ids=str)
@pytest.mark.parametrize(
    ("ours", "reference", "levels"),
    [
        (color.brightness, lambda image, level: ImageEnhance.Brightness(image).enhance(level), FACTORS),
        (color.contrast, lambda image, level: ImageEnhance.Contrast(image).enhance(level), FACTORS),
        (color.saturation, lambda image, level: ImageEnhance.Color(image).enhance(level), FACTORS),
        (color.sharpness, lambda image, level: ImageEnhance.Sharpness(image).enhance(level), FACTORS),
        (color.brightness, F.adjust_brightness, FACTORS),
        (color.contrast, F.adjust_contrast, FACTORS),
        (color.saturation, F.adjust_saturation, FACTORS),
        (color.sharpness, F.adjust_sharpness, FACTORS),
        (color.posterize, black_or_posterized, BITS),
        (color.posterize, F.posterize, BITS[1:]),
        (color.solarize, ImageOps.solarize, THRESHOLDS),
        (color.solarize, F.solarize, FLOAT_THRESHOLDS),
        (color.solarize_add, auto_augment.solarize_add, ADDITIONS),
    ],
)
def test_a_level_for_each_image(
    ours: Callable[[Tensor, Tensor], Tensor], reference: Callable[[Any, Any], Any], levels: list[float], picture: Any
) -> None:
    batch = images_of([picture.image] * len(levels))
    before = batch.clone()
    result = ours(batch, torch.tensor(levels, dtype=torch.float64))
    assert result.dtype == torch.uint8
    assert torch.equal(batch, before)
    for row, level in zip(result, levels, strict=True):
        assert torch.equal(row, images_of([reference(picture.image, level)])[0]), level


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (color.invert, ImageOps.invert),
        (color.equalize, ImageOps.equalize),
        (color.autocontrast, ImageOps.autocontrast),
        (color.invert, F.invert),
        (color.equalize, F.equalize),
        (color.autocontrast, F.autocontrast),
    ],
)
def test_without_a_level(ours: Callable[[Tensor], Tensor], reference: Callable[[Any], Any]) -> None:
    for picture in pictures():
        batch = images_of([picture.image, ImageOps.mirror(picture.image)])
        before = batch.clone()
        expected = images_of([reference(picture.image), reference(ImageOps.mirror(picture.image))])
        assert torch.equal(ours(batch), expected), picture
        assert torch.equal(batch, before)


@pytest.mark.parametrize("count", [254, 255, 256, 300, 1024, 4000])
def test_equalize_and_autocontrast_on_few_levels(count: int) -> None:
    """Few levels, and as many pixels as make Pillow's whole steps 0, 1 and more."""
    generator = np.random.default_rng(count)
    for largest in (0, 1, 2, 3, 50, 255):
        levels = generator.integers(0, largest + 1, (5, 1, count)).astype(np.uint8)
        levels += generator.integers(0, 256 - largest, (5, 1, 1)).astype(np.uint8)
        images = [Image.fromarray(row, "L") for row in levels]
        batch = images_of(images)
        assert torch.equal(color.equalize(batch), images_of([ImageOps.equalize(image) for image in images]))
        assert torch.equal(color.autocontrast(batch), images_of([ImageOps.autocontrast(image) for image in images]))


def test_every_pair_of_levels_blends_as_pillows_floats() -> None:
    """Each of 65,536 pairs (grey, level), for factors whose float32 rounding decides between two levels."""
    grey, level = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    start, whole = (Image.fromarray(values.to(torch.uint8).numpy(), "L") for values in (grey, level))
    for factor in (0.1, 0.2, 0.3, 0.7, 1 / 3, 1.2, 1.9):
        ours = color._blend(grey.float()[None, None], level.float()[None, None], torch.tensor([factor]).double())
        assert torch.equal(ours, images_of([Image.blend(start, whole, factor)])), factor


def test_every_color_has_pillows_luma() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    cube = torch.stack(torch.meshgrid(values, values, values[::3], indexing="ij"))
    image = Image.fromarray(cube.permute(1, 2, 3, 0).reshape(256, -1, 3).numpy())
    grey = color.saturation(images_of([image]), torch.zeros(1, dtype=torch.float64))
    assert torch.equal(grey, images_of([image.convert("L").convert("RGB")]))


@pytest.mark.gpu
def test_the_device_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    factors = torch.rand(64, dtype=torch.float64, generator=generator) * 2
    for function in (color.brightness, color.contrast, color.saturation, color.sharpness):
        assert torch.equal(function(images.cuda(), factors).cpu(), function(images, factors))
    for plain in (color.invert, color.equalize, color.autocontrast):
        assert torch.equal(plain(images.cuda()).cpu(), plain(images))
