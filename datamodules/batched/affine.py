"""Pillow's affine transforms for a batch, each image with its own matrix.

Own code, because ``F.grid_sample`` and torchvision's tensor kernels place, weigh and round otherwise than Pillow does.
"""

from collections.abc import Callable, Sequence
import math

import torch
from torch import Tensor

from lit_distill.datamodules.batched.groups import Part, by_group, to_device
from lit_distill.preprocessing import Interpolation

Mix = Callable[[Sequence[Tensor], Tensor], Tensor]


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
        return by_group(
            images,
            scaled.long(),
            [
                lambda part, rows: _sample(part, *_fixed_points(part, matrices[rows]), fill),
                lambda part, rows: _sample(part, *_scaled_points(part, matrices[rows]), fill),
            ],
        )
    mix, taps = (_mix_two, (0, 1)) if interpolation == "bilinear" else (_mix_four, (-1, 0, 1, 2))

    def interpolate(along_x: bool, along_y: bool) -> Part:
        def of_rows(part: Tensor, rows: Tensor) -> Tensor:
            x, y = _points(part, matrices[rows])
            return _sample(part, x, y, fill, mix, taps if along_x else (0,), taps if along_y else (0,))

        return of_rows

    between = [interpolate(along_x, along_y) for along_y in (False, True) for along_x in (False, True)]
    return by_group(images, _falls_between(matrices[:, :3]) + 2 * _falls_between(matrices[:, 3:]), between)


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


def _fixed_points(images: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel that each comes from, int64 ``(B, H, W)``, in 16 fractional bits as Pillow's "nearest" has it."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.T
    exact = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])
    a, b, c, d, e, f = to_device((exact * 65536 + 0.5).floor().long(), images)[:, :, None, None]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)[:, None]
    return (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16


def _scaled_points(images: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same without rotation and shear, ``(B, 1, W)`` and ``(B, H, 1)``: Pillow adds up the steps."""
    height, width = images.shape[2:]
    a, _, c, _, e, f = matrices.T[:, :, None]
    x = torch.cat([c + a * 0.5, a.expand(-1, width - 1)], dim=1).cumsum(1).floor().long()
    y = torch.cat([f + e * 0.5, e.expand(-1, height - 1)], dim=1).cumsum(1).floor().long()
    return to_device(x, images)[:, None, :], to_device(y, images)[:, :, None]


def _sample(
    images: Tensor,
    x: Tensor,
    y: Tensor,
    fill: Sequence[int],
    mix: Mix | None = None,
    taps_x: Sequence[int] = (0,),
    taps_y: Sequence[int] = (0,),
) -> Tensor:
    """Return the images at some points: at pixels, or between them as ``mix`` weighs their neighbours.

    Args:
        images: ``uint8`` ``(B, C, H, W)``.
        x: Pixels int64, or points float64, that broadcast to ``(B, H, W)``.
        y: As ``x``.
        fill: As of `transform`.
        mix: From the neighbours in a line and the place between them, or None at pixels.
        taps_x: Which neighbours in x there are; one alone is the pixel itself.
        taps_y: As ``taps_x``.
    """
    channels, height, width = images.shape[1:]
    outside = ((x < 0) | (x >= width) | (y < 0) | (y >= height))[:, None]
    (column, between_x), (row, between_y) = _split(x), _split(y)
    columns = [(column + tap).clamp_(0, width - 1) for tap in taps_x]
    pixels = images.flatten(2)
    if len(taps_x) + len(taps_y) > 2:
        pixels = pixels.double()
    lines = []
    for tap in taps_y:
        line = (row + tap).clamp_(0, height - 1) * width
        places = [(line + column).flatten(1)[:, None].expand(-1, channels, -1) for column in columns]
        neighbours = [pixels.gather(2, place) for place in places]
        lines.append(mix(neighbours, between_x) if mix and len(taps_x) > 1 else neighbours[0])
    values = mix(lines, between_y) if mix and len(taps_y) > 1 else lines[0]
    sampled = values.clamp_(0, 255).to(torch.uint8).view(images.shape)
    if len(set(fill)) == 1:
        return sampled.masked_fill_(outside, fill[0])
    return torch.where(outside, torch.tensor(fill, dtype=torch.uint8, device=images.device)[:, None, None], sampled)


def _split(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel before a point, and how far the point is behind its middle, ``(B, 1, H * W)``."""
    if not points.is_floating_point():
        return points, points
    points = points - 0.5
    before = points.floor()
    return before.long(), (points - before).flatten(1)[:, None]


def _mix_two(values: Sequence[Tensor], between: Tensor) -> Tensor:
    first, second = values
    return (second - first).mul_(between).add_(first)


def _mix_four(values: Sequence[Tensor], between: Tensor) -> Tensor:
    """Return the cubic through the middle two of four values, in the order of operations that Pillow has."""
    first, second, third, fourth = values
    linear = third - first
    square = (first - second).mul_(2).add_(third).sub_(fourth)
    cubic = (second - first).sub_(third).add_(fourth)
    return cubic.mul_(between).add_(square).mul_(between).add_(linear).mul_(between).add_(second)
