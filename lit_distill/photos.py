"""Read a photo as an upright image of 8 bits. Data modules, `load_student` and exports share this one way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
import io
import os
from pathlib import Path
import stat
from typing import BinaryIO, Literal
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
import torch
from torch import Tensor
from torch.nn import functional as F

with suppress(ImportError):  # the extra lit-distill[heif]; Pillow alone cannot read what iPhones write
    from pillow_heif import register_heif_opener

    register_heif_opener()

_decode_jpeg: Callable[[bytes], NDArray[np.uint8]] | None = None
with suppress(ImportError):  # the extra lit-distill[jpeg]; the pixels are the same without it
    _decode_jpeg = import_module("simplejpeg").decode_jpeg

# A PNG with more than 1 MB of text, or with a colour profile as large, is a photo all the same. Pillow's limit on all
# text of a photo, 64 MB, stays.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# libjpeg halves with a coarse filter. An image twice as large as wanted averages that away: 0.14 grey levels from the
# whole photo, where it would be 0.13 without halving (benchmarks/photos_from_disk.py).
_DRAFT = 2

# Pillow knows these by name only: it needs another program for their pixels, or has none.
_NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")

_BY_BYTES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # formats that the first bytes tell for certain
HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
READS_HEIF = "pip install 'lit-distill[heif]'"

Photo = str | Path | Image.Image | NDArray[np.generic] | Tensor
Mode = Literal["RGB", "L"]


def read_image(
    file: str | Path | BinaryIO, mode: Mode = "RGB", shrink: int | None = None, name: str | None = None
) -> Image.Image:
    """Return an image as ``mode``, and upright.

    Evaluation is this without ``shrink``, followed by `Preprocessing`: validation, test and prediction see the same
    pixels.

    Palettes, CMYK and greyscale are converted; 16 bits become 8 (``value / 257``); 32-bit and float images are
    scaled by the range that their largest value tells: 0..1 (floats), 0..255, 0..65535 or more; what is transparent
    lies on white; of an animation the first frame counts; the turn that a camera noted (EXIF) is made.

    Args:
        file: A path, or a file opened for reading bytes.
        mode: ``"RGB"``, or ``"L"`` for one channel.
        shrink: Pixels that the shorter side has at most; a longer one is shrunk to it, of JPEGs in part while they are
            decoded, which changes the pixels a little. None leaves the size alone.
        name: Of a file that is open: the format of its suffix is tried before all others; by default that of the path.

    Raises:
        OSError: If it cannot be read, is cut off, is no file or no image, or has more than 179 million pixels.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("LA", (400, 300)).save(file, "PNG")  # black, and wholly transparent
        >>> image = read_image(file, shrink=150)
        >>> image.size, image.mode, image.getpixel((0, 0))
        ((200, 150), 'RGB', (255, 255, 255))
    """
    with _os_errors(), _open(file, name) as opened:
        target = _shrunk(opened.size, shrink)
        if target == opened.size:
            return _upright(_eight_bits(opened, mode))
        stored = opened.size
        drafted = opened.draft(None, (_DRAFT * target[0], _DRAFT * target[1]))  # None: the mode stays
        extent = stored if drafted is None else drafted[1][2:]
        pixels = _jpeg_pixels(opened, mode) if opened.size == stored else None
        if pixels is None:
            pixels = np.asarray(_eight_bits(opened, mode))
        image = _resized(pixels, target, extent)
        image.info = opened.info
        return _upright(image)


def size_of(file: str | Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Return width and height of an image as stored, without its pixels; arguments and errors are `read_image`'s."""
    with _os_errors(), _open(file, name) as opened:
        return opened.size


def bytes_of(path: str | Path) -> io.BytesIO:
    """Return the content of a file as an opened file.

    Raises:
        OSError: If it cannot be read, or is a pipe, a socket or a device, which might never end.
    """
    # O_NONBLOCK: opening a pipe would wait for its other end. Read at once, a small image takes a sixth less time than
    # through Python's buffered files, which Pillow reads in blocks.
    with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no file")
        return io.BytesIO(file.readall())


@cache
def photo_suffixes() -> frozenset[str]:
    """Return the suffixes of file names, such as ``".jpg"``, that are of images which can be read here."""
    return frozenset(_formats())


def begins_like_an_image(path: str | Path) -> bool:
    """Tell by its first bytes whether a file, of whatever name, is of one of the common formats."""
    with suppress(OSError), _os_errors(), Image.open(path, formats=_BY_BYTES):
        return True
    return False


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _os_errors() -> Iterator[None]:
    """Make an OSError of whatever a damaged file brings out of one or another of Pillow's readers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd metadata: whoever reads ten thousand photos has some
        try:
            yield
        except UnidentifiedImageError as error:  # Pillow's message has the whole path, or the object, in it
            raise OSError("cannot identify image file") from error
        except OSError:
            raise
        except Exception as error:
            raise OSError(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    turned = {"exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys()
    return ImageOps.exif_transpose(image) if turned else image


def _open(file: str | Path | BinaryIO, name: str | None) -> Image.Image:
    if isinstance(file, (str, Path)):
        file, name = bytes_of(file), str(file)
    # Pillow tries fifty formats in turn: to begin with the likely one saves a third of a small image's time.
    likely = _formats().get(os.path.splitext(name or "")[1].lower(), "JPEG")
    return Image.open(file, formats=[likely, *Image.ID])


@cache
def _formats() -> dict[str, str]:
    """Return the formats whose pixels can be read here, by the suffixes of their files."""
    suffixes = Image.registered_extensions()
    readable = Image.OPEN.keys() - set(_NO_PIXELS)
    return {suffix: kind for suffix, kind in suffixes.items() if kind in readable}


def _shrunk(size: tuple[int, int], shrink: int | None) -> tuple[int, int]:
    shorter = min(size)
    if shrink is None or shorter <= shrink:
        return size
    width, height = (max(shrink, round(side * shrink / shorter)) for side in size)
    return width, height


def _jpeg_pixels(opened: Image.Image, mode: Mode) -> NDArray[np.uint8] | None:
    """Return the pixels that Pillow would decode, to the bit but without its image, or None where that is not sure.

    simplejpeg makes an array at once; from Pillow's image it is two copies more.
    """
    file = getattr(opened, "fp", None)
    if _decode_jpeg is None or file is None or (opened.format, opened.mode, mode) != ("JPEG", "RGB", "RGB"):
        return None
    file.seek(0)
    with suppress(ValueError):  # also of what libjpeg only warns of: Pillow knows which of that is an error
        return _decode_jpeg(file.read())
    return None


def _resized(pixels: NDArray[np.uint8], target: tuple[int, int], extent: tuple[float, float]) -> Image.Image:
    """Return the part of an image from its upper left to ``extent``, resized with a bicubic filter.

    Torch's kernel is five times as fast as Pillow's, and one grey level off in 0.3 % of the values. ``extent`` can end
    within the last column or row: half of an odd side.
    """
    channels_last = torch.from_numpy(np.atleast_3d(pixels))[None].permute(0, 3, 1, 2)
    # Torch rounds the size down: it must not become a pixel less.
    scale = [(1 + 1e-9) * side / whole for side, whole in zip(target[::-1], extent[::-1], strict=True)]
    resized = F.interpolate(channels_last, scale_factor=scale, mode="bicubic", antialias=True)
    return Image.fromarray(resized[0].permute(1, 2, 0).squeeze(2).numpy())


def _eight_bits(image: Image.Image, mode: Mode) -> Image.Image:
    image.load()
    if image.mode == mode and "transparency" not in image.info:
        return image
    info = image.info
    if image.mode[0] in "IF":
        values = _levels(np.asarray(image, dtype=np.float32), image.mode)
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    image = image.convert(mode)
    image.info = info
    return image


def _levels(values: NDArray[np.float32], mode: str) -> NDArray[np.generic]:
    """Scale values of 16 or 32 bits, or floats, to 0..255."""
    values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    # The largest value tells the range of 32-bit and float images. Limits are doubled: resampling can overshoot.
    largest = 65535.0 if mode.startswith("I;16") else float(values.max(initial=0))
    if mode == "F" and largest <= 1:
        return values * 255
    if largest < 2 * 256:
        return values
    return values / 257 if largest < 2 * 65536 else values * np.float32(255 / largest)


def as_image(photo: Photo, mode: Mode = "RGB") -> Image.Image:
    """Return a photo as an upright Pillow image of 8 bits, whatever it comes as.

    Args:
        photo: A path, a Pillow image, a ``uint8`` array ``(H, W)`` or ``(H, W, C)``, or a ``uint8`` tensor
            ``(C, H, W)``.
        mode: ``"RGB"``, or ``"L"`` for one channel.

    Raises:
        ValueError: If a file is missing or no image, or an array has another type or shape.
    """
    if isinstance(photo, (str, Path)):
        return _read_photo(Path(photo), mode)
    if isinstance(photo, Image.Image):
        return _upright(_eight_bits(photo, mode))
    kind = type(photo).__name__
    if isinstance(photo, Tensor):
        photo = photo.detach().cpu().numpy()
        photo = photo.transpose(1, 2, 0) if photo.ndim == 3 else photo
    pixels = np.atleast_3d(photo)
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((1,), (3,), (4,)):
        raise ValueError(
            "expected a path, a Pillow image, a uint8 (H, W) or (H, W, C) array or a uint8 (C, H, W) tensor of 1, 3 or "
            f"4 channels, got {kind} {pixels.shape} of {pixels.dtype}"
        )
    return _eight_bits(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), mode)


def _read_photo(path: Path, mode: Mode) -> Image.Image:
    if not path.exists():
        raise ValueError(f"there is no photo {path}; looked in {Path.cwd()}")
    try:
        return read_image(path, mode)
    except OSError as error:
        needs_more = path.suffix.lower() in HEIF_SUFFIXES - photo_suffixes()
        hint = f"; HEIC photos are read after {READS_HEIF}" if needs_more else ""
        raise ValueError(f"cannot read the photo {path}: {error.strerror or error}{hint}") from error
