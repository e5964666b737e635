"""Read every image once: which are damaged, what they look like, and their pixels, to be shared by all who train."""

from collections.abc import Sequence
from dataclasses import dataclass
import mmap
import os
from pathlib import Path
import tempfile
from typing import Any, NamedTuple
import weakref
import zlib

import numpy as np
from PIL import Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lit_distill.datamodules.images import ImageFiles, content_key
from lit_distill.photos import Mode

_BATCH = 32  # images that a reading process hands over at once
_FEW = 256  # images for which no process is worth its start


class DecodedImages(Sequence[Image.Image]):
    """Images of 8 bits a channel in memory that all processes of a machine can map.

    On Linux it is memory without a name, free again when the last process that uses it has ended, however it ended;
    elsewhere it is a temporary file. A copy in another process, be it a worker or another rank, maps the same bytes.

    Args:
        path: Where the bytes are, one image after the other, row by row, channels last.
        sizes: Height and width of each image, ``(N, 2)``; zeros where there is none.
        mode: ``"RGB"`` or ``"L"``.
    """

    def __init__(self, path: str, sizes: Tensor, mode: Mode = "RGB") -> None:
        self.path = path
        self.sizes = sizes.to(torch.int32)
        self.mode: Mode = mode
        lengths = self.sizes.long().prod(dim=1) * len(mode)
        self._ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).numpy()
        self.nbytes = int(self._ends[-1])
        with open(path, "rb") as file:
            self._pixels = memoryview(mmap.mmap(file.fileno(), self.nbytes, access=mmap.ACCESS_READ))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self._ends) - 1:
            raise IndexError(index)
        start, end = self._ends[index], self._ends[index + 1]
        if end == start:
            raise ValueError(f"image {index} could not be read when the images were decoded")
        height, width = self.sizes[index].tolist()
        return Image.frombuffer(self.mode, (width, height), self._pixels[start:end], "raw", self.mode, 0, 1)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodedImages, (self.path, self.sizes, self.mode)


@dataclass
class Reading:
    """What reading all images has told.

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
        workers = 0 if len(data) < _FEW else min(8, cores())
    buffer = _Buffer() if budget else None
    collate = _with_pixels if budget else _without_pixels
    loader: DataLoader[Any] = DataLoader(
        _Pixels(data), _BATCH, num_workers=workers, collate_fn=collate, generator=torch.Generator()
    )
    parts: list[_Part] = []
    with tqdm(
        total=len(data), desc="reading images", unit=" images", delay=1, leave=False, disable=quiet or None
    ) as bar:
        for pixels, part in loader:
            parts.append(part)
            if buffer is not None:
                buffer.write(pixels)
                if buffer.nbytes > budget:
                    buffer = None
            bar.update(len(part.sizes))
    sizes, decoded = torch.cat([part.sizes for part in parts]), None
    if buffer is not None and buffer.nbytes:
        decoded = DecodedImages(buffer.path, sizes, data.mode)
        buffer.belong_to(decoded)
    damaged = {row: why for part in parts for row, why in part.damaged.items()}
    contents = [content for part in parts for content in part.contents]
    return Reading(sizes, damaged, torch.cat([part.moments for part in parts]), contents, decoded)


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes of memory that are free for use, of the machine or of the container that limits it."""
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    else:
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    try:  # a container's; what is cached of files is given back when it is wanted
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        free.append(limit - int(used["anon"]) - int(used["shmem"]))
    except (OSError, ValueError, KeyError):  # no such limit, or "max"
        pass
    return max(0, min(free))


class _Buffer:
    """Bytes that grow, in memory without a name where there is such a thing."""

    def __init__(self) -> None:
        self.nbytes = 0
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("lit_distill")
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp(prefix="lit_distill_")
        self._end = weakref.finalize(self, _discard, self._file, self.path)

    def write(self, pixels: Tensor) -> None:
        view = memoryview(pixels.numpy()).cast("B")  # type: ignore[arg-type]  # NumPy's stubs before Python 3.12
        while view:
            written = os.pwrite(self._file, view, self.nbytes)
            self.nbytes, view = self.nbytes + written, view[written:]

    def belong_to(self, owner: object) -> None:
        """Keep the file for as long as ``owner`` lives."""
        self._end.detach()
        weakref.finalize(owner, _discard, self._file, self.path)


def _discard(file: int, path: str) -> None:
    os.close(file)
    if not path.startswith("/proc/"):
        Path(path).unlink(missing_ok=True)


class _Part(NamedTuple):
    """What a worker tells of some images."""

    sizes: Tensor
    moments: Tensor
    contents: list[str]
    damaged: dict[int, str]


class _Sample(NamedTuple):
    """What reading one file has told; of a damaged one there are no pixels and no moments."""

    row: int
    pixels: Any
    moments: Any
    content: str
    error: str | None


class _Pixels(Dataset[Any]):
    """The images before the transform, and digests of their files."""

    def __init__(self, data: ImageFiles) -> None:
        self.data = data
        shape = (0, 0) if data.mode == "L" else (0, 0, 3)
        self.nothing = np.zeros(shape, np.uint8), np.full((2, len(data.mode)), np.nan)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> _Sample:
        content = ""
        try:
            file = self.data.files.open(index)
            whole = file.read()
            content = f"{content_key(len(whole), zlib.crc32(whole)):016x}"
            file.seek(0)
            pixels = np.asarray(self.data.image(index, file))
        except (OSError, ValueError) as error:
            return _Sample(index, *self.nothing, content, str(error.__cause__ or error))
        values = pixels.reshape(-1, len(self.data.mode)) / np.float32(255)
        means = values.mean(0, dtype=np.float64), np.square(values).mean(0, dtype=np.float64)
        return _Sample(index, pixels, np.stack(means), content, None)


def _with_pixels(samples: list[_Sample]) -> tuple[Tensor, _Part]:
    return torch.from_numpy(np.concatenate([sample.pixels.reshape(-1) for sample in samples])), _part(samples)


def _without_pixels(samples: list[_Sample]) -> tuple[Tensor, _Part]:
    return torch.zeros(0, dtype=torch.uint8), _part(samples)


def _part(samples: list[_Sample]) -> _Part:
    return _Part(
        torch.tensor([sample.pixels.shape[:2] for sample in samples], dtype=torch.int32),
        torch.from_numpy(np.stack([sample.moments for sample in samples])),
        [sample.content for sample in samples],
        {sample.row: sample.error for sample in samples if sample.error is not None},
    )
