"""timm's and torchvision's augmentation policies for a batch, each image with its own operations and levels.

Which operations there are, how likely and how strong, is read from the libraries' own objects, which
`lit_distill.datamodules.policies` makes for single images too. Only pixels and random numbers are computed here.
"""

import importlib.util
import threading
from types import ModuleType
from typing import Any, Literal

from timm.data import auto_augment
import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_distill.datamodules.batched.draws import POLICY, BatchTransform, Draws, integers
from lit_distill.datamodules.batched.operations import TIMM, TORCHVISION, Layer, Operations
from lit_distill.datamodules.policies import check_policy, make_policy
from lit_distill.preprocessing import Interpolation


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
        return set(transform._AUGMENTATION_SPACE) <= set(TORCHVISION)
    if not isinstance(transform, auto_augment.RandAugment | auto_augment.AutoAugment):
        return False
    return all(_function_name(operation) in TIMM for operation in _operations(transform))


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

    def __init__(
        self, transform: v2.TrivialAugmentWide, mode: Literal["RGB", "L"], interpolation: Interpolation
    ) -> None:
        self.space, self.bins = transform._AUGMENTATION_SPACE, transform.num_magnitude_bins
        self.signed = torch.tensor([signed for _, signed in self.space.values()])
        self.apply = Operations([TORCHVISION[name] for name in self.space], interpolation, [0] * len(mode))

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

    def __init__(
        self, transform: auto_augment.RandAugment | auto_augment.AutoAugment, interpolation: Interpolation
    ) -> None:
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
        self.apply = Operations([TIMM[name] for name in names], interpolation, channels)
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
        uniforms = [draws.uniform(POLICY + layer, 5) for layer in range(self.num_layers)]
        operations_by_layer = self._choose([of_layer[:, 0] for of_layer in uniforms])
        return [
            self._layer(operations, of_layer)
            for operations, of_layer in zip(operations_by_layer, uniforms, strict=True)
        ]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, transformed."""
        for layer in self.draw(draws):
            images = self.apply(images, layer)
        return images

    def _choose(self, uniforms: list[Tensor]) -> list[Tensor]:
        """Return the number of each image's operation in each layer, or -1."""
        if self.pairs.shape[1] > 1:  # AutoAugment: one choice for both layers
            return list(self.pairs[integers(uniforms[0], len(self.pairs))].unbind(1))
        if self.weights is None:
            return [integers(of_layer, len(self.operations)) for of_layer in uniforms]
        # As of `numpy.random.choice` without replacement: what has been drawn is not drawn again.
        weights, numbers = self.weights.repeat(len(uniforms[0]), 1), []
        for of_layer in uniforms:
            sums = weights.cumsum(1)
            numbers.append((of_layer[:, None] * sums[:, -1:] >= sums).sum(1).clamp_(max=len(self.operations) - 1))
            weights.scatter_(1, numbers[-1][:, None], 0.0)
        return numbers

    def _layer(self, operations: Tensor, uniforms: Tensor) -> Layer:
        """Return a layer in which some of the chosen operations take place, as in ``AugmentOp.__call__``."""
        _, apply, magnitude, sign, radius = uniforms.unbind(1)
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


def _operations(transform: auto_augment.RandAugment | auto_augment.AutoAugment) -> list[auto_augment.AugmentOp]:
    """Return timm's operations; AutoAugment's pairs one after the other."""
    if isinstance(transform, auto_augment.AutoAugment):
        return [operation for pair in transform.policy for operation in pair]
    return list(transform.ops)


def _function_name(operation: auto_augment.AugmentOp) -> str:
    """Return the name of timm's function that changes the pixels."""
    return str(auto_augment.NAME_TO_OP[operation.name].__name__)
