"""The form for batches of the transforms that data modules use."""

from typing import Any

from torch import Tensor

from lit_distill.datamodules.augmentation import Augmentation, ImageTransform
from lit_distill.datamodules.batched.crops import CenterCrop, HorizontalFlip, PaddedCrop, RandomResizedCrop
from lit_distill.datamodules.batched.draws import BatchTransform, Draws, chain
from lit_distill.datamodules.batched.erasing import Erasing
from lit_distill.datamodules.batched.jitter import ColorJitter
from lit_distill.datamodules.batched.policies import has_batched_form, make_batched_policy
from lit_distill.datamodules.batched.resize import ShorterSide
from lit_distill.preprocessing import Interpolation, Preprocessing


def batch_form(transform: Any) -> BatchTransform | str:
    """Return the same transform for a batch ``uint8`` ``(B, C, H, W)`` of images of one size, or why there is none.

    Args:
        transform: For a single PIL image, as `Augmentation.train` and `Augmentation.evaluate` return it.

    Example:
        >>> import torch
        >>> draws = Draws(0, view=torch.arange(2), index=torch.arange(2))
        >>> form = batch_form(Augmentation(crop="padded").train(32))
        >>> form(torch.zeros(2, 3, 40, 32, dtype=torch.uint8), draws).shape
        torch.Size([2, 3, 32, 32])
        >>> batch_form(Augmentation(policy="augmix-m3-w3").train(32))
        "the policy 'augmix-m3-w3' has no form for batches"
    """
    if isinstance(transform, Preprocessing):
        return chain([ShorterSide(transform.resize, transform.interpolation), CenterCrop(transform.crop[0])])
    if not isinstance(transform, ImageTransform) or transform.recipe is None:
        return f"the transform {type(transform).__name__} has no form for batches"
    return _training(*transform.recipe)


def _training(recipe: Augmentation, size: int) -> BatchTransform | str:
    if recipe.policy is not None and not has_batched_form(recipe.policy):
        return f"the policy {recipe.policy!r} has no form for batches"
    steps = _crop_and_flip(recipe, size)
    if recipe.policy is not None:
        steps.append(_Policy(recipe.policy, size, recipe.interpolation))
    if recipe.color_jitter > 0:
        steps.append(ColorJitter(recipe.color_jitter))
    if recipe.erasing > 0:
        steps.append(Erasing(recipe.erasing))
    return chain(steps)


def _crop_and_flip(recipe: Augmentation, size: int) -> list[BatchTransform]:
    """Return the first steps, as `Augmentation.train` has them."""
    whole, flip = ShorterSide(size, recipe.interpolation), HorizontalFlip(recipe.hflip)
    if recipe.crop == "resized":
        return [RandomResizedCrop(size, recipe.scale, recipe.ratio, recipe.interpolation), flip]
    if recipe.crop == "none":
        return [ShorterSide(recipe.evaluate(size).resize, recipe.interpolation), CenterCrop(size), flip]
    if recipe.crop == "simple":
        return [whole, PaddedCrop(size, 4, "reflect", recipe.hflip)]
    padding = size // 8 if recipe.padding is None else recipe.padding
    return [whole, PaddedCrop(size, padding, recipe.padding_mode, recipe.hflip)]


class _Policy:
    """A policy for RGB and greyscale, whose fill colours differ."""

    def __init__(self, policy: str, size: int, interpolation: Interpolation) -> None:
        self.by_channels = {
            3: make_batched_policy(policy, size, "RGB", interpolation),
            1: make_batched_policy(policy, size, "L", interpolation),
        }

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return self.by_channels[images.shape[1]](images, draws)
