"""How a photo becomes a student's input. Data modules, `load_student` and exports have this one way of reading."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

# libjpeg halves with a coarse filter. From an image three times as large Pillow averages that away.
_DRAFT = 3

Photo = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
Mode = Literal["RGB", "L"]


def read_image(
    file: str | Path | BinaryIO, mode: Mode = "RGB", shrink: int | None = None, name: str | None = None
) -> Image.Image:
    """Return an image as ``mode``, and upright.

    Evaluation is this without ``shrink``, followed by `Preprocessing`: validation, test and prediction see the same
    pixels.

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
                return _upright(image)
        except UnidentifiedImageError as error:  # Pillow's message has the whole path, or the object, in it
            raise OSError("cannot identify image file") from error
        except OSError:
            raise
        except Exception as error:  # damaged files bring every kind out of one or another of Pillow's readers
            raise OSError(str(error) or type(error).__name__) from error


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
        if min(image.size) == self.resize:
            return image
        return v2.functional.resize(image, [self.resize], InterpolationMode(self.interpolation))  # type: ignore[no-any-return]

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
            raise ValueError(f"cannot read the photo {photo}: {error}") from error
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
