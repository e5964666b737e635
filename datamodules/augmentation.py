"""What is done to an image before the network sees it: torchvision's transforms and timm's policies, by name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from lit_distill.checks import check_at_least, check_choice, check_fraction, check_positive
from lit_distill.datamodules.policies import check_policy, make_policy, policy_generators
from lit_distill.keys import GENERATORS, Generator
from lit_distill.preprocessing import Interpolation, Preprocessing, ShorterSide, pixels_of

Crop = Literal["resized", "padded", "simple", "none"]
PaddingMode = Literal["constant", "reflect"]
Step = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    r"""What is done to images in training and in evaluation.

    In training: crop, flip, policy, color jitter, erasing, in this order. In evaluation: the shorter side is resized to
    ``size / crop_pct``, and the middle is cut out. Every step is torchvision's (``transforms.v2``) or timm's own, but
    for the flip and the crop from black padding, which are torchvision's draw for draw in less time.

    Args:
        crop: How training cuts out its ``size`` x ``size`` pixels: ``"resized"``, a random part of the area, of a
            random aspect ratio, resized (Inception's); ``"padded"``, at random from an image whose shorter side is
            ``size``, padded (as for CIFAR); ``"simple"``, DeiT III's, which is that with 4 pixels of reflection;
            ``"none"``, as in evaluation.
        scale: Smallest and largest part of the area, in 0..1, of ``"resized"``.
        ratio: Smallest and largest width / height of ``"resized"``.
        padding: Pixels on each side of ``"padded"``; by default ``size // 8``, so 4 for 32.
        padding_mode: ``"constant"``, which is black, or ``"reflect"``, of ``"padded"``.
        interpolation: Of every resize, and of the policy's rotations, shears and shifts.
        hflip: Probability of a horizontal flip.
        policy: None; timm's RandAugment (``"rand-m9-mstd0.5-inc1"`` is DeiT's), AutoAugment (``"original"``,
            ``"v0"``, ``"originalr"``, ``"v0r"``) or AugMix (``"augmix-m3-w3"``), with their options;
            ``"three-augment"``, DeiT III's: one of greyscale, solarize and Gaussian blur; ``"trivial-wide"``,
            TrivialAugment.
        color_jitter: Strength >= 0 of jitter in brightness, contrast and saturation: factors in 1 -+ strength. timm
            leaves it out beside a policy other than three-augment, so DeiT trained without, for all its 0.3; here a
            value means what it says.
        erasing: Probability of random erasing: a rectangle of 2 to 33 % of the area becomes noise.
        crop_pct: What evaluation sees of the shorter side, in 0..1; 1.0 for images of a few pixels.

    Shape:
        The transforms that `train` and `evaluate` return take a PIL image, RGB or L, and return ``uint8``
        ``(3, size, size)`` or ``(1, size, size)``. The noise of erasing is therefore timm's (mode ``"pixel"``, normal
        with ImageNet's mean and standard deviation) rounded to 0..255, where the 3 to 5 % outside that range end; that
        of L has the average of the three channels' statistics. Their attribute ``generators`` tells `IndexedDataset`
        what they may draw from.

    Raises:
        ValueError: If a value is out of its range, or the policy is unknown or has an option that timm does not know.

    Source:
        Touvron et al., arXiv 2012.12877, table 9; three-augment and the simple crop: Touvron et al., "DeiT III",
        arXiv 2204.07118; TrivialAugment: Müller and Hutter, arXiv 2103.10158.

    Example:
        >>> photo = Image.new("RGB", (100, 80), "teal")
        >>> recipe = Augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.25)
        >>> recipe.train(32)(photo).shape, recipe.evaluate(32)(photo)[:, 0, 0]
        (torch.Size([3, 32, 32]), tensor([  0, 128, 128], dtype=torch.uint8))
        >>> recipe.train(32).generators, Augmentation(crop="padded").train(32).generators
        (('torch', 'python', 'numpy'), ('torch',))
    """

    crop: Crop = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int | None = None
    padding_mode: PaddingMode = "constant"
    interpolation: Interpolation = "bicubic"
    hflip: float = 0.5
    policy: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    crop_pct: float = 0.875

    def __post_init__(self) -> None:
        check_choice(Crop, crop=self.crop)
        check_choice(PaddingMode, padding_mode=self.padding_mode)
        check_choice(Interpolation, interpolation=self.interpolation)
        check_at_least(0, padding=self.padding, color_jitter=self.color_jitter)
        smallest, largest = self.scale
        check_positive(crop_pct=self.crop_pct, smallest_scale=smallest, smallest_ratio=self.ratio[0])
        check_fraction(hflip=self.hflip, erasing=self.erasing, crop_pct=self.crop_pct, largest_scale=largest)
        for name, (least, most) in {"scale": self.scale, "ratio": self.ratio}.items():
            if least > most:
                raise ValueError(f"{name} must be (smallest, largest), got ({least}, {most})")
        if self.padding is not None and self.crop != "padded":
            raise ValueError(f"padding is for crop='padded' alone, got {self.padding} with crop={self.crop!r}")
        if self.policy is not None:
            check_policy(self.policy)

    def train(self, size: int) -> "ImageTransform":
        """Return the training transform to ``size`` x ``size`` pixels.

        Raises:
            ValueError: If ``size`` is < 1.
        """
        check_at_least(1, size=size)
        resize, crop = self._train_crop(size)
        steps: dict[str, list[Step]] = {"RGB": [crop], "L": [crop]}
        draws: set[Generator] = {"torch"}
        for mode, mode_steps in steps.items():
            if self.hflip > 0:
                mode_steps.append(_Flip(self.hflip))
            if self.policy is not None:
                draws.update(policy_generators(self.policy))
                mode_steps.append(make_policy(self.policy, size, mode, self.interpolation))
            if self.color_jitter > 0:
                mode_steps.append(v2.ColorJitter(*[self.color_jitter] * 3))
        erase = None
        if self.erasing > 0:
            draws.add("python")
            erase = _Erasing(self.erasing)
        side = self.sufficient_side(size) if self.crop == "resized" else None
        return ImageTransform(steps, resize, erase, draws, side, (self, size))

    def sufficient_side(self, size: int) -> int:
        """Return the shorter side to which a photo can be shrunk before random resized crops of ``size``.

        At this side the smallest crop still has ``size`` pixels a side. It is at least three times ``size``: 4.1 times
        with the defaults. Measured on photos of 1000 to 3000 px (``benchmarks/shrinking.py``), it changes crops by 0.2
        to 0.3 of 255 levels on average; twice ``size`` would change them by up to 1.9, and a JPEG of quality 95 changes
        them by 4. Photos that are not shrunk take ten times the memory.
        """
        return math.ceil(size * max(3.0, math.sqrt(max(*self.ratio, 1 / self.ratio[0]) / self.scale[0])))

    def evaluate(self, size: int, channels: Literal[1, 3] = 3) -> Preprocessing:
        """Return the transform of validation, test and prediction to ``size`` x ``size`` pixels; nothing is random.

        Raises:
            ValueError: If ``size`` is < 1.
        """
        check_at_least(1, size=size)
        return Preprocessing(math.floor(size / self.crop_pct), (size, size), self.interpolation, channels)

    def _train_crop(self, size: int) -> tuple[ShorterSide | None, Step]:
        """Return the resize that comes first, and the crop."""
        whole, padding = ShorterSide(size, self.interpolation), self.padding
        if self.crop == "none":
            return ShorterSide(math.floor(size / self.crop_pct), self.interpolation), v2.CenterCrop(size)
        if self.crop == "resized":
            mode = InterpolationMode(self.interpolation)
            return None, v2.RandomResizedCrop(size, self.scale, self.ratio, interpolation=mode)
        if self.crop == "simple":
            return whole, v2.RandomCrop(size, padding=4, padding_mode="reflect")
        padding = size // 8 if padding is None else padding
        if self.padding_mode == "constant":
            return whole, _BlackPaddedCrop(size, padding)
        return whole, v2.RandomCrop(size, padding=padding, padding_mode=self.padding_mode)


class ImageTransform:
    """A PIL image, RGB or L, to ``uint8`` ``(C, H, W)``, as `Augmentation` makes it.

    Args:
        steps: PIL image to PIL image, in turn, for each mode.
        resize: Comes first, where the shorter side has another length.
        finish: Comes last, on the tensor.
        generators: The generators that are drawn from, for `IndexedDataset` to seed.
        sufficient_side: Pixels that the shorter side of an image need not exceed, or None if the transform wants all.
        recipe: The augmentation and the size that it was made for, from which its form for batches is made.

    Raises:
        ValueError: When called with an image of another mode.
    """

    def __init__(
        self,
        steps: Mapping[str, Sequence[Step]],
        resize: ShorterSide | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        generators: Collection[Generator] = (),
        sufficient_side: int | None = None,
        recipe: tuple[Augmentation, int] | None = None,
    ) -> None:
        self.steps = steps
        self.recipe = recipe
        self.resize, self.finish, self.sufficient_side = resize, finish, sufficient_side
        self.generators = tuple(name for name in GENERATORS if name in generators)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image's pixels, transformed."""
        if image.mode not in self.steps:
            raise ValueError(f"images must be of mode {' or '.join(self.steps)}, got {image.mode}: convert them")
        steps = self.steps[image.mode]
        if self.resize is not None:
            image = self.resize(image)
        for step in steps:
            image = step(image)
        pixels = pixels_of(image)
        return pixels if self.finish is None else self.finish(pixels)


class _BlackPaddedCrop:
    """``v2.RandomCrop(size, padding=padding)`` of a PIL image, draw for draw, in a third of the time.

    For an image of a few pixels torchvision spends most of it looking for what else there might be to crop; Pillow's
    crop pads by itself.
    """

    def __init__(self, size: int, padding: int) -> None:
        self.size, self.padding = size, padding

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        top, left = self._start(height), self._start(width)
        return image.crop((left, top, left + self.size, top + self.size))

    def _start(self, side: int) -> int:
        room = side + 2 * self.padding - self.size
        return (int(torch.randint(0, room + 1, size=())) if room else 0) - self.padding


class _Flip:
    """``v2.RandomHorizontalFlip`` of a PIL image, draw for draw."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) >= self.probability:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class _Erasing:
    """timm's random erasing, mode ``"pixel"``, on ``uint8`` ``(C, H, W)``, which is written to."""

    def __init__(self, probability: float) -> None:
        make: Callable[..., Callable[[Tensor], Tensor]] = RandomErasing  # timm has no types
        self.erase = make(probability, mode="pixel", device="cpu")
        mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD])[:, :, None]
        self.statistics = {3: (mean, std), 1: (mean.mean(), std.mean())}

    def __call__(self, image: Tensor) -> Tensor:
        # timm fills images of normalised floats. An empty canvas shows where, and with what noise.
        noise = self.erase(torch.full(image.shape, torch.nan))
        filled = ~noise[0].isnan()
        if filled.any():
            mean, std = self.statistics[len(image)]
            image[:, filled] = (noise[:, filled] * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return image
