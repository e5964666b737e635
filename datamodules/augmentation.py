"""What is done to an image before the network sees it: torchvision's transforms and timm's policies, by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
import math
import re
from typing import Any, Literal, NamedTuple, get_args

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from lit_distill.keys import GENERATORS, Generator
from lit_distill.preprocessing import Preprocessing, ShorterSide, pixels_of

Crop = Literal["resized", "padded", "simple", "none"]
PaddingMode = Literal["constant", "reflect"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]  # those that a PIL image can be rotated with

# Options and their values. timm passes over what it cannot read, so that a typo would change nothing.
_NUMBER, _INTEGER, _SWITCH = r"\d+(\.\d+)?", r"\d+", r"[01]"
_RAND = {"m": _INTEGER, "n": _INTEGER, "p": _NUMBER, "mstd": _NUMBER, "mmax": _INTEGER, "inc": _SWITCH}
_AUGMIX = {"m": _INTEGER, "w": _INTEGER, "d": _INTEGER, "a": _NUMBER, "b": _SWITCH, "mstd": _NUMBER}


class _Policy(NamedTuple):
    options: Mapping[str, str] = {}
    generators: tuple[Generator, ...] = ("python",)


_AUTO = _Policy({"mstd": _NUMBER})
_POLICIES = {
    "rand": _Policy({**_RAND, "t": "weights|3a|3aw"}, ("python", "numpy")),
    "augmix": _Policy(_AUGMIX, ("python", "numpy")),
    "original": _AUTO,
    "originalr": _AUTO,
    "v0": _AUTO,
    "v0r": _AUTO,
    "three-augment": _Policy(),
    "trivial-wide": _Policy(generators=("torch",)),
}
_EXAMPLES = ("rand-m9-mstd0.5-inc1", "augmix-m3-w3", *(name for name in _POLICIES if name not in ("rand", "augmix")))


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
        what they draw from.

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
        for name, choices in (("crop", Crop), ("padding_mode", PaddingMode), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(choices):
                said = ", ".join(map(repr, get_args(choices)))
                raise ValueError(f"{name} must be one of {said}, got {getattr(self, name)!r}")
        for name in ("hflip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability and must be in [0, 1], got {getattr(self, name)}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two parts of the area, 0 < smallest <= largest <= 1, got {self.scale}")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two ratios, 0 < smallest <= largest, got {self.ratio}")
        if self.padding is not None and (self.padding < 0 or self.crop != "padded"):
            raise ValueError(
                f"padding must be >= 0 and is of crop='padded' alone, got {self.padding} with crop={self.crop!r}"
            )
        if not self.color_jitter >= 0:
            raise ValueError(f"color_jitter must be >= 0, got {self.color_jitter}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be in (0, 1], got {self.crop_pct}")
        if self.policy is not None:
            _check_policy(self.policy)

    def train(self, size: int) -> "ImageTransform":
        """Return the training transform to ``size`` x ``size`` pixels.

        Raises:
            ValueError: If ``size`` is < 1.
        """
        generators: set[Generator] = set()
        resize, steps = self._train_crop(size)
        if self.crop != "none":
            generators.add("torch")
        if self.hflip > 0:
            generators.add("torch")
            steps.append(_Flip(self.hflip))
        policies: dict[str, list[Any]] = {"RGB": [], "L": []}
        if self.policy is not None:
            generators.update(_POLICIES[_parse(self.policy)[0]].generators)
            policies = {mode: [_make_policy(self.policy, size, mode, self.interpolation)] for mode in policies}
        jitter = []
        if self.color_jitter > 0:
            generators.add("torch")
            jitter.append(v2.ColorJitter(*[self.color_jitter] * 3))
        erasing = None
        if self.erasing > 0:
            generators |= {"torch", "python"}
            erasing = _Erasing(self.erasing)
        modes = {mode: [*steps, *policy, *jitter] for mode, policy in policies.items()}
        used = [name for name in GENERATORS if name in generators]
        return ImageTransform(modes, resize, erasing, used, self.enough(size) if self.crop == "resized" else None)

    def enough(self, size: int) -> int:
        """Return the shorter side in pixels from which random resized crops of ``size`` lose next to nothing.

        It is where the smallest crop still has ``size`` pixels, and three times ``size`` at least: 4.1 times with the
        defaults. Crops from photos of 1000 to 3000 px that were shrunk to it differ from crops of the whole photo by
        0.2 to 0.3 levels of 255 on average; from photos of twice ``size`` it would be up to 1.9, and saving a crop as a
        JPEG of quality 95 changes it by 4 (``benchmarks/shrinking.py``). Whole photos would take ten times the memory.
        """
        return math.ceil(size * max(3.0, math.sqrt(max(*self.ratio, 1 / self.ratio[0]) / self.scale[0])))

    def evaluate(self, size: int, channels: Literal[1, 3] = 3) -> Preprocessing:
        """Return the transform of validation, test and prediction to ``size`` x ``size`` pixels; nothing is random.

        Raises:
            ValueError: If ``size`` is < 1.
        """
        _check_size(size)
        return Preprocessing(math.floor(size / self.crop_pct), (size, size), self.interpolation, channels)

    def _train_crop(self, size: int) -> tuple[ShorterSide | None, list[Any]]:
        if self.crop == "none":
            return self._middle(size)
        _check_size(size)
        if self.crop == "resized":
            how = InterpolationMode(self.interpolation)
            return None, [v2.RandomResizedCrop(size, self.scale, self.ratio, interpolation=how)]
        padding, mode = (4, "reflect") if self.crop == "simple" else (self.padding, self.padding_mode)
        padding = size // 8 if padding is None else padding
        crop = v2.RandomCrop(size, padding=padding, padding_mode=mode)
        return self._resize(size), [_BlackPaddedCrop(size, padding) if mode == "constant" else crop]

    def _middle(self, size: int) -> tuple[ShorterSide, list[Any]]:
        _check_size(size)
        return self._resize(math.floor(size / self.crop_pct)), [v2.CenterCrop(size)]

    def _resize(self, side: int) -> ShorterSide:
        return ShorterSide(side, self.interpolation)


class ImageTransform:
    """A PIL image, RGB or L, to ``uint8`` ``(C, H, W)``, as `Augmentation` makes it.

    Args:
        steps: PIL image to PIL image, in turn, for each mode.
        resize: Comes first, where the shorter side has another length.
        finish: Comes last, on the tensor.
        generators: The generators that are drawn from, for `IndexedDataset` to seed.
        enough: Pixels that the shorter side of an image need not exceed, or None if the transform is to have all.

    Raises:
        ValueError: When called with an image of another mode.
    """

    def __init__(
        self,
        steps: Mapping[str, Sequence[Callable[[Any], Any]]],
        resize: ShorterSide | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        generators: Sequence[Generator] = (),
        enough: int | None = None,
    ) -> None:
        self.steps, self.resize, self.finish, self.enough = steps, resize, finish, enough
        self.generators = tuple(generators)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image's pixels, transformed."""
        steps = self.steps.get(image.mode)
        if steps is None:
            raise ValueError(f"images must be of mode {' or '.join(self.steps)}, got {image.mode}: convert them")
        if self.resize is not None:
            image = self.resize(image)
        for step in steps:
            image = step(image)
        tensor = pixels_of(image)
        return tensor if self.finish is None else self.finish(tensor)


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
        self.erase = RandomErasing(probability, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
        mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD])[:, :, None]
        self.statistics = {3: (mean, std), 1: (mean.mean(), std.mean())}

    def __call__(self, image: Tensor) -> Tensor:
        # timm fills images of normalised floats: on an empty canvas it shows where, and with what noise.
        noise = self.erase(torch.full(image.shape, torch.nan))
        filled = ~noise[0].isnan()
        if filled.any():
            mean, std = self.statistics[len(image)]
            image[:, filled] = (noise[:, filled] * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return image


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be >= 1, got {size}")


def _parse(policy: str) -> tuple[str, list[str]]:
    kind, *options = [policy] if policy in _POLICIES else policy.split("-")
    return kind, options


def _check_policy(policy: str) -> None:
    kind, options = _parse(policy)
    if kind not in _POLICIES:
        close = _near(policy, _EXAMPLES) or _near(kind, _POLICIES)
        raise ValueError(f"unknown policy {policy!r}: {close}expected one like {', '.join(map(repr, _EXAMPLES))}")
    known = _POLICIES[kind].options
    for option in options:
        if not any(re.fullmatch(f"{name}({value})", option) for name, value in known.items()):
            stem = re.sub(r"\d.*", "", option)
            close = "" if stem in known else _near(stem, known)
            said = f"its options, each with a value, are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"policy {policy!r} has no option {option!r}: {close}{said}")


def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def _make_policy(policy: str, size: int, mode: str, interpolation: str) -> Any:
    kind, _ = _parse(policy)
    if kind == "trivial-wide":
        return v2.TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
    # As timm's own `create_transform` has them.
    mean = [round(255 * value) for value in IMAGENET_DEFAULT_MEAN]
    parameters: dict[str, Any] = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(mean) if mode == "RGB" else round(sum(mean) / 3),
        "interpolation": Image.Resampling[interpolation.upper()],
    }
    policy = "3a" if kind == "three-augment" else policy
    parameters |= {"translate_pct": 0.3} if kind == "augmix" else {}
    makers = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    transform: Any = makers.get(kind, auto_augment_transform)(policy, parameters)
    parts = [transform.ops] if kind in makers else transform.policy
    for operation in (operation for part in parts for operation in part):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    # Pillow refuses to keep no bit at all since 13.0; timm asks for that at magnitudes of 10 and more.
    return posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)  # type: ignore[no-untyped-call]
