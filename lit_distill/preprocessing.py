"""From an upright photo to the pixels that a network sees, without anything random."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
import math
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from lit_distill.checks import check_at_least, check_choice
from lit_distill.photos import Mode

Interpolation = Literal["nearest", "bilinear", "bicubic"]  # the filters with which a PIL image can be rotated too

_LONGEST = 16  # times its shorter side that an image may be long when it is resized


@dataclass(frozen=True)
class ShorterSide:
    """Resize the shorter side of an image, the longer one in proportion, rounded down, as torchvision does.

    Of an image more than 16 times as long as wide only the middle is made: one of 1 x 8000 pixels would take gigabytes.
    Its pixels are those of the whole.

    Args:
        side: Pixels of the shorter side.
        interpolation: As of `Preprocessing`.
        least: Pixels of the longer side that are made in any case.

    Example:
        >>> resize = ShorterSide(8, "bilinear")
        >>> resize(Image.new("L", (30, 20))).size, resize(Image.new("L", (1, 8000))).size
        ((12, 8), (8, 128))
    """

    side: int
    interpolation: str
    least: int = 0

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image, resized."""
        shorter, longer = sorted(image.size)
        if shorter == self.side:
            return image
        length = self.side * longer // shorter
        # An even number at each end: the crop of the middle starts at an even number, and so stays where it was.
        spare = max(0, length - max(_LONGEST * self.side, self.least)) // 4 * 2
        if not spare:
            resized: Image.Image = v2.functional.resize(image, [self.side], InterpolationMode(self.interpolation))
            return resized
        # Without the far ends, whose pixels no filter reaches. Pillow then takes both directions in the usual order.
        first, last = spare * longer / length, longer - spare * longer / length
        reach = math.ceil(4 * max(1, shorter / self.side))
        start, end = max(0, math.floor(first) - reach), min(longer, math.ceil(last) + reach)
        ends, size = (start, 0, end, shorter), (length - 2 * spare, self.side)
        box: tuple[float, float, float, float] = (first - start, 0, last - start, shorter)
        if image.width < image.height:
            ends, size = (0, start, shorter, end), (self.side, length - 2 * spare)
            box = (0, first - start, shorter, last - start)
        return image.crop(ends).resize(size, Image.Resampling[self.interpolation.upper()], box)


@dataclass(frozen=True)
class Preprocessing:
    """From an upright photo to the pixels that a student was measured on, without anything random.

    The shorter side is resized to ``resize`` pixels, the longer one in proportion, rounded down; then the middle is
    cut out, from ``round((side - crop) / 2)``. Both are torchvision's, on Pillow images.

    Args:
        resize: Shorter side in pixels before the crop, >= 1.
        crop: Height and width in pixels of what the network sees.
        interpolation: Pillow's and torchvision's name of the filter: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
        channels: 3 for RGB, or 1 for greyscale.

    Shape:
        A Pillow image of any size and the right mode to ``uint8`` ``(channels, *crop)``.

    Raises:
        ValueError: If a value is out of range. When called, if the image is of another mode.

    Example:
        >>> Preprocessing(resize=36, crop=(32, 32))(Image.new("RGB", (100, 80), "teal")).shape
        torch.Size([3, 32, 32])
    """

    resize: int
    crop: tuple[int, int]
    interpolation: Interpolation = "bicubic"
    channels: int = 3

    def __post_init__(self) -> None:
        height, width = self.crop
        check_at_least(1, resize=self.resize, crop_height=height, crop_width=width)
        check_choice(Interpolation, interpolation=self.interpolation)
        check_choice((1, 3), channels=self.channels)

    @property
    def mode(self) -> Mode:
        """Pillow's name of the channels."""
        return "RGB" if self.channels == 3 else "L"

    def resized(self, image: Image.Image) -> Image.Image:
        """Return the image as it is before the crop."""
        return ShorterSide(self.resize, self.interpolation, max(self.crop))(image)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels."""
        if image.mode not in ("RGB", "L"):
            raise ValueError(f"images must be of mode RGB or L, got {image.mode}: convert them")
        return pixels_of(v2.functional.center_crop(self.resized(image), list(self.crop)))

    @property
    def generators(self) -> tuple[()]:
        """The random generators that it draws from, for `IndexedDataset`: none."""
        return ()

    def as_dict(self) -> dict[str, object]:
        """Return all that somebody else needs to do the same, as plain values."""
        return {
            **asdict(self),
            "crop": list(self.crop),
            "color": self.mode,
            "upright": "turned as its EXIF says",
            "transparent": "on white",
            "longer_side": "int(resize * longer / shorter)",
            "antialias": True,
            "crop_from": "round((side - crop) / 2)",
            "scale": "1/255, to float32 0..1",
            "layout": "NCHW",
        }

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """Make what `as_dict` describes.

        Raises:
            ValueError: If it says less.
        """
        try:
            height, width = described["crop"]
            crop = int(height), int(width)
            return cls(int(described["resize"]), crop, described["interpolation"], int(described["channels"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"expected a preprocessing with resize, crop, interpolation and channels, got {described}"
            ) from error


def pixels_of(image: Image.Image) -> Tensor:
    """Return the pixels of a Pillow image as ``uint8`` ``(C, H, W)``."""
    # torchvision's own function takes twice as long for a small image, and collating a tv_tensor longer still.
    pixels = np.asarray(image)
    return torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy())
