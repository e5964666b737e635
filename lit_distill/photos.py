"""How a photo becomes a student's input. Data modules, `load_student` and exports have this one way of reading."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
import io
import math
import os
from pathlib import Path
import stat
from typing import Any, BinaryIO, Literal, Self
import warnings

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

try:  # the extra lit-distill[heif]; Pillow alone cannot read what iPhones write
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()

# A PNG with more than 1 MB of text, or with a colour profile as large, is a photo all the same. Pillow's limit on all
# text of a photo, 64 MB, stays.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# libjpeg halves with a coarse filter. From an image three times as large Pillow averages that away.
_DRAFT = 3
_LONGEST = 16  # times its shorter side that an image may be long when it is resized

# Pillow knows these by name only: it needs another program for their pixels, or has none.
_NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")

_BY_BYTES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # formats that the first bytes tell for certain
HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
READS_HEIF = "pip install 'lit-distill[heif]'"

Photo = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
Mode = Literal["RGB", "L"]


def read_image(
    file: str | Path | BinaryIO, mode: Mode = "RGB", shrink: int | None = None, name: str | None = None
) -> Image.Image:
    """Return an image as ``mode``, and upright.

    Evaluation is this without ``shrink``, followed by `Preprocessing`: validation, test and prediction see the same
    pixels.

    Palettes, CMYK and greyscale are converted; 16 bits become 8 (``value / 257``); 32 bits and floats do by their
    largest value, which tells whether they are 0..1 (floats), 0..255, 0..65535 or more; what is transparent lies on
    white; of an animation the first frame counts; the turn that a camera noted (EXIF) is made.

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
    with _os_errors():
        file, name = _opened(file, name)
        with _open(file, name) as opened:
            target = _shrunk(opened.size, shrink)
            if target != opened.size:
                opened.draft(None, (_DRAFT * target[0], _DRAFT * target[1]))  # None: the mode stays
            opened.load()
            image = _eight_bits(opened, mode)
            if target != image.size:
                image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
            return _upright(image)


def size_of(file: str | Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Return width and height of an image as stored, without its pixels; arguments and errors are `read_image`'s."""
    with _os_errors(), _open(*_opened(file, name)) as opened:
        return opened.size


def bytes_of(path: str | Path) -> io.BytesIO:
    """Return the content of a file as an opened file.

    Raises:
        OSError: If it cannot be read, or is a pipe, a socket or a device, which might never end.
    """
    # At once: for small images a sixth faster than through Python's buffered files, which Pillow reads in blocks.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its other end
    try:
        about, parts = os.fstat(file), []
        if not stat.S_ISREG(about.st_mode):
            raise OSError("it is no file")
        while part := os.read(file, about.st_size + 1):
            parts.append(part)
    finally:
        os.close(file)
    return io.BytesIO(b"".join(parts))


@cache
def photo_suffixes() -> frozenset[str]:
    """Return the suffixes of file names, such as ``".jpg"``, that are of images which can be read here."""
    return frozenset(suffix for suffix, kind in _formats().items() if kind not in _NO_PIXELS)


def begins_like_an_image(path: str | Path) -> bool:
    """Tell by its first bytes whether a file, of whatever name, is of one of the common formats."""
    try:
        with _os_errors(), Image.open(path, formats=_BY_BYTES):
            return True
    except OSError:
        return False


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


def _opened(file: str | Path | BinaryIO, name: str | None) -> tuple[BinaryIO, str]:
    if isinstance(file, (str, Path)):
        return bytes_of(file), str(file) if name is None else name
    return file, name or ""


def _upright(image: Image.Image) -> Image.Image:
    turned = {"exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys()
    return ImageOps.exif_transpose(image) if turned else image


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


def _levels(values: np.ndarray[Any, Any], mode: str) -> np.ndarray[Any, Any]:
    """Return what has more than 8 bits, or is of floats, as levels of 0..255."""
    values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    # Nothing but the values tells what 32 bits hold. Twice the limits: resampling may have overshot them a little.
    largest = 65535.0 if mode.startswith("I;16") else float(values.max(initial=0))
    if mode == "F" and largest <= 1:
        return values * 255
    if largest < 2 * 256:
        return values
    return values / 257 if largest < 2 * 65536 else values * np.float32(255 / largest)


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
        # An even number at each end: the crop of the middle, whose begin is rounded to even, then stays where it was.
        spare = max(0, length - max(_LONGEST * self.side, self.least)) // 4 * 2
        if not spare:
            mode = InterpolationMode(self.interpolation)
            return v2.functional.resize(image, [self.side], mode)  # type: ignore[no-any-return]
        # Without the far ends, whose pixels no filter reaches: Pillow then takes both directions in the usual order.
        first, last = spare * longer / length, longer - spare * longer / length
        reach = math.ceil(4 * max(1, shorter / self.side))
        start, end = max(0, math.floor(first) - reach), min(longer, math.ceil(last) + reach)
        first, last, kept = first - start, last - start, length - 2 * spare
        how = Image.Resampling[self.interpolation.upper()]
        if image.width > image.height:
            return image.crop((start, 0, end, shorter)).resize((kept, self.side), how, (first, 0, last, shorter))
        return image.crop((0, start, shorter, end)).resize((self.side, kept), how, (0, first, shorter, last))


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
    interpolation: str = "bicubic"
    channels: int = 3

    def __post_init__(self) -> None:
        if self.resize < 1 or len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"resize must be >= 1 and crop two sides >= 1, got {self.resize} and {self.crop}")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"interpolation must be nearest, bilinear or bicubic, got {self.interpolation!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")

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

    def as_dict(self) -> dict[str, Any]:
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
            crop = tuple(int(side) for side in described["crop"])
            return cls(int(described["resize"]), crop, str(described["interpolation"]), int(described["channels"]))  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"expected a preprocessing with resize, crop, interpolation and channels, got {described}"
            ) from error


def pixels_of(image: Image.Image) -> Tensor:
    """Return the pixels of a Pillow image as ``uint8`` ``(C, H, W)``."""
    # torchvision's own way there takes twice as long for a small image, and collating a tv_tensor longer still.
    pixels = np.asarray(image)
    return torch.from_numpy((pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).copy())


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
        if Path(photo).is_dir():
            raise ValueError(f"{photo} is a folder, expected a photo")
        if not Path(photo).is_file():
            raise ValueError(f"there is no photo {photo}; looked in {Path.cwd()}")
        try:
            return read_image(photo, mode)
        except OSError as error:
            needs_more = Path(photo).suffix.lower() in HEIF_SUFFIXES - photo_suffixes()
            hint = f"; HEIC photos are read after {READS_HEIF}" if needs_more else ""
            raise ValueError(f"cannot read the photo {photo}: {error}{hint}") from error
    if isinstance(photo, Image.Image):
        return _upright(_eight_bits(photo, mode))
    if not isinstance(photo, (np.ndarray, Tensor)):
        raise ValueError(f"expected a path, a Pillow image, an array or a tensor, got {type(photo).__name__}")
    pixels = (
        photo.detach().cpu().movedim(0, -1).numpy()
        if isinstance(photo, Tensor) and photo.dim() == 3
        else np.asarray(photo)
    )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        shape = "(C, H, W) tensor" if isinstance(photo, Tensor) else "(H, W) or (H, W, C) array"
        raise ValueError(f"expected a uint8 {shape} of 1, 3 or 4 channels, got {tuple(photo.shape)} of {photo.dtype}")
    return _eight_bits(Image.fromarray(np.ascontiguousarray(pixels)), mode)
