"""What timm's and torchvision's policies do to an image, for a batch whose images have operations of their own."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lit_distill.datamodules.batched import affine, color
from lit_distill.datamodules.batched.blur import gaussian_blur
from lit_distill.datamodules.batched.groups import by_group
from lit_distill.preprocessing import Interpolation

Pixels = Callable[[Tensor, Tensor], Tensor]  # from images and their levels (B,) to images
Matrices = Callable[[Tensor, int, int], Tensor]  # from levels (B,), height and width to matrices (B, 6)


class Layer(NamedTuple):
    """What one layer of a policy does to a batch.

    Args:
        operations: Number of each image's operation, int64 ``(B,)``; -1 for none.
        levels: Its argument, float64 ``(B,)``; 0 where it has none.
    """

    operations: Tensor
    levels: Tensor


class Form(NamedTuple):
    """How an operation is done to a batch: by a function of pixels, by matrices, or not at all."""

    pixels: Pixels | None = None
    matrices: Matrices | None = None


UNCHANGED = Form()


class Operations:
    """Applies to each image its own operation; all rotations, shears and shifts at once.

    Args:
        forms: Of the operations, in the order of their numbers.
        interpolation: Of rotations, shears and shifts.
        fill: Grey level 0..255 of each channel where these leave the image.

    Example:
        >>> apply = Operations([TIMM["invert"], TIMM["brightness"]], "nearest", fill=[0])
        >>> images = torch.full((3, 1, 1, 1), 100, dtype=torch.uint8)
        >>> apply(images, Layer(torch.tensor([-1, 0, 1]), torch.tensor([0.0, 0.0, 0.5]))).flatten()
        tensor([100, 155,  50], dtype=torch.uint8)
    """

    def __init__(self, forms: Sequence[Form], interpolation: Interpolation, fill: Sequence[int]) -> None:
        self.interpolation, self.fill = interpolation, fill
        # Group 0 stays as it is, group 1 is transformed by matrices, and each other has a function of pixels.
        self.functions = list(dict.fromkeys(form.pixels for form in forms if form.pixels is not None))
        groups = [1 if form.pixels is None else 2 + self.functions.index(form.pixels) for form in forms]
        groups = [0 if form == UNCHANGED else group for form, group in zip(forms, groups, strict=True)]
        self.groups = torch.tensor([*groups, 0])  # the last is that of no operation, which is -1
        self.matrices = {number: form.matrices for number, form in enumerate(forms) if form.matrices is not None}

    def __call__(self, images: Tensor, layer: Layer) -> Tensor:
        """Return the images, each changed by its operation."""

        def transform(part: Tensor, rows: Tensor) -> Tensor:
            return affine.transform(part, self._matrices(layer, rows, part), self.interpolation, self.fill)

        def change(pixels: Pixels) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda part, rows: pixels(part, layer.levels[rows])

        parts = [None, transform, *(change(function) for function in self.functions)]
        return by_group(images, self.groups[layer.operations], parts)

    def _matrices(self, layer: Layer, rows: Tensor, images: Tensor) -> Tensor:
        operations, levels = layer.operations[rows], layer.levels[rows]
        order = operations.argsort(stable=True)
        counts = sorted(Counter(operations.tolist()).items())
        ordered = levels[order].tensor_split(list(accumulate(count for _, count in counts[:-1])))
        by_operation = zip(counts, ordered, strict=True)
        height, width = images.shape[2:]
        matrices = [self.matrices[number](of_number, height, width) for (number, _), of_number in by_operation]
        return torch.cat(matrices)[order.argsort()]


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    return color.autocontrast(images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    return color.equalize(images)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return color.invert(images)


def _desaturate(images: Tensor, levels: Tensor) -> Tensor:
    return color.saturation(images, (1 - levels).clamp(0, 1))


# By the name of timm's function, which takes the level.
TIMM = {
    "auto_contrast": Form(_autocontrast),
    "equalize": Form(_equalize),
    "invert": Form(_invert),
    "posterize": Form(color.posterize),
    "solarize": Form(color.solarize),
    "solarize_add": Form(color.solarize_add),
    "color": Form(color.saturation),
    "contrast": Form(color.contrast),
    "brightness": Form(color.brightness),
    "sharpness": Form(color.sharpness),
    "desaturate": Form(_desaturate),
    "gaussian_blur": Form(gaussian_blur),
    "gaussian_blur_rand": Form(gaussian_blur),  # of a radius that is drawn up to the level
    "rotate": Form(matrices=affine.rotate),
    "shear_x": Form(matrices=lambda levels, height, width: affine.shear_x(levels)),
    "shear_y": Form(matrices=lambda levels, height, width: affine.shear_y(levels)),
    "translate_x_abs": Form(matrices=lambda levels, height, width: affine.translate_x(levels)),
    "translate_y_abs": Form(matrices=lambda levels, height, width: affine.translate_y(levels)),
    "translate_x_rel": Form(matrices=lambda levels, height, width: affine.translate_x(levels * width)),
    "translate_y_rel": Form(matrices=lambda levels, height, width: affine.translate_y(levels * height)),
}

# By torchvision's name, as its `_apply_image_or_video_transform` does it to a PIL image.
TORCHVISION = {
    "Identity": UNCHANGED,
    "ShearX": Form(matrices=lambda levels, height, width: affine.torchvision_shear_x(levels)),
    "ShearY": Form(matrices=lambda levels, height, width: affine.torchvision_shear_y(levels)),
    "TranslateX": Form(matrices=lambda levels, height, width: affine.translate_x(-levels.trunc())),
    "TranslateY": Form(matrices=lambda levels, height, width: affine.translate_y(-levels.trunc())),
    "Rotate": Form(matrices=affine.rotate),
    "Brightness": Form(lambda images, levels: color.brightness(images, 1 + levels)),
    "Color": Form(lambda images, levels: color.saturation(images, 1 + levels)),
    "Contrast": Form(lambda images, levels: color.contrast(images, 1 + levels)),
    "Sharpness": Form(lambda images, levels: color.sharpness(images, 1 + levels)),
    "Posterize": Form(color.posterize),
    "Solarize": Form(lambda images, levels: color.solarize(images, 255 * levels)),
    "AutoContrast": Form(_autocontrast),
    "Equalize": Form(_equalize),
    "Invert": Form(_invert),
}
