"""How a network gets its images: with the statistics and the size that it was trained with."""

from collections.abc import Sequence
import warnings

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

# Resizing may take a float image of 0..1 beyond 1; an image of 0..255 exceeds this value unless it is black.
_MOST = 10.0

Statistics = tuple[Sequence[float] | None, Sequence[float] | None]  # mean and std per channel, in 0..1 units


class PixelInput(nn.Module):
    """Bring an image batch to a network's range, size and normalisation, in that order.

    ``uint8`` becomes ``value / 255``; a float batch keeps its range. With ``input_size`` the image is resized
    (bilinear, antialiased) when its size differs; with ``mean`` and ``std`` it becomes ``(x - mean) / std`` a channel.
    Without them it stays as it is. The statistics are buffers: they move and cast with the network, and are not in its
    state dict.

    Args:
        mean: Per-channel mean in 0..1 units, or None.
        std: Per-channel standard deviation, each > 0, or None. Given together with ``mean``.
        input_size: ``(height, width)`` in pixels, one int for a square, or None to leave the size alone.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, *input_size)``.

    Raises:
        ValueError: If only one of ``mean`` and ``std`` is given, their lengths differ, or a ``std`` is not positive. In
            a call with ``mean`` or ``input_size``: if the input is no batch of images, or has other channels. If the
            first float batch has values of 0..255; without ``mean`` that is a warning.

    Example:
        >>> PixelInput(mean=[0.5], std=[0.25])(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).unique()
        tensor([2.])
    """

    scale: Tensor
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._first_is_seen = False
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
            raise ValueError(f"mean and std go together, one value a channel each, got mean={mean} and std={std}")
        if min(std or [1.0]) <= 0:
            raise ValueError(f"every std must be > 0, got {std}")
        self.input_size = None if input_size is None else list(as_pair(input_size, "input_size"))
        self.register_buffer("scale", torch.tensor(255.0), persistent=False)
        for name, values in {"mean": mean, "std": std}.items():
            per_channel = None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return ``image`` as the network was trained to see it."""
        if self.mean is not None or self.input_size is not None:
            self._check_shape(tuple(image.shape))
        if not image.is_floating_point():
            image = image.to(self.scale.dtype) / self.scale
        elif not (self._first_is_seen or torch.compiler.is_compiling()):
            self._first_is_seen = True  # checking every batch would wait for the device at every step
            self._check_range(image)
        if self.input_size is not None and list(image.shape[-2:]) != self.input_size:
            image = tv.resize(image, self.input_size, antialias=True)
        if self.mean is not None and self.std is not None:
            image = (image - self.mean) / self.std
        return image

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise ValueError(
                f"expected a batch of images (B, C, H, W), got shape {shape}; "
                "of one image make a batch with image[None]"
            )
        statistics = 1 if self.mean is None else len(self.mean)
        if statistics != shape[1] and 1 not in (statistics, shape[1]):  # one value or one channel broadcasts
            raise ValueError(f"expected images of {statistics} channels, as mean and std are for, got shape {shape}")

    def _check_range(self, image: Tensor) -> None:
        if image.dim() != 4 or image.is_meta or not image.numel():
            return
        least, most = map(float, image.aminmax())
        if least >= 0 and most > _MOST:
            message = f"float images must be in 0..1, got values up to {most:g}: divide them by 255, or keep them uint8"
            if self.mean is not None:
                raise ValueError(message)
            warnings.warn(f"{message}; without mean and std they are taken as they come", stacklevel=3)


def first_given(*statistics: Statistics) -> Statistics:
    """Return the first mean and std of which one is given.

    Example:
        >>> first_given((None, None), ([0.5], [0.2]))
        ([0.5], [0.2])
    """
    return next((pair for pair in statistics if pair != (None, None)), (None, None))


def as_pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Return ``(height, width)``, of a square for one int.

    Raises:
        ValueError: If it is not one or two numbers >= 1.

    Example:
        >>> as_pair(8, "image_size")
        (8, 8)
    """
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"{name} must be one or two numbers >= 1, got {value}")
    return sides
