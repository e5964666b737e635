"""Decoded images in memory that all processes of a machine share."""

from collections.abc import Iterator
from contextlib import suppress
import mmap
import os
from pathlib import Path
import tempfile
from typing import Any
import weakref

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from lit_distill.photos import Mode

Pixels = np.ndarray[Any, Any]  # NumPy's shape and kind


class DecodedImages:
    """Images of 8 bits a channel in memory that all processes of a machine can map.

    On Linux it is memory without a name, which the kernel frees when the last process that uses it ends; elsewhere it
    is a temporary file. A copy in another process, a worker or another rank, maps the same bytes.

    Args:
        path: Where the bytes are: one image after the other, row by row, channels last.
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
            # Nobody writes to them, but PyTorch warns of memory that cannot be written to.
            self._pixels = np.frombuffer(mmap.mmap(file.fileno(), self.nbytes, access=mmap.ACCESS_COPY), np.uint8)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Image.Image:
        start, end = self._ends[index], self._ends[index + 1]
        if end == start:
            raise ValueError(f"image {index} could not be read when the images were decoded")
        height, width = self.sizes[index].tolist()
        return Image.frombuffer(self.mode, (width, height), self._pixels[start:end], "raw", self.mode, 0, 1)

    def stacked(self) -> tuple[Tensor, Tensor | None]:
        """Return the images that could be read as one tensor, ``uint8`` ``(M, C, H, W)``, which is not a copy.

        Returns:
            The tensor, and the place of each image in it, ``(N,)`` int64; None if there are all.

        Raises:
            ValueError: If the images are of several sizes.
        """
        is_there = self.sizes[:, 0] > 0
        sizes = self.sizes[is_there]
        height, width = sizes[0].tolist()
        other_sizes = sizes[(sizes != sizes[0]).any(dim=1)].tolist()
        if other_sizes:
            raise ValueError(
                f"they have several sizes, such as {height} x {width} and {other_sizes[0][0]} x {other_sizes[0][1]}"
            )
        pixels = torch.from_numpy(self._pixels).view(-1, height, width, len(self.mode)).permute(0, 3, 1, 2)
        return pixels, None if is_there.all() else is_there.long().cumsum(0) - 1

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self.__getitem__, range(len(self)))

    def __reduce__(self) -> tuple[type["DecodedImages"], tuple[str, Tensor, Mode]]:
        return DecodedImages, (self.path, self.sizes, self.mode)


class PixelBuffer:
    """Bytes that grow, in memory without a name where the system has it, else in a temporary file."""

    def __init__(self) -> None:
        self.nbytes = 0
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("lit_distill")
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp(prefix="lit_distill_")
        self._end = weakref.finalize(self, _discard, self._file, self.path)

    def write(self, pixels: Pixels) -> None:
        """Append ``uint8`` pixels."""
        while len(pixels):
            written = os.pwrite(self._file, pixels.data, self.nbytes)
            self.nbytes, pixels = self.nbytes + written, pixels[written:]

    def discard(self) -> None:
        """Free the memory."""
        self._end()

    def as_images(self, sizes: Tensor, mode: Mode) -> DecodedImages:
        """Return the bytes as images, which keep the memory from now on."""
        images = DecodedImages(self.path, sizes, mode)
        self._end.detach()
        weakref.finalize(images, _discard, self._file, self.path)
        return images


def free_memory() -> int:
    """Return the bytes of free memory, of the machine or of the container that limits it."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    with suppress(OSError):  # Linux knows better
        free = [int(_table("/proc/meminfo")["MemAvailable:"]) * 1024]
    with suppress(OSError, ValueError, KeyError):  # a file is missing, or there is no limit ("max")
        usage = _table("/sys/fs/cgroup/memory.stat")  # the files in the container's cache count as free
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free.append(limit - int(usage["anon"]) - int(usage["shmem"]))
    return max(0, min(free))


def _table(path: str) -> dict[str, str]:
    """Return the first value of each line of a file of the kernel's, by the line's first word."""
    return {line.split()[0]: line.split()[1] for line in Path(path).read_text().splitlines()}


def _discard(file: int, path: str) -> None:
    os.close(file)
    if not path.startswith("/proc/"):
        Path(path).unlink(missing_ok=True)
