"""Reading images: any format of Pillow's as 8 bits a channel, upright."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
import hashlib
import io
from itertools import pairwise
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

Mode = Literal["RGB", "L"]

# libjpeg halves with a coarse filter. From an image three times as large Pillow averages that away.
_DRAFT = 3


def read_image(
    file: str | Path | BinaryIO, mode: Mode = "RGB", shrink: int | None = None, name: str | None = None
) -> Image.Image:
    """Return an image as ``mode``, and upright.

    Evaluation is this without ``shrink``, followed by `Augmentation.evaluate`: validation, test and prediction see the
    same pixels.

    Palettes, CMYK and greyscale are converted; 16 bits become 8 (``value / 257``), floats of 0..1 become 0..255; what
    is transparent lies on white; of an animation the first frame counts; the turn that a camera noted (EXIF) is made.

    Args:
        file: A path, or a file opened for reading bytes.
        mode: ``"RGB"``, or ``"L"`` for one channel.
        shrink: Pixels that the shorter side has at most; a longer one is shrunk to it, of JPEGs in part while they are
            decoded, which changes the pixels a little. None leaves the size alone.
        name: Of a file that is open: the format of its suffix is tried before all others; by default that of the path.

    Raises:
        OSError: If it cannot be read, is cut off, is no image, or has more than 179 million pixels.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("LA", (400, 300)).save(file, "PNG")  # black, and wholly transparent
        >>> image = read_image(file, shrink=150)
        >>> image.size, image.mode, image.getpixel((0, 0))
        ((200, 150), 'RGB', (255, 255, 255))
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd metadata: whoever reads ten thousand photos has some
        try:
            if isinstance(file, (str, Path)):
                file, name = _bytes_of(file), str(file) if name is None else name
            with _open(file, name or "") as opened:
                target = _shrunk(opened.size, shrink)
                if target != opened.size:
                    opened.draft(None, (_DRAFT * target[0], _DRAFT * target[1]))  # None: the mode stays
                opened.load()
                image = _eight_bits(opened, mode)
                if target != image.size:
                    image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
                if {"exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():
                    image = ImageOps.exif_transpose(image)
                return image
        except UnidentifiedImageError as error:  # Pillow's message has the whole path, or the object, in it
            raise OSError("cannot identify image file") from error
        except OSError:
            raise
        except Exception as error:  # damaged files bring every kind out of one or another of Pillow's readers
            raise OSError(str(error) or type(error).__name__) from error


def _open(file: BinaryIO, name: str) -> Image.Image:
    # Of fifty formats the first that fits is taken: to begin with the likely one saves a third of a small image's time.
    likely = _formats().get(os.path.splitext(name)[1].lower())
    if likely is not None:
        try:
            return Image.open(file, formats=(likely,))
        except UnidentifiedImageError:
            file.seek(0)
    return Image.open(file)


@cache
def _formats() -> dict[str, str]:
    return {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _bytes_of(path: str | Path) -> BinaryIO:
    # At once: for small images a sixth faster than through Python's buffered files, which Pillow reads in blocks.
    file = os.open(path, os.O_RDONLY)
    try:
        size, parts = os.fstat(file).st_size, []
        while part := os.read(file, size + 1):
            parts.append(part)
    finally:
        os.close(file)
    return io.BytesIO(b"".join(parts))


def _shrunk(size: tuple[int, int], shrink: int | None) -> tuple[int, int]:
    shorter = min(size)
    if shrink is None or shorter <= shrink:
        return size
    width, height = (max(shrink, round(side * shrink / shorter)) for side in size)
    return width, height


def _eight_bits(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image
    info = image.info
    if image.mode.startswith("I") or image.mode == "F":
        values: Any = np.asarray(image, dtype=np.float32)
        values = values * 255 if image.mode == "F" and values.max(initial=0) <= 1 else values
        values = values if image.mode == "F" else values / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    image = image.convert(mode)
    image.info = info
    return image


class Files(Sequence[str]):
    """Names of many files, and how to open them; here those in a folder.

    The names are packed into one tensor: a worker then shares them with the process it comes from, where the reference
    counts of a list of strings would have every page of it copied, worker by worker.

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
        ends = np.cumsum([0, *map(len, packed)])
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(packed)), dtype=np.uint8))
        self._ends = torch.from_numpy(ends.astype(np.int64))
        self._view()

    def _view(self) -> None:
        # Tensors are what a spawned worker shares, NumPy what is read element by element in no time.
        self._packed, self._places = self._bytes.numpy(), self._ends.numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_packed", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._view()

    def __len__(self) -> int:
        return len(self._places) - 1

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        count = len(self._places) - 1
        if not -count <= index < count:
            raise IndexError(index)
        index %= count
        return os.fsdecode(self._packed[self._places[index] : self._places[index + 1]].tobytes())

    @override
    def __iter__(self) -> Iterator[str]:
        packed, places = self._packed.tobytes(), self._places.tolist()
        return (os.fsdecode(packed[start:end]) for start, end in pairwise(places))

    def open(self, index: int) -> str | BinaryIO:
        """Return what `read_image` takes: a path, or an opened file."""
        return os.path.join(self.root, self[index])

    def stamp(self, index: int) -> str:
        """Return what changes when the file does: its size and time."""
        about = os.stat(os.path.join(self.root, self[index]))
        return f"{about.st_size} {about.st_mtime_ns}"

    def digest(self, *how: Any) -> str:
        """Return a digest of all names and stamps, and of ``how`` the files are read."""
        sha = hashlib.sha256(repr(how).encode())
        for index, name in enumerate(self):
            sha.update(os.fsencode(f"{name}\0{self.stamp(index)}\n"))
        return sha.hexdigest()


class ImageFiles(Dataset[tuple[Any, int]]):
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
    """

    def __init__(
        self,
        files: Files,
        targets: Iterable[int] | Tensor,
        transform: Callable[[Image.Image], Any] | None = None,
        mode: Mode = "RGB",
        shrink: int | None = None,
        resize: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self.files = files
        self.targets = torch.as_tensor(targets if isinstance(targets, Tensor) else list(targets), dtype=torch.int64)
        if len(self.targets) != len(files):
            raise ValueError(f"expected a target for each of {len(files)} files, got {len(self.targets)}")
        self.transform = transform
        self.mode: Mode = mode
        self.shrink = shrink
        self.resize = resize
        self.rows: Tensor | None = None
        self.decoded: Any = None

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        return (image if self.transform is None else self.transform(image)), int(self.targets.numpy()[index])

    def image(self, index: int) -> Image.Image:
        """Return the image of a row, before the transform."""
        if self.decoded is not None:
            return self.decoded[index]  # type: ignore[no-any-return]
        try:
            image = read_image(self.files.open(index), self.mode, self.shrink, self.files[index])
        except OSError as error:
            raise ValueError(f"cannot read the image {self.files[index]}: {error}") from error
        return image if self.resize is None else self.resize(image)

    def digest(self) -> str:
        """Return what changes when a file does, or how the files are read."""
        return self.files.digest(len(self.mode), self.shrink, repr(self.resize))
