"""Pillow's affine transforms for a batch, each image with its own matrix.

Own code, because ``F.grid_sample`` and torchvision's tensor kernels place, weigh and round otherwise than Pillow does.
"""

from collections.abc import Callable, Sequence
import math

import torch
from torch import Tensor

from lit_distill.datamodules.batched.groups import Part, by_group, to_device
from lit_distill.preprocessing import Interpolation

_CACHED = 8 * 3 * 32 * 32  # values of images that are interpolated at once on a CPU


def transform(images: Tensor, matrices: Tensor, interpolation: Interpolation, fill: Sequence[int]) -> Tensor:
    """Transform each image as ``Image.transform(size, AFFINE, matrix, interpolation, fillcolor=fill)`` does.

    The pixel ``(x, y)`` of the result shows the point ``(a x + b y + c, d x + e y + f)`` of the image, both measured
    from the upper left corner to the middles of pixels. The arithmetic is Pillow's, in its order: the result is equal
    to the last bit where neither compiler fuses multiplications with additions.

    Args:
        images: ``uint8`` ``(B, C, H, W)``, on any device.
        matrices: ``(a, b, c, d, e, f)`` of each image, float64 ``(B, 6)`` on the CPU.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"`` (a = -0.5).
        fill: Grey level 0..255 of each channel where the point lies outside the image.

    Returns:
        ``uint8`` ``(B, C, H, W)``, on the device of ``images``.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4)
        >>> transform(image, translate_x(torch.tensor([1.0])), "bilinear", fill=[9])
        tensor([[[[1, 2, 3, 9]]]], dtype=torch.uint8)
    """
    if interpolation == "nearest":
        scaled = (matrices[:, 1] == 0) & (matrices[:, 3] == 0)
        placed = (_fixed_pixels, _scaled_pixels)
        return by_group(images, scaled.long(), [_copier(matrices, pixels, fill) for pixels in placed])
    taps = (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)
    between = _falls_between(matrices[:, :3]) + 2 * _falls_between(matrices[:, 3:])
    copier, *interpolators = (
        _copier(matrices, _whole_pixels, fill),
        *(_interpolator(matrices, taps, axes, fill) for axes in ("x", "y", "xy")),
    )
    return by_group(images, between, [copier, *interpolators])


def rotate(degrees: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices of ``Image.rotate``: counterclockwise, about the middle.

    timm's ``rotate`` and torchvision's on a PIL image are this.

    Args:
        degrees: ``(B,)`` on the CPU.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        float64 ``(B, 6)``, as of `transform`.
    """
    rows = []
    middle_x, middle_y = width / 2, height / 2
    for angle in degrees.tolist():
        turn = -math.radians(angle % 360.0)
        cos, sin = round(math.cos(turn), 15), round(math.sin(turn), 15)
        shift_x = cos * -middle_x + sin * -middle_y + middle_x
        shift_y = -sin * -middle_x + cos * -middle_y + middle_y
        rows.append((cos, sin, shift_x, -sin, cos, shift_y))
    return torch.tensor(rows, dtype=torch.float64).view(-1, 6)


def shear_x(factors: Tensor) -> Tensor:
    """Return the matrices of timm's ``shear_x``: float64 ``(B, 6)`` for ``factors`` ``(B,)`` on the CPU."""
    one, zero = torch.ones_like(factors), torch.zeros_like(factors)
    return torch.stack([one, factors, zero, zero, one, zero], dim=1).double()


def shear_y(factors: Tensor) -> Tensor:
    """Return the matrices of timm's ``shear_y``: float64 ``(B, 6)`` for ``factors`` ``(B,)`` on the CPU."""
    one, zero = torch.ones_like(factors), torch.zeros_like(factors)
    return torch.stack([one, zero, zero, factors, one, zero], dim=1).double()


def translate_x(pixels: Tensor) -> Tensor:
    """Return the matrices of timm's ``translate_x_abs``: float64 ``(B, 6)`` for ``pixels`` ``(B,)`` on the CPU.

    torchvision's ``"TranslateX"`` of magnitude m is ``translate_x(-int(m))``.
    """
    one, zero = torch.ones_like(pixels), torch.zeros_like(pixels)
    return torch.stack([one, zero, pixels, zero, one, zero], dim=1).double()


def translate_y(pixels: Tensor) -> Tensor:
    """Return the matrices of timm's ``translate_y_abs``: as `translate_x`."""
    one, zero = torch.ones_like(pixels), torch.zeros_like(pixels)
    return torch.stack([one, zero, zero, zero, one, pixels], dim=1).double()


def torchvision_shear_x(magnitudes: Tensor) -> Tensor:
    """Return the matrices of torchvision's policies' ``"ShearX"``, whose factor goes through degrees and back."""
    angles = [math.radians(math.degrees(math.atan(magnitude))) for magnitude in magnitudes.tolist()]
    return shear_x(torch.tensor([math.tan(angle) for angle in angles], dtype=torch.float64))


def torchvision_shear_y(magnitudes: Tensor) -> Tensor:
    """Return the matrices of torchvision's policies' ``"ShearY"``, whose factor goes through degrees and back."""
    angles = [math.radians(math.degrees(math.atan(magnitude))) for magnitude in magnitudes.tolist()]
    return shear_y(torch.tensor([math.sin(angle) / math.cos(angle) for angle in angles], dtype=torch.float64))


def _falls_between(coefficients: Tensor) -> Tensor:
    """Return 1 where a coordinate falls between the middles of pixels, 0 where it never does: interpolation is idle."""
    by_x, by_y, shift = coefficients.unbind(1)
    start = shift + (by_x + by_y - 1) / 2
    return ((by_x != by_x.floor()) | (by_y != by_y.floor()) | (start != start.floor())).long()


def _middles(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y of the middles of pixels, float64 ``(W,)`` and ``(H, 1)``."""
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    y = torch.arange(height, dtype=torch.float64, device=images.device) + 0.5
    return x, y[:, None]


def _points(images: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each pixel comes from, float64 ``(B, H, W)``."""
    x, y = _middles(images)
    a, b, c, d, e, f = to_device(matrices, images).T[:, :, None, None]
    return a * x + b * y + c, d * x + e * y + f


def _whole_pixels(images: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel that each comes from, int64 ``(B, H, W)``."""
    x, y = _points(images, matrices)
    return x.floor_().long(), y.floor_().long()


def _fixed_pixels(images: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same in 16 fractional bits, as Pillow's "nearest" calculates."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.T
    exact = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])
    a, b, c, d, e, f = to_device((exact * 65536 + 0.5).floor().long(), images)[:, :, None, None]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)[:, None]
    return (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16


def _scaled_pixels(images: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same without rotation and shear, ``(B, 1, W)`` and ``(B, H, 1)``: Pillow adds up the steps."""
    height, width = images.shape[2:]
    a, _, c, _, e, f = matrices.T[:, :, None]
    x = torch.cat([c + a * 0.5, a.expand(-1, width - 1)], dim=1).cumsum(1).floor().long()
    y = torch.cat([f + e * 0.5, e.expand(-1, height - 1)], dim=1).cumsum(1).floor().long()
    return to_device(x, images)[:, None, :], to_device(y, images)[:, :, None]


def _copier(matrices: Tensor, pixels: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], fill: Sequence[int]) -> Part:
    """Return a function that copies the pixels of some rows."""

    def copy(images: Tensor, rows: Tensor) -> Tensor:
        x, y = pixels(images, matrices[rows])
        height, width = images.shape[2:]
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        places = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
        return _filled(_gather(images, places).view(images.shape), outside, fill)

    return copy


def _interpolator(matrices: Tensor, taps: Sequence[int], axes: str, fill: Sequence[int]) -> Part:
    """Return a function that interpolates the images of some rows along x, y or both.

    A polynomial through the neighbours in a line gives the values between two of them. Its coefficients are calculated
    once for all places, and then looked up.

    Args:
        matrices: Of all images, as of `transform`.
        taps: Which neighbours there are, counted from the pixel before the point.
        axes: ``"x"``, ``"y"`` or ``"xy"``.
        fill: As of `transform`.
    """

    def interpolate(images: Tensor, rows: Tensor) -> Tensor:
        # A cache holds the coefficients of a few images on a CPU; a GPU is faster with all at once.
        few = max(1, _CACHED // images[0].numel()) if images.device.type == "cpu" else len(images)
        parts = [interpolate_few(*some) for some in zip(torch.split(images, few), torch.split(rows, few), strict=True)]
        return torch.cat(parts)

    def interpolate_few(images: Tensor, rows: Tensor) -> Tensor:
        height, width = images.shape[2:]
        x, y = _points(images, matrices[rows])
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        (column, between_x), (row, between_y) = _split(x), _split(y)
        if axes == "y":
            tables = _coefficients(_neighbours(images, 2, taps))
            places = (row + 1).clamp_(0, height) * width + column.clamp_(0, width - 1)
            values = _polynomial([_gather(table, places) for table in tables], between_y)
        else:
            tables = [table.flatten(2) for table in _coefficients(_neighbours(images, 3, taps))]
            column = column.add_(1).clamp_(0, width)
            lines = []
            for tap in taps if axes == "xy" else (0,):
                places = (row + tap).clamp_(0, height - 1) * (width + 1) + column
                lines.append(_polynomial([_gather(table, places) for table in tables], between_x))
            values = lines[0] if len(lines) == 1 else _polynomial(_coefficients(lines), between_y)
        return _filled(values.clamp_(0, 255).to(torch.uint8).view(images.shape), outside, fill)

    return interpolate


def _neighbours(images: Tensor, dim: int, taps: Sequence[int]) -> list[Tensor]:
    """Return the neighbours of all places, from the one before the first pixel: each longer by one in ``dim``."""
    length = images.shape[dim]
    reach = torch.arange(taps[0] - 1, length + taps[-1], device=images.device).clamp_(0, length - 1)
    extended = images.index_select(dim, reach).double()
    return [extended.narrow(dim, start, length + 1) for start in range(len(taps))]


def _coefficients(values: Sequence[Tensor]) -> list[Tensor]:
    """Return the polynomial from the middle value on, through two or four, in Pillow's order of operations."""
    if len(values) == 2:
        return [values[0], values[1] - values[0]]
    first, second, third, fourth = values
    square = (first - second).mul_(2).add_(third).sub_(fourth)
    cubic = (second - first).sub_(third).add_(fourth)
    return [second, third - first, square, cubic]


def _polynomial(coefficients: Sequence[Tensor], between: Tensor) -> Tensor:
    """Return the values of polynomials; the last coefficients are written to."""
    *earlier, value = coefficients
    for coefficient in reversed(earlier):
        value = value.mul_(between).add_(coefficient)
    return value


def _gather(table: Tensor, places: Tensor) -> Tensor:
    """Return the values of a table ``(B, C, ...)`` at places ``(B, N)``, as ``(B, C, N)``."""
    return table.flatten(2).gather(2, places[:, None].expand(-1, table.shape[1], -1))


def _split(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel before each point, int64 ``(B, N)``, and how far the point is behind it, ``(B, 1, N)``."""
    points = (points - 0.5).flatten(1)
    pixel = points.floor()
    return pixel.long(), points.sub_(pixel)[:, None]


def _filled(images: Tensor, outside: Tensor, fill: Sequence[int]) -> Tensor:
    """Return the images, filled in place where they are ``outside``, ``(B, H, W)``."""
    for channel, level in enumerate(fill):
        images[:, channel].masked_fill_(outside, level)
    return images
