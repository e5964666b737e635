"""A contact sheet: images in rows and columns, with words below each."""

from collections.abc import Iterable, Sequence
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.v2 import functional as F

from lit_distill.datamodules.stacked import StackedImages, stack
from lit_distill.datamodules.walk import printable
from lit_distill.files import write_atomically

_COLUMNS, _SIDE, _MARGIN, _LINE = 8, 112, 8, 14  # pixels, but for the columns


def picture(dataset: Any, row: int) -> Image.Image:
    """Return the image of a row as it is before augmentation, if the data set can tell, else a sample of it."""
    if isinstance(dataset, Subset):
        return picture(dataset.dataset, dataset.indices[row])
    if hasattr(dataset, "image"):
        image: Image.Image = dataset.image(row)
        return image
    stacked = stack(dataset)
    if isinstance(stacked, StackedImages):
        return _as_picture(stacked.images[row if stacked.place is None else int(stacked.place[row])])
    sample = dataset[row]
    return _as_picture(sample["image"] if isinstance(sample, dict) else sample[0])


def write_sheet(path: Path, cells: Iterable[tuple[Image.Image, Sequence[str]]]) -> None:
    """Write a PNG file of images, each with lines of text below it; a file that is whole or not there.

    Args:
        path: The file.
        cells: The images and their lines, from the upper left to the lower right.
    """
    cells = list(cells)
    width = _SIDE + _MARGIN
    height = width + _LINE * max((len(lines) for _, lines in cells), default=0)
    size = min(_COLUMNS, len(cells)) * width + _MARGIN, math.ceil(len(cells) / _COLUMNS) * height + _MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, (image, lines) in enumerate(cells):
        left, top = place % _COLUMNS * width + _MARGIN, place // _COLUMNS * height + _MARGIN
        # Pixels of tiny images stay squares, instead of becoming clouds.
        way = Image.Resampling.NEAREST if max(image.size) < _SIDE / 2 else Image.Resampling.BICUBIC
        shown = ImageOps.contain(image.convert("RGB"), (_SIDE, _SIDE), way)
        sheet.paste(shown, (left + (_SIDE - shown.width) // 2, top + (_SIDE - shown.height) // 2))
        for number, line in enumerate(lines):
            draw.text((left, top + _SIDE + 1 + number * _LINE), _fitting(printable(line), draw, font), "black", font)
    with write_atomically(path) as part:
        sheet.save(part, "PNG")


def _fitting(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return as much of the text as a cell has room for."""
    short = text
    while short and draw.textlength(short if short == text else f"{short}...", font) > _SIDE:
        short = short[:-1]
    return text if short == text else f"{short}..."


def _as_picture(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    image = image.cpu()[:3] if image.shape[0] >= 3 else image.cpu()[:1]
    made: Image.Image = F.to_pil_image(image.clamp(0, 1) if image.is_floating_point() else image.to(torch.uint8))
    return made
