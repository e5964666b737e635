"""timm's and torchvision's augmentation policies by their text, such as ``"rand-m9-mstd0.5-inc1"``."""

from collections.abc import Callable, Mapping
from itertools import chain
import re
from typing import Any, NamedTuple

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, posterize, rand_augment_transform
from torchvision.transforms import InterpolationMode, v2

from lit_distill.checks import did_you_mean
from lit_distill.keys import Generator

# Options and their values. timm ignores what it cannot read, so a typo would change nothing.
_NUMBER, _INTEGER, _SWITCH = r"\d+(\.\d+)?", r"\d+", r"[01]"
_RAND = {"m": _INTEGER, "n": _INTEGER, "p": _NUMBER, "mstd": _NUMBER, "mmax": _INTEGER, "inc": _SWITCH}
_AUGMIX = {"m": _INTEGER, "w": _INTEGER, "d": _INTEGER, "a": _NUMBER, "b": _SWITCH, "mstd": _NUMBER}

_timm_posterize: Callable[[Image.Image, int], Image.Image] = posterize


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


def check_policy(policy: str) -> None:
    """Raise ``ValueError`` unless ``policy`` is a known one, with options that it has."""
    kind, options = _parse(policy)
    if kind not in _POLICIES:
        hint = did_you_mean(policy, _EXAMPLES) or did_you_mean(kind, _POLICIES)
        examples = f"expected one like {', '.join(map(repr, _EXAMPLES))}"
        raise ValueError(f"unknown policy {policy!r}: {hint} {examples}".replace(":  ", ": "))
    patterns = _POLICIES[kind].options
    allowed = "|".join(f"{name}({value})" for name, value in patterns.items())
    for option in options:
        if not re.fullmatch(allowed, option):
            hint = did_you_mean(re.sub(r"\d.*", "", option), patterns)
            all_options = f"its options, each with a value, are {', '.join(patterns)}"
            raise ValueError(f"policy {policy!r} has no option {option!r}: {hint} {all_options}".replace(":  ", ": "))


def policy_generators(policy: str) -> tuple[Generator, ...]:
    """Return the random generators that a policy draws from."""
    return _POLICIES[_parse(policy)[0]].generators


def make_policy(policy: str, size: int, mode: str, interpolation: str) -> Any:
    """Return a policy as a function from a PIL image to a PIL image.

    Args:
        policy: A text that `check_policy` accepts.
        size: Side of the images in pixels.
        mode: Mode of the images.
        interpolation: Of rotations, shears and shifts.
    """
    kind, _ = _parse(policy)
    if kind == "trivial-wide":
        return v2.TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
    # As timm's own `create_transform` has them.
    mean = [round(255 * value) for value in IMAGENET_DEFAULT_MEAN]
    parameters: dict[str, object] = {
        "translate_const": int(size * 0.45),
        "img_mean": {"RGB": tuple(mean), "L": round(sum(mean) / 3)}[mode],
        "interpolation": Image.Resampling[interpolation.upper()],
    }
    transform: Any  # timm has no types
    if kind == "rand":
        transform = rand_augment_transform(policy, parameters)
        operations = transform.ops
    elif kind == "augmix":
        transform = augment_and_mix_transform(policy, {**parameters, "translate_pct": 0.3})
        operations = transform.ops
    else:
        transform = auto_augment_transform("3a" if kind == "three-augment" else policy, parameters)
        operations = chain(*transform.policy)
    for operation in operations:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return transform


def _parse(policy: str) -> tuple[str, list[str]]:
    """Return the kind of a policy, and its options."""
    kind, *options = [policy] if policy in _POLICIES else policy.split("-")
    return kind, options


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # Since 13.0 Pillow refuses to keep no bit at all; timm asks for that at magnitudes of 10 and more.
    return _timm_posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)
