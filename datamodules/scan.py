"""Read every image once: which are damaged, what they look like, and if they fit into memory their pixels."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
import json
import os
from pathlib import Path
from typing import NamedTuple, Self
import zlib

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lit_distill.datamodules.decoded import DecodedImages, PixelBuffer, Pixels
from lit_distill.datamodules.images import ImageFiles, content_key
from lit_distill.datamodules.walk import printable
from lit_distill.files import write_atomically

_BATCH = 32  # images that a reading process hands over at once
_FEW = 256  # images for which no process is worth its start
_SHOWN = 5  # damaged files that a message names


@dataclass
class Reading:
    """What reading all images has found.

    Attributes:
        sizes: Height and width as decoded, ``(N, 2)`` int32; zeros of damaged files.
        damaged: Row of each damaged file, and why.
        moments: Mean of the pixels and of their squares in 0..1 of each image, ``(N, 2, C)`` float64.
        contents: `content_key` of each file's bytes as 16 hexadecimal digits; empty where they could not be read.
        decoded: The images, if they were to be kept and fit.
    """

    sizes: Tensor
    damaged: dict[int, str]
    moments: Tensor
    contents: list[str]
    decoded: DecodedImages | None


def read_all(data: ImageFiles, budget: int = 0, workers: int | None = None, quiet: bool = False) -> Reading:
    """Read all files of a data set.

    Args:
        data: The files; a file that cannot be read is reported, not raised.
        budget: Bytes that the decoded images may take; 0 keeps none.
        workers: Processes that read; by default one a core, at most 8, and none for few images.
        quiet: Without a progress bar.
    """
    if workers is None:
        workers = min(8, cores()) if len(data) >= _FEW else 0
    images = _Images(data, with_pixels=budget > 0)
    loader = DataLoader(images, _BATCH, num_workers=workers, collate_fn=_collate, generator=torch.Generator())
    buffer = PixelBuffer()
    batches = []
    options = {"desc": "reading images", "unit": " images", "unit_scale": _BATCH, "delay": 1, "leave": False}
    for pixels, *batch in tqdm(loader, disable=quiet or None, **options):
        batches.append(batch)
        if buffer.nbytes <= budget:
            buffer.write(pixels.numpy())
        else:
            buffer.discard()
    sizes, moments, contents, errors = zip(*batches, strict=True)
    size = torch.cat(sizes)
    return Reading(
        size,
        {row: error for row, error in enumerate(chain(*errors)) if error},
        torch.cat(moments),
        [*chain(*contents)],
        buffer.as_images(size, data.mode) if 0 < buffer.nbytes <= budget else None,
    )


@dataclass
class Scan:
    """The summary of a `Reading`, as it is stored beside the images.

    Attributes:
        digest: Of names, sizes and times of the files, and of how they were read.
        count: Number of files.
        nbytes: Bytes that the decoded images take.
        mean: Of the pixels in 0..1, a value a channel, each image counting alike.
        std: Standard deviation of the pixels.
        damaged: Name of each damaged file, and why.
        contents: As of `Reading`.
    """

    digest: str
    count: int
    nbytes: int
    mean: list[float]
    std: list[float]
    damaged: dict[str, str]
    contents: list[str]

    @classmethod
    def of(cls, reading: Reading, data: ImageFiles) -> Self:
        """Sum up a reading."""
        lengths = reading.sizes.long().prod(dim=1)
        good = lengths > 0
        mean, square = reading.moments[good].mean(dim=0)
        std = (square - mean.square()).clamp(min=1e-6).sqrt()
        return cls(
            digest=data.digest(),
            count=len(data),
            nbytes=int(lengths.sum()) * len(data.mode),
            mean=mean.round(decimals=4).tolist(),
            std=std.round(decimals=4).tolist(),
            damaged={data.files[row]: reason for row, reason in reading.damaged.items()},
            contents=reading.contents,
        )

    @classmethod
    def unread(cls, count: int = 0) -> Self:
        """Return what is known about files that have not been read."""
        return cls("", count, 0, [], [], {}, [""] * count)

    def readable(self, names: Iterable[str]) -> Tensor:
        """Tell of each file, by its name, whether it is undamaged, ``(N,)`` bool."""
        return torch.tensor([name not in self.damaged for name in names])

    def content_numbers(self) -> Tensor:
        """Return the contents as int64, ``(N,)``; 0 where a file could not be read."""
        return torch.tensor([int(content or "0", 16) for content in self.contents], dtype=torch.int64)

    def damage(self) -> str:
        """Return the first damaged files and why, as a part of a line."""
        return "; ".join(f"{printable(name)} ({why})" for name, why in [*self.damaged.items()][:_SHOWN])


def load_scans(path: Path | None) -> dict[str, Scan]:
    """Return the scans of each split that are stored in a file; none if there is no such file, or it is another's."""
    try:
        return {split: Scan(**scan) for split, scan in json.loads(Path(path or "").read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def store_scans(path: Path, scans: dict[str, Scan]) -> None:
    """Store scans beside those of other splits, if the file can be written."""
    write_json(path, {split: asdict(scan) for split, scan in {**load_scans(path), **scans}.items()})


def write_json(path: Path, content: object) -> bool:
    """Write a file that is whole or not there; tell whether it could be written."""
    try:
        with write_atomically(path) as part:
            part.write_text(json.dumps(content, indent=1))
    except OSError:
        return False
    return True


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Image(NamedTuple):
    """What reading one file has found; a damaged file has no pixels, no size and no moments."""

    pixels: Pixels
    size: tuple[int, ...]
    moments: Pixels
    content: str
    error: str = ""


class _Images(Dataset[_Image]):
    """The images before the transform, and digests of their files."""

    def __init__(self, data: ImageFiles, with_pixels: bool) -> None:
        self.data, self.with_pixels = data, with_pixels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> _Image:
        content, channels = "", len(self.data.mode)
        nothing = np.zeros(0, np.uint8)
        try:
            file = self.data.files.open(index)
            whole = file.read()
            content = f"{content_key(len(whole), zlib.crc32(whole)):016x}"
            file.seek(0)
            pixels = np.asarray(self.data.image(index, file))
        except (OSError, ValueError) as error:
            return _Image(nothing, (0, 0), np.full((2, channels), np.nan), content, str(error.__cause__ or error))
        values = pixels.reshape(-1, channels) / np.float32(255)
        moments = np.stack([values.mean(0, dtype=np.float64), np.square(values).mean(0, dtype=np.float64)])
        return _Image(pixels.reshape(-1) if self.with_pixels else nothing, pixels.shape[:2], moments, content)


def _collate(images: list[_Image]) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...], tuple[str, ...]]:
    pixels, sizes, moments, contents, errors = zip(*images, strict=True)
    size, moment = torch.tensor(sizes, dtype=torch.int32), torch.from_numpy(np.stack(moments))
    return torch.from_numpy(np.concatenate(pixels)), size, moment, contents, errors
