"""timm's and torchvision's augmentation policies for a batch, each image with its own operations and levels.

Which operations there are, how likely and how strong, is read from the libraries' own objects, which
`lit_distill.datamodules.policies` makes for single images too. Only pixels and random numbers are computed here.
"""

from collections.abc import Callable, Sequence
import importlib.util
import threading
from types import ModuleType
from typing import Any, Literal, NamedTuple

from timm.data import auto_augment
import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_distill.datamodules.batched import affine, color
from lit_distill.datamodules.batched.blur import gaussian_blur
from lit_distill.datamodules.batched.draws import POLICY, BatchTransform, Draws, integers
from lit_distill.datamodules.batched.groups import by_group
from lit_distill.datamodules.policies import check_policy, make_policy
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


def has_batched_form(policy: str) -> bool:
    """Return whether `make_batched_policy` can make a policy: all but AugMix, unless timm has added operations.

    Raises:
        ValueError: If the policy is unknown, or has an option that timm does not know.

    Example:
        >>> has_batched_form("rand-m9-mstd0.5-inc1"), has_batched_form("augmix-m3-w3")
        (True, False)
    """
    check_policy(policy)
    transform = make_policy(policy, 32, "RGB", "nearest")
    if isinstance(transform, v2.TrivialAugmentWide):
        return set(transform._AUGMENTATION_SPACE) <= set(_TORCHVISION)
    if not isinstance(transform, auto_augment.RandAugment | auto_augment.AutoAugment):
        return False
    return all(_function_name(operation) in _TIMM for operation in _operations(transform))


def make_batched_policy(
    policy: str, size: int, mode: Literal["RGB", "L"], interpolation: Interpolation
) -> BatchTransform:
    """Return a policy as a transform of batches.

    Its pixels equal to the last bit those that `make_policy` makes, given the same operations and levels.

    Args:
        policy: A text for which `has_batched_form` is true.
        size: Side of the images in pixels.
        mode: Mode of the images.
        interpolation: Of rotations, shears and shifts.

    Raises:
        ValueError: If the policy has no batched form.

    Example:
        >>> draws = Draws(42, view=torch.tensor([0, 0]), index=torch.tensor([8, 9]))
        >>> pixel = torch.tensor([200, 100, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> three_augment = make_batched_policy("three-augment", 1, "RGB", "bicubic")
        >>> three_augment(pixel.repeat(2, 1, 1, 1), draws).flatten(1)
        tensor([[118, 118, 118],
                [200, 100,   0]], dtype=torch.uint8)
    """
    if not has_batched_form(policy):
        raise ValueError(f"policy {policy!r} has no batched form: augment image by image")
    transform = make_policy(policy, size, mode, interpolation)
    if isinstance(transform, v2.TrivialAugmentWide):
        return TrivialPolicy(transform, mode, interpolation)
    return TimmPolicy(transform, interpolation)


class TrivialPolicy:
    """torchvision's TrivialAugment for a batch.

    Args:
        transform: torchvision's.
        mode: Mode of the images.
        interpolation: Of rotations, shears and shifts.
    """

    def __init__(self, transform: Any, mode: Literal["RGB", "L"], interpolation: Interpolation) -> None:
        self.space, self.bins = transform._AUGMENTATION_SPACE, transform.num_magnitude_bins
        self.signed = torch.tensor([signed for _, signed in self.space.values()])
        self.apply = _Operations([_TORCHVISION[name] for name in self.space], interpolation, [0] * len(mode))

    def draw(self, draws: Draws, height: int, width: int) -> Layer:
        """Return what is done to the images, numbered as in ``transform._AUGMENTATION_SPACE``."""
        choice, magnitude, sign = draws.uniform(POLICY, 3).unbind(1)
        operations = integers(choice, len(self.space))
        levels = self._magnitudes(height, width)[operations, integers(magnitude, self.bins)]
        return Layer(operations, torch.where(self.signed[operations] & (sign <= 0.5), -levels, levels))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, transformed."""
        return self.apply(images, self.draw(draws, *images.shape[2:]))

    def _magnitudes(self, height: int, width: int) -> Tensor:
        """Return the magnitudes of each operation: ``(operations, bins)``."""
        none = torch.zeros(self.bins)
        rows = [function(self.bins, height, width) for function, _ in self.space.values()]
        return torch.stack([none if row is None else row.to(torch.float32) for row in rows]).to(torch.float64)


class TimmPolicy:
    """timm's RandAugment or AutoAugment for a batch.

    Args:
        transform: timm's.
        interpolation: Of rotations, shears and shifts.

    Raises:
        ValueError: If RandAugment is to draw more operations than there are, each at most once.
    """

    def __init__(self, transform: Any, interpolation: Interpolation) -> None:
        self.operations = _operations(transform)
        first = self.operations[0]  # timm gives all of them the same `hparams`
        self.std, self.largest = first.magnitude_std, first.magnitude_max or auto_augment._LEVEL_DENOM
        self.probabilities, self.magnitudes = (
            torch.tensor([float(getattr(operation, name)) for operation in self.operations], dtype=torch.float64)
            for name in ("prob", "magnitude")
        )
        names = [_function_name(operation) for operation in self.operations]
        self.random_radius = [name == "gaussian_blur_rand" for name in names]
        fill = first.kwargs["fillcolor"]
        channels = [fill] if isinstance(fill, int) else list(fill)
        self.apply = _Operations([_TIMM[name] for name in names], interpolation, channels)
        self.weights = None
        if isinstance(transform, auto_augment.AutoAugment):
            # One row for each pair of operations, numbered as in `operations`; -1 where there is no second one.
            self.num_layers = max(len(pair) for pair in transform.policy)
            number = iter(range(len(self.operations)))
            pairs = [[next(number) for _ in pair] for pair in transform.policy]
            self.pairs = torch.tensor([pair + [-1] * (self.num_layers - len(pair)) for pair in pairs])
        else:
            self.pairs = torch.arange(len(self.operations))[:, None]
            self.num_layers = transform.num_layers
            if transform.choice_weights is not None:
                self.weights = torch.as_tensor(transform.choice_weights, dtype=torch.float64)
                available = int(self.weights.count_nonzero())
                if self.num_layers > available:
                    raise ValueError(f"weighted RandAugment has {available} operations, got n{self.num_layers}")

    def draw(self, draws: Draws) -> list[Layer]:
        """Return what is done to the images in each layer, numbered as in the attribute ``operations``."""
        numbers = [draws.uniform(POLICY + layer, 5) for layer in range(self.num_layers)]
        chosen = self._choose([of_layer[:, 0] for of_layer in numbers])
        return [self._layer(operations, of_layer) for operations, of_layer in zip(chosen, numbers, strict=True)]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, transformed."""
        for layer in self.draw(draws):
            images = self.apply(images, layer)
        return images

    def _choose(self, numbers: list[Tensor]) -> list[Tensor]:
        """Return the number of each image's operation in each layer, or -1."""
        if self.pairs.shape[1] > 1:  # AutoAugment: one choice for both layers
            return list(self.pairs[integers(numbers[0], len(self.pairs))].unbind(1))
        if self.weights is None:
            return [integers(of_layer, len(self.operations)) for of_layer in numbers]
        # As of `numpy.random.choice` without replacement: what has been drawn is not drawn again.
        weights, chosen = self.weights.repeat(len(numbers[0]), 1), []
        for of_layer in numbers:
            sums = weights.cumsum(1)
            chosen.append((of_layer[:, None] * sums[:, -1:] >= sums).sum(1).clamp_(max=len(self.operations) - 1))
            weights.scatter_(1, chosen[-1][:, None], 0.0)
        return chosen

    def _layer(self, operations: Tensor, numbers: Tensor) -> Layer:
        """Return a layer in which some of the chosen operations take place, as in ``AugmentOp.__call__``."""
        _, apply, magnitude, sign, radius = numbers.unbind(1)
        skipped = (operations < 0) | (apply > self.probabilities[operations])
        magnitudes = self.magnitudes[operations]
        if self.std == float("inf"):
            magnitudes = magnitudes * magnitude
        elif self.std > 0:
            magnitudes = magnitudes + self.std * torch.special.ndtri(magnitude)
        operations = operations.masked_fill(skipped, -1)
        columns = (operations, magnitudes.clamp(0, self.largest), sign, radius)
        levels = [self._level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        return Layer(operations, torch.tensor(levels, dtype=torch.float64))

    def _level(self, operation: int, magnitude: float, sign: float, radius: float) -> float:
        """Return the argument of an operation, by timm's own function."""
        if operation < 0:
            return 0.0
        to_arguments = _LEVELS.LEVEL_TO_ARG[self.operations[operation].name]
        if to_arguments is None:
            return 0.0
        _SIGN.number = sign
        level = float(to_arguments(magnitude, self.operations[operation].hparams)[0])
        return 0.1 + (2.0 * level - 0.1) * radius if self.random_radius[operation] else level


class _Operations:
    """Applies to each image its own operation; all rotations, shears and shifts at once."""

    def __init__(self, forms: Sequence["_Form"], interpolation: Interpolation, fill: Sequence[int]) -> None:
        self.interpolation, self.fill = interpolation, fill
        # Group 0 stays as it is, group 1 is transformed by matrices, and each other has a function of pixels.
        self.functions = list(dict.fromkeys(form.pixels for form in forms if form.pixels is not None))
        groups = [1 if form.pixels is None else 2 + self.functions.index(form.pixels) for form in forms]
        groups = [0 if form == _UNCHANGED else group for form, group in zip(forms, groups, strict=True)]
        self.groups = torch.tensor([*groups, 0])  # the last is that of no operation, which is -1
        self.matrices = {number: form.matrices for number, form in enumerate(forms) if form.matrices is not None}

    def __call__(self, images: Tensor, layer: Layer) -> Tensor:
        def transform(part: Tensor, rows: Tensor) -> Tensor:
            return affine.transform(part, self._matrices(layer, rows, part), self.interpolation, self.fill)

        def change(pixels: Pixels) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda part, rows: pixels(part, layer.levels[rows])

        parts = [None, transform, *(change(function) for function in self.functions)]
        return by_group(images, self.groups[layer.operations], parts)

    def _matrices(self, layer: Layer, rows: Tensor, images: Tensor) -> Tensor:
        operations, levels = layer.operations[rows], layer.levels[rows]
        matrices = torch.empty(len(rows), 6, dtype=torch.float64)
        for number in set(operations.tolist()):
            chosen = operations == number
            matrices[chosen] = self.matrices[number](levels[chosen], *images.shape[2:])
        return matrices


class _Form(NamedTuple):
    """How an operation is done to a batch: by a function of pixels, by matrices, or not at all."""

    pixels: Pixels | None = None
    matrices: Matrices | None = None


_UNCHANGED = _Form()


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    return color.autocontrast(images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    return color.equalize(images)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return color.invert(images)


def _desaturate(images: Tensor, levels: Tensor) -> Tensor:
    return color.saturation(images, (1 - levels).clamp(0, 1))


# By the name of timm's function, which takes the level.
_TIMM = {
    "auto_contrast": _Form(_autocontrast),
    "equalize": _Form(_equalize),
    "invert": _Form(_invert),
    "posterize": _Form(color.posterize),
    "solarize": _Form(color.solarize),
    "solarize_add": _Form(color.solarize_add),
    "color": _Form(color.saturation),
    "contrast": _Form(color.contrast),
    "brightness": _Form(color.brightness),
    "sharpness": _Form(color.sharpness),
    "desaturate": _Form(_desaturate),
    "gaussian_blur": _Form(gaussian_blur),
    "gaussian_blur_rand": _Form(gaussian_blur),  # of a radius that is drawn up to the level
    "rotate": _Form(matrices=affine.rotate),
    "shear_x": _Form(matrices=lambda levels, height, width: affine.shear_x(levels)),
    "shear_y": _Form(matrices=lambda levels, height, width: affine.shear_y(levels)),
    "translate_x_abs": _Form(matrices=lambda levels, height, width: affine.translate_x(levels)),
    "translate_y_abs": _Form(matrices=lambda levels, height, width: affine.translate_y(levels)),
    "translate_x_rel": _Form(matrices=lambda levels, height, width: affine.translate_x(levels * width)),
    "translate_y_rel": _Form(matrices=lambda levels, height, width: affine.translate_y(levels * height)),
}

# By torchvision's name, as its `_apply_image_or_video_transform` does it to a PIL image.
_TORCHVISION = {
    "Identity": _UNCHANGED,
    "ShearX": _Form(matrices=lambda levels, height, width: affine.torchvision_shear_x(levels)),
    "ShearY": _Form(matrices=lambda levels, height, width: affine.torchvision_shear_y(levels)),
    "TranslateX": _Form(matrices=lambda levels, height, width: affine.translate_x(-levels.trunc())),
    "TranslateY": _Form(matrices=lambda levels, height, width: affine.translate_y(-levels.trunc())),
    "Rotate": _Form(matrices=affine.rotate),
    "Brightness": _Form(lambda images, levels: color.brightness(images, 1 + levels)),
    "Color": _Form(lambda images, levels: color.saturation(images, 1 + levels)),
    "Contrast": _Form(lambda images, levels: color.contrast(images, 1 + levels)),
    "Sharpness": _Form(lambda images, levels: color.sharpness(images, 1 + levels)),
    "Posterize": _Form(color.posterize),
    "Solarize": _Form(lambda images, levels: color.solarize(images, 255 * levels)),
    "AutoContrast": _Form(_autocontrast),
    "Equalize": _Form(_equalize),
    "Invert": _Form(_invert),
}


class _Sign(threading.local):
    """Takes the place of the module ``random`` in timm's level functions, which draw a sign and nothing else."""

    number = 0.0

    def random(self) -> float:
        """Return the number that was set last."""
        return self.number


def _with_signs(sign: _Sign) -> ModuleType:
    """Return a copy of timm's module whose level functions draw their sign from ``sign``; timm's own stays as it is."""
    spec: Any = importlib.util.find_spec(auto_augment.__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["random"] = sign
    return module


_SIGN = _Sign()
_LEVELS: Any = _with_signs(_SIGN)  # timm has no types


def _operations(transform: Any) -> list[Any]:
    """Return timm's operations; AutoAugment's pairs one after the other."""
    if isinstance(transform, auto_augment.AutoAugment):
        return [operation for pair in transform.policy for operation in pair]
    return list(transform.ops)


def _function_name(operation: Any) -> str:
    """Return the name of timm's function that changes the pixels."""
    return str(auto_augment.NAME_TO_OP[operation.name].__name__)
