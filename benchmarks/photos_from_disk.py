"""Reading large JPEGs: Pillow, as this project reads them, beside simplejpeg and torchvision.io.

    python benchmarks/photos_from_disk.py FOLDER [--photos 4] [--rounds 5] [--sides 500 1000 2000 3000 4000]

FOLDER has large photos as JPEGs at any depth, such as desktop backgrounds. ``--photos`` of them are drawn and resized
to each side (the shorter one), then saved baseline with 4:2:0 chroma (quality 85), with 4:4:4 (quality 95), and
progressive (quality 85); the last rows are the files as they are. simplejpeg is left out where it is not installed.

All alternatives stand in one process and read the same bytes in turn. The milliseconds are the median over the rounds
of the thread's processor time for a photo; ratios are beside the first column in the same round. Differences are in
levels of 0..255: the largest, and the mean.

Decoding: to an array or tensor, and "as image", to the Pillow image that all transforms start from.

Evaluation: a photo with `Augmentation.evaluate`, whose pixels must stay. "resized as tensor" resizes torchvision's
tensor with torch instead.

Training: a photo and one random resized crop of it. `read_image` shrinks it to `Augmentation.sufficient_side`, from
simplejpeg's array or from Pillow's image; "before", it did so with Pillow's bicubic filter. The others read the photo
whole, or leave all shrinking to the decoder, which halves the sides (Pillow's ``draft``) or takes eighths of them
(simplejpeg) as long as 1.5 times the sufficient side is left. Differences are those of crops with the same boxes from
the whole photo. torchvision.io cannot decode to a smaller size.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
import io
from pathlib import Path
import random
from typing import Any
from unittest.mock import patch

from measure import Report, Timing, interleave, median_of, options_of, quiet, ratio, scaled, thread
import numpy as np
from PIL import Image
import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from lit_distill import photos
from lit_distill.datamodules import Augmentation
from lit_distill.photos import read_image

if find_spec("simplejpeg"):
    import simplejpeg
else:
    simplejpeg = None

SIDES = (500, 1000, 2000, 3000, 4000)
KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {"quality": 85, "subsampling": "4:2:0"},
    "4:4:4": {"quality": 95, "subsampling": "4:4:4"},
    "progressive": {"quality": 85, "progressive": True},
}
LEAST = 1.5  # times the sufficient side that a decoder leaves when it shrinks
BOXES = 6  # crops of each photo

Read = Callable[[bytes], Any]


def pillow(content: bytes) -> Image.Image:
    return read_image(io.BytesIO(content))


def tensor(content: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def array(content: bytes) -> Any:
    return simplejpeg.decode_jpeg(content)


def image_of(read: Read, content: bytes) -> Image.Image:
    """Return a decoder's array (H, W, C) or tensor (C, H, W) as a Pillow image."""
    pixels = read(content)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy() if isinstance(pixels, torch.Tensor) else pixels)


def drafted(content: bytes, least: int) -> Image.Image:
    """Return a photo that Pillow has halved while decoding as often as leaves ``least`` pixels."""
    image = Image.open(io.BytesIO(content), formats=["JPEG"])
    image.draft(None, (least, least))
    image.load()
    return image


def resized_by_pillow(content: bytes, side: int) -> Image.Image:
    """Return a photo shrunk as `read_image` did it with Pillow alone."""
    image = Image.open(io.BytesIO(content), formats=["JPEG"])
    size = shrunk_size(image.size, side)
    if size == image.size:
        return image
    image.draft(None, (3 * size[0], 3 * size[1]))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def without_simplejpeg(content: bytes, side: int) -> Image.Image:
    with patch.object(photos, "_decode_jpeg", None):
        return read_image(io.BytesIO(content), shrink=side)


def shrunk_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    shorter = min(size)
    width, height = (max(side, round(length * side / shorter)) for length in size)
    return size if shorter <= side else (width, height)


def eighths(content: bytes, least: int) -> Image.Image:
    """Return a photo that simplejpeg has shrunk while decoding to as many eighths as leave ``least`` pixels."""
    return Image.fromarray(simplejpeg.decode_jpeg(content, min_height=least, min_width=least))


def difference(pixels: Any, right: Any) -> dict[str, float]:
    """Return how far pixels are from the right ones."""
    levels = np.abs(np.asarray(pixels).astype(int) - np.asarray(right).astype(int))
    return {"max": int(levels.max()), "mean": float(levels.mean())}


def timed(works: dict[str, Callable[[bytes], object]], contents: list[bytes], options: argparse.Namespace) -> Any:
    """Return the seconds a photo of each work, round by round."""

    def run(work: Callable[[bytes], object]) -> None:
        for photo in contents:
            work(photo)

    timings: dict[str, list[Timing]] = interleave(
        {name: partial(run, work) for name, work in works.items()}, options.rounds, options.seed
    )
    return {name: [seconds / len(contents) for seconds in thread(taken)] for name, taken in timings.items()}


def beside(seconds: dict[str, list[float]], first: str) -> dict[str, Any]:
    """Return the milliseconds of the first work, and the ratios of the others."""
    row: dict[str, Any] = {f"{first} (ms)": median_of(second * 1000 for second in seconds[first]).median}
    return row | {name: ratio(taken, seconds[first]) for name, taken in seconds.items() if name != first}


def decoding(contents: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    reads: dict[str, Read] = {"torchvision": tensor} | ({"simplejpeg": array} if simplejpeg else {})
    images = {f"{name}, as image": partial(image_of, read) for name, read in reads.items()}
    row = beside(timed({"Pillow": pillow} | reads | images, contents, options), "Pillow")
    for name, read in reads.items():
        differences = [difference(image_of(read, photo), pillow(photo)) for photo in contents]
        row[f"{name}: max, mean"] = worst(differences)
    return row


def evaluation(contents: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    evaluate = Augmentation().evaluate(options.size)

    def by_tensor(content: bytes) -> torch.Tensor:
        pixels = tensor(content)
        shape = pixels.shape[1:]
        side = evaluate.resize
        size = [side * length // min(shape) for length in shape]
        pixels = v2.functional.resize(pixels, size, v2.InterpolationMode.BICUBIC, antialias=True)
        return v2.functional.center_crop(pixels, list(evaluate.crop))

    def by_image(read: Read, content: bytes) -> torch.Tensor:
        return evaluate(read(content))

    works: dict[str, Callable[[bytes], torch.Tensor]] = {"Pillow": partial(by_image, pillow)}
    for name, read in {"torchvision": tensor, "simplejpeg": array}.items():
        if name != "simplejpeg" or simplejpeg:
            works[f"{name}, as image"] = partial(by_image, partial(image_of, read))
    works["torchvision, resized as tensor"] = by_tensor
    seconds = timed({"reading alone": pillow, **works}, contents, options)
    alone = seconds.pop("reading alone")
    row = beside(seconds, "Pillow") | {"reading alone": ratio(alone, seconds["Pillow"])}
    for name, work in works.items():
        if name != "Pillow":
            differences = [difference(work(photo), works["Pillow"](photo)) for photo in contents]
            row[f"{name}: max, mean"] = worst(differences)
    return row


def training(contents: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    recipe = Augmentation()
    transform, sufficient = recipe.train(options.size), recipe.sufficient_side(options.size)
    least = round(LEAST * sufficient)
    reads: dict[str, Callable[[bytes], Image.Image]] = {
        "before": partial(resized_by_pillow, side=sufficient),
        "read_image, Pillow": partial(without_simplejpeg, side=sufficient),
        "whole": pillow,
        "draft alone": partial(drafted, least=least),
    }
    if simplejpeg:
        reads["read_image, simplejpeg"] = lambda content: read_image(io.BytesIO(content), shrink=sufficient)
        reads["simplejpeg, eighths alone"] = partial(eighths, least=least)

    def sample(read: Callable[[bytes], Image.Image], content: bytes) -> torch.Tensor:
        torch.manual_seed(len(content))
        return transform(read(content))

    seconds = timed({name: partial(sample, read) for name, read in reads.items()}, contents, options)
    row = beside(seconds, "before")
    for name, read in reads.items():
        if name != "whole":
            row[f"{name}: max, mean"] = worst([moved(read(photo), pillow(photo), options) for photo in contents])
    return row


def moved(image: Image.Image, whole: Image.Image, options: argparse.Namespace) -> dict[str, float]:
    """Return how far crops of an image are from those of the whole photo with the same boxes."""
    torch.manual_seed(options.seed)
    draw = v2.RandomResizedCrop(options.size, Augmentation().scale, Augmentation().ratio)
    crops = []
    for _ in range(BOXES):
        top, left, height, width = draw.make_params([v2.functional.to_image(whole)]).values()
        box = (left / whole.width, top / whole.height, (left + width) / whole.width, (top + height) / whole.height)
        crops.append([cut(photo, box, options.size) for photo in (image, whole)])
    ours, right = zip(*crops, strict=True)
    return difference(np.stack(ours), np.stack(right))


def cut(image: Image.Image, box: tuple[float, ...], size: int) -> Any:
    """Cut out and resize a box in shares of width and height."""
    width, height = image.size
    pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=pixels))


def worst(differences: list[dict[str, float]]) -> str:
    """Return the largest difference of all photos, and the mean of their means."""
    largest, mean = max(one["max"] for one in differences), np.mean([one["mean"] for one in differences])
    return "equal" if largest == 0 else f"{largest}, {mean:.2f}"


def copies(files: list[bytes], side: int, **saving: Any) -> list[bytes]:
    """Return photos whose shorter side is resized to ``side`` pixels, as JPEGs."""
    photos = []
    for content in files:
        whole = pillow(content)
        size = [round(length * side / min(whole.size)) for length in whole.size]
        file = io.BytesIO()
        whole.resize((size[0], size[1]), Image.Resampling.LANCZOS).save(file, "JPEG", **saving)
        photos.append(file.getvalue())
    return photos


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="of large photos as JPEGs")
        parser.add_argument("--photos", type=int, default=4, help="that are drawn, by default 4")
        parser.add_argument("--rounds", type=int, default=5, help="by default 5")
        parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="shorter sides in pixels")
        parser.add_argument("--size", type=int, default=224, help="of the crops, by default 224")

    options = options_of(__doc__, add)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(paths) < options.photos:
        raise SystemExit(f"error: {options.folder} has {len(paths)} JPEGs, expected at least {options.photos}")
    options.rounds = scaled(options.rounds, options, 1)
    files = [path.read_bytes() for path in random.Random(options.seed).sample(paths, options.photos)]
    report = Report(__file__, options, "shorter side")
    if simplejpeg is None:
        report.note("simplejpeg is not installed: left out")
    tables: dict[str, Callable[[list[bytes], argparse.Namespace], dict[str, Any]]] = {
        "Training": training,
        "Evaluation": evaluation,
        "Decoding": decoding,
    }
    with quiet():  # torchvision warns that its decoders are deprecated
        for title, measure in tables.items():
            for kind, saving in KINDS.items():
                if title != "Decoding" and kind != "4:2:0":
                    continue
                for side in options.sides if options.length == 1 else options.sides[:1]:
                    name = f"{side} px, {kind}"
                    if not report.has(title, name):
                        report.row(title, name, **measure(copies(files, side, **saving), options))
            report.once(title, "as they are", partial(measure, files, options))
    report.finish()


if __name__ == "__main__":
    main()
