"""How far shrinking a photo before a random crop moves the crop's pixels.

    python benchmarks/shrinking.py FOLDER [--size 224] [--crops 20]

FOLDER has small photos at any depth, such as CIFAR's as files. Large JPEGs are made of them: mosaics as they are
(sharp), mosaics enlarged three times (soft, as photos of cameras are), and noise on a gradient. Each is cut with the
boxes of ``RandomResizedCrop`` from the fully decoded photo and from one whose shorter side was shrunk to ``multiple``
times the size, and the two crops of ``size`` pixels are compared: mean and 99th percentile of the difference in levels
of 0..255, over all crops. For the scale of it: saving the crop as a JPEG of quality 95 moves it by "JPEG 95". Also the
processor milliseconds to read a photo, and the kilobytes that it takes when decoded into memory.
"""

import argparse
from functools import partial
import io
import math
from pathlib import Path
import random
import statistics
import time
from typing import Any

from measure import Report, options_of, scaled
import numpy as np
from PIL import Image
import torch
from torchvision.transforms import v2

from lit_distill.photos import read_image

SIDES = (500, 1000, 2000, 3000)
MULTIPLES = (2.0, 3.0, 4.085, None)  # 4.085: what the smallest crop of DeiT needs


def photos(folder: str, side: int) -> list[Image.Image]:
    """Three photos of ``side`` x 4/3 ``side`` pixels: sharp, soft, noise."""
    names = sorted(str(path) for path in Path(folder).rglob("*.*") if path.is_file())[:20_000]
    rng = random.Random(side)
    mosaics = []
    for zoom in (1, 3):
        width, height = side * 4 // 3, side
        mosaic = Image.new("RGB", (width, height))
        for top in range(0, height, 32 * zoom):
            for left in range(0, width, 32 * zoom):
                with Image.open(rng.choice(names)) as tile:
                    size = (tile.width * zoom, tile.height * zoom)
                    mosaic.paste(tile.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
        mosaics.append(mosaic)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.random.default_rng(side).normal(0, 20, (height, width, 3))
    return [*mosaics, Image.fromarray(ramp.clip(0, 255).astype(np.uint8))]


def crop(image: Image.Image, box: tuple[float, ...], size: int) -> Any:
    """Cut out and resize a box in shares of width and height."""
    width, height = image.size
    pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=pixels)).astype(int)


def boxes(image: Image.Image, scale: tuple[float, float], count: int) -> list[tuple[float, ...]]:
    width, height = image.size
    torch.manual_seed(0)
    corners = []
    for _ in range(count):
        top, left, h, w = v2.RandomResizedCrop(8, scale).make_params([v2.functional.to_image(image)]).values()
        corners.append((left / width, top / height, (left + w) / width, (top + h) / height))
    return corners


def saved_again(pixels: Any) -> Any:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return np.asarray(Image.open(file)).astype(int)


def measure(files: list[bytes], multiple: float | None, size: int, crops: int) -> dict[str, float]:
    """Return how far crops of the photos move, the time to read one and its memory."""
    shrink = None if multiple is None else math.ceil(multiple * size)
    whole = [read_image(io.BytesIO(file)) for file in files]
    begin = time.process_time()
    small = [read_image(io.BytesIO(file), shrink=shrink) for file in files for _ in range(3)][::3]
    row: dict[str, float] = {
        "ms": (time.process_time() - begin) / 3 / len(files) * 1000,
        "kB": round(statistics.mean(w * h * 3 for w, h in (image.size for image in small)) / 1000),
    }
    for name, scale in {"8 %": (0.08, 1.0), "35 %": (0.35, 1.0)}.items():
        differences, jpeg = [], []
        for image, shrunk in zip(whole, small, strict=True):
            for box in boxes(image, scale, crops):
                right = crop(image, box, size)
                differences.append(np.abs(crop(shrunk, box, size) - right))
                jpeg.append(np.abs(saved_again(right) - right).mean())
        row[f"mean, {name}"] = float(np.mean(differences))
        row[f"p99, {name}"] = float(np.percentile(differences, 99))
        row[f"JPEG 95, {name}"] = float(np.mean(jpeg))
    return row


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder")
        parser.add_argument("--size", type=int, default=224)
        parser.add_argument("--crops", type=int, default=20)

    options = options_of(__doc__, add)
    report = Report(__file__, options, "photo and multiple")
    for side in SIDES if options.length == 1 else SIDES[:1]:
        files = []
        for image in photos(options.folder, side):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=90)
            files.append(file.getvalue())
        for multiple in MULTIPLES:
            name = f"{side} px, {'whole' if multiple is None else f'{multiple:.3g} x {options.size}'}"
            crops = scaled(options.crops, options, 2)
            measured = partial(measure, files, multiple, options.size, crops)
            report.once("difference in levels of 0..255", name, measured)
    report.finish()


if __name__ == "__main__":
    main()
