"""Image files, and how to open them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import hashlib
from itertools import accumulate, pairwise
import os
from pathlib import Path
from typing import BinaryIO, TypeVar
import zlib

import numpy as np
from PIL import Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lit_distill.datamodules.decoded import DecodedImages
from lit_distill.datamodules.stacked import StackedImages
from lit_distill.identity import identities, short_hash
from lit_distill.photos import Mode, bytes_of, read_image

_CHUNK = 1 << 20
Number = TypeVar("Number", int, Tensor)  # of one file, or of many


class Files:
    """Names of many files, and how to open them; here those in a folder.

    The names are packed into one tensor, which workers share with the process that starts them. A list of strings they
    would copy page by page, as soon as they touch the reference counts.

    Args:
        root: The folder.
        names: Paths in it.

    Example:
        >>> files = Files("photos", ["cat/a.jpg", "dog/b.jpg"])
        >>> len(files), files[1]
        (2, 'dog/b.jpg')
    """

    def __init__(self, root: str | Path, names: Iterable[str]) -> None:
        self.root = str(root)
        packed = [os.fsencode(name) for name in names]
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(packed)), dtype=np.uint8))
        self._ends = torch.tensor([0, *accumulate(map(len, packed))])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        ends = self._ends.numpy()
        return os.fsdecode(self._bytes.numpy()[ends[index] : ends[index + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        names = self._bytes.numpy().tobytes()
        return (os.fsdecode(names[start:end]) for start, end in pairwise(self._ends.tolist()))

    def open(self, index: int) -> BinaryIO:
        """Return a file, opened for reading bytes.

        Raises:
            OSError: If it cannot be read.
        """
        return bytes_of(os.path.join(self.root, self[index]))

    def stamp(self, index: int) -> str:
        """Return what changes when the file does: its size and time."""
        about = os.stat(os.path.join(self.root, self[index]))
        return f"{about.st_size} {about.st_mtime_ns}"

    def identities(self) -> Tensor:
        """Return what identifies each row without reading the files: name, size and time, ``(N, 2)`` int64."""
        keys = [short_hash(f"{name}\0{self.stamp(index)}") for index, name in enumerate(self)]
        return identities(self, torch.tensor(keys, dtype=torch.int64))

    def digest(self, *settings: object) -> str:
        """Return a digest of all names and stamps, and of the ``settings`` with which the files are read."""
        sha = hashlib.sha256(repr(settings).encode())
        for index, name in enumerate(self):
            sha.update(os.fsencode(f"{name}\0{self.stamp(index)}\n"))
        return sha.hexdigest()


def content_key(size: Number, crc: Number) -> Number:
    """Return a number > 0 that files of other bytes hardly share; the same for a file and a zip archive's member."""
    return (size % (1 << 30) + 1) << 32 | crc


def size_and_crc(path: str | Path) -> tuple[int, int]:
    """Return the number of a file's bytes and their CRC-32.

    Raises:
        OSError: If the file cannot be read.
    """
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


class ImageFiles(Dataset[tuple[object, int]]):
    """``(transform(image), target)`` of files.

    Args:
        files: The files; a row is a position among them.
        targets: Class of each, int64 ``(N,)``.
        transform: Called with the Pillow image.
        mode: ``"RGB"``, or ``"L"`` for one channel.
        shrink: As of `read_image`.
        resize: Called with each image as it is read, before it is kept in memory: the beginning of ``transform``, which
            then has nothing left to resize. Its ``repr`` says what it does.

    Raises:
        ValueError: When a file that is read turns out to be damaged.

    Attributes:
        rows: The rows to train on, int64, or None for all of them; files found damaged are left out.
        decoded: The images where they have been decoded before, else None.
        contents: `content_key` of each file where all of them have been read before, int64 ``(N,)``, else None.
    """

    def __init__(
        self,
        files: Files,
        targets: Sequence[int] | Tensor,
        transform: Callable[[Image.Image], object] | None = None,
        mode: Mode = "RGB",
        shrink: int | None = None,
        resize: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self.files = files
        self.targets = torch.as_tensor(targets, dtype=torch.int64)
        self.transform = transform
        self.mode: Mode = mode
        self.shrink = shrink
        self.resize = resize
        self.rows: Tensor | None = None
        self.decoded: DecodedImages | None = None
        self.contents: Tensor | None = None

    @property
    def identities(self) -> Tensor:
        """What identifies each row, ``(N, 2)`` int64: its content if it has been read, else name, size and time."""
        return self.files.identities() if self.contents is None else identities(self.files, self.contents)

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, index: int) -> tuple[object, int]:
        image = self.image(index)
        return (image if self.transform is None else self.transform(image)), int(self.targets.numpy()[index])

    def image(self, index: int, file: BinaryIO | None = None) -> Image.Image:
        """Return the image of a row, before the transform; where the row's file is open already, from that."""
        if self.decoded is not None:
            return self.decoded[index]
        try:
            image = read_image(file or self.files.open(index), self.mode, self.shrink, self.files[index])
            return image if self.resize is None else self.resize(image)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the image {self.files[index]}: {error}") from error

    def stacked(self) -> StackedImages | str:
        """Return the images as one tensor, as `Stackable` says."""
        if self.decoded is None:
            return "they are not decoded in memory"
        # Here, so that an IndexedDataset in somebody's project does not import timm and torchvision.
        from lit_distill.datamodules.batched.forms import batch_form

        transform = batch_form(self.transform)
        if isinstance(transform, str):
            return transform
        images, place = self.decoded.stacked()
        return StackedImages(images, self.targets, transform, place)

    def digest(self) -> str:
        """Return what changes when a file does, or how the files are read."""
        return self.files.digest(len(self.mode), self.shrink, repr(self.resize))
