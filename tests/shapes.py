"""Pictures for the tests of batched augmentation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
import torch
from torch import Tensor

from lit_distill.preprocessing import pixels_of

SIZES = [(1, 1), (2, 5), (8, 8), (32, 32), (20, 9)]  # width, height


class Picture(NamedTuple):
    """An image and what it shows."""

    name: str
    image: Image.Image

    def __str__(self) -> str:
        return f"{self.name}-{self.image.mode}-{self.image.width}x{self.image.height}"


def pictures(sizes: Sequence[tuple[int, int]] = tuple(SIZES)) -> list[Picture]:
    """Return noise, a ramp, one level and a drawn shape: RGB and L, of several sizes."""
    made = []
    for width, height in sizes:
        generator = np.random.default_rng(width * 100 + height)
        noise = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
        ramp = np.linspace([10, 240, 0], [250, 20, 130], width * height).round().astype(np.uint8)
        shape = Image.new("RGB", (width, height), "teal")
        ImageDraw.Draw(shape).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill="orange")
        images = {
            "noise": Image.fromarray(noise),
            "ramp": Image.fromarray(ramp.reshape(height, width, 3)),
            "level": Image.new("RGB", (width, height), (12, 130, 255)),
            "shape": shape,
        }
        made += [Picture(name, image.convert(mode)) for name, image in images.items() for mode in ("RGB", "L")]
    return made


def images_of(images: Sequence[Image.Image]) -> Tensor:
    """Return PIL images as one batch: ``uint8`` ``(B, C, H, W)``."""
    return torch.stack([pixels_of(image) for image in images])
