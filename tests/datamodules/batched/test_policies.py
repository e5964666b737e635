"""Exact: equal to timm's and torchvision's policies on PIL images, at the same operations and levels."""

from collections import Counter
from collections.abc import Callable
import random
from typing import Any

import numpy as np
from PIL import Image
import pytest
from scipy.stats import chi2_contingency, kstest
from shapes import images_of, pictures
from timm.data import auto_augment
import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_distill.datamodules.batched.draws import POLICY, Draws
from lit_distill.datamodules.batched.policies import (
    TimmPolicy,
    TrivialPolicy,
    _operations,
    has_batched_form,
    make_batched_policy,
)
from lit_distill.datamodules.policies import make_policy

TIMM = [
    "rand",
    "rand-m9-mstd0.5-inc1",
    "rand-m7-n3-p0.7-tweights",
    "rand-m9-n1-p1.0-mstd101-inc1",
    "rand-m14-mmax20-mstd2-n2-p1.0",
    "rand-m10-n2-p1.0-inc1-t3a",
    "rand-m8-n5-p0.9-mstd1-t3aw",
    "original",
    "original-mstd0.5",
    "originalr-mstd0.5",
    "v0",
    "v0r-mstd0.5",
    "three-augment",
]
POLICIES = [*TIMM, "trivial-wide"]


def draws_of(count: int, seed: int = 42) -> Draws:
    return Draws(seed, view=torch.arange(count) % 3, index=torch.arange(count))


class Numbers:
    """In place of ``random`` in timm's module: the numbers that one layer of one sample has."""

    def __init__(self, numbers: Tensor) -> None:
        _, self.applied, self.magnitude, self.sign, self.radius = numbers.tolist()

    def random(self) -> float:
        return self.applied

    def negate(self, level: float) -> float:
        return -level if self.sign > 0.5 else level

    def gauss(self, mean: float, std: float) -> float:
        return mean + std * float(torch.special.ndtri(torch.tensor(self.magnitude, dtype=torch.float64)))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * (self.radius if low else self.magnitude)  # a radius is at least 0.1


def timms(ours: TimmPolicy, theirs: list[Any], images: list[Image.Image], draws: Draws) -> list[Image.Image]:
    """Return what timm's own operations make of one image at a time, with the choice and the numbers of a batch."""
    made = list(images)
    numbers = [draws.uniform(POLICY + layer, 5) for layer in range(ours.num_layers)]
    with pytest.MonkeyPatch.context() as patch:
        for chosen, of_layer in zip(ours._choose([n[:, 0] for n in numbers]), numbers, strict=True):
            for row, operation in enumerate(chosen.tolist()):
                if operation >= 0:
                    stand_in = Numbers(of_layer[row])
                    patch.setattr(auto_augment, "random", stand_in)
                    patch.setattr(auto_augment, "_randomly_negate", stand_in.negate)
                    made[row] = theirs[operation](made[row])
    return made


MODES = [
    ("RGB", "bicubic", 32),
    ("RGB", "nearest", 32),
    ("L", "bilinear", 8),
    ("L", "bicubic", 1),
    ("RGB", "bicubic", 1),
]


@pytest.mark.parametrize(("mode", "interpolation", "size"), MODES)
@pytest.mark.parametrize("policy", TIMM)
def test_the_pixels_are_timms(policy: str, mode: Any, interpolation: Any, size: int) -> None:
    ours = make_batched_policy(policy, size, mode, interpolation)
    assert isinstance(ours, TimmPolicy)
    images = [picture.image for picture in pictures([(size, size)]) if picture.image.mode == mode] * 50
    draws = draws_of(len(images))
    expected = timms(ours, _operations(make_policy(policy, size, mode, interpolation)), images, draws)
    assert sum(image is not made for image, made in zip(images, expected, strict=True)) > len(images) / 3
    assert torch.equal(ours(images_of(images), draws), images_of(expected))


@pytest.mark.parametrize(
    ("mode", "interpolation", "size"),
    [("RGB", "bicubic", 32), ("RGB", "nearest", 32), ("L", "bilinear", 8), ("L", "nearest", 1)],
)
def test_the_pixels_are_torchvisions(mode: Any, interpolation: Any, size: int) -> None:
    ours = make_batched_policy("trivial-wide", size, mode, interpolation)
    assert isinstance(ours, TrivialPolicy)
    images = [picture.image for picture in pictures([(size, size)]) if picture.image.mode == mode] * 150
    draws = draws_of(len(images))
    result = ours(images_of(images), draws)
    theirs = make_policy("trivial-wide", size, mode, interpolation)
    names = list(ours.space)
    seen = set()
    for row, (operation, level) in enumerate(
        zip(*(part.tolist() for part in ours.draw(draws, size, size)), strict=True)
    ):
        expected = theirs._apply_image_or_video_transform(
            images[row], names[operation], level, interpolation=theirs.interpolation, fill=theirs._fill
        )
        assert torch.equal(result[row], images_of([expected])[0]), (names[operation], level)
        seen.add(names[operation])
    assert seen == set(names)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_does_not_depend_on_its_batch(policy: str) -> None:
    transform = make_batched_policy(policy, 8, "RGB", "bicubic")
    images = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, draws = images.clone(), draws_of(60)
    whole = transform(images, draws)
    assert torch.equal(images, before)
    for rows in (torch.arange(60).flip(0), torch.tensor([7]), torch.arange(3, 12)):
        assert torch.equal(transform(images[rows], draws.rows(rows)), whole[rows])
    assert not torch.equal(transform(images, draws_of(60, seed=1)), whole)


class Recorded:
    """In place of a pixel function of timm: keeps the names and levels of what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    def replace(self, operation: Any) -> None:
        name = operation.name

        def record(image: Image.Image, level: float = 0.0, **_: object) -> Image.Image:
            if name == "GaussianBlurRand":
                level = random.uniform(0.1, 2.0 * level)
            self.calls.append((name, level))
            return image

        operation.aug_fn = record


def of_timm(policy: str, count: int) -> tuple[list[tuple[str, ...]], dict[str, list[float]]]:
    """Return the sequence of names of each sample, and all levels by name, of ``count`` runs of timm's policy."""
    transform = make_policy(policy, 32, "RGB", "bicubic")
    recorded = Recorded()
    for operation in _operations(transform):
        recorded.replace(operation)
    random.seed(0)
    np.random.seed(0)
    image, sequences, levels = Image.new("RGB", (32, 32)), [], dict[str, list[float]]()
    for _ in range(count):
        recorded.calls.clear()
        transform(image)
        sequences.append(tuple(name for name, _ in recorded.calls))
        for name, level in recorded.calls:
            levels.setdefault(name, []).append(level)
    return sequences, levels


def of_batch(policy: str, count: int) -> tuple[list[tuple[str, ...]], dict[str, list[float]]]:
    """Return what `of_timm` does, of one batch of ``count``."""
    transform = make_batched_policy(policy, 32, "RGB", "bicubic")
    assert isinstance(transform, TimmPolicy)
    sequences, levels = [()] * count, dict[str, list[float]]()
    for layer in transform.draw(draws_of(count)):
        for row, (operation, level) in enumerate(zip(*(part.tolist() for part in layer), strict=True)):
            if operation >= 0:
                name = transform.operations[operation].name
                sequences[row] = (*sequences[row], name)
                levels.setdefault(name, []).append(level)
    return sequences, levels


@pytest.mark.parametrize(
    "policy",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m7-n3-p0.7-tweights",
        "rand-m14-mmax20-mstd2-n2-p1.0",
        "rand-m9-n1-p1.0-mstd101-inc1",
        "original",
        "v0r-mstd0.5",
        "three-augment",
    ],
)
def test_the_draws_are_timms(policy: str) -> None:
    """20,000 samples each; p above 0.001 / tests of the policy, of which there are about 20.

    Chi-squared on the operations finds one of 15 that is chosen 30 % too often with a probability of 0.88, and 35 %
    with 0.98. The two-sample Kolmogorov-Smirnov test on the levels of each finds, among the 1,300 of one of 15, a
    normal magnitude that is shifted by a quarter of its standard deviation with a probability of 0.91, and a sign that
    is drawn 62 : 38 with 0.98.
    """
    theirs, their_levels = of_timm(policy, 20_000)
    ours, our_levels = of_batch(policy, 20_000)
    pvalues = operation_pvalues(theirs, ours)
    assert their_levels.keys() == our_levels.keys()
    pvalues += [kstest(their_levels[name], our_levels[name]).pvalue for name in their_levels]
    assert min(pvalues) > 1e-3 / len(pvalues), (policy, min(pvalues))


def operation_pvalues(theirs: list[tuple[str, ...]], ours: list[tuple[str, ...]]) -> list[float]:
    """Return p for the operation at each place, the pair of the first two, and how many there are and differ."""
    longest = max(len(sequence) for sequence in theirs)
    keys: list[Callable[[tuple[str, ...]], Any]] = [
        len,
        lambda sequence: len(set(sequence)),
        lambda sequence: sequence[:2],
    ]
    keys += [lambda sequence, place=place: sequence[place : place + 1] for place in range(longest)]
    pvalues = []
    for key in keys:
        counts = [Counter(map(key, side)) for side in (theirs, ours)]
        frequent = [value for value, count in (counts[0] + counts[1]).items() if count >= 50]
        table = [[side[value] for value in frequent] for side in counts]
        rare = [20_000 - sum(row) for row in table]
        table = [[*row, rest] for row, rest in zip(table, rare, strict=True)] if sum(rare) >= 50 else table
        if len(table[0]) > 1:
            pvalues.append(float(chi2_contingency(table).pvalue))
    return pvalues


def test_the_draws_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 samples; p above 0.001 / 15 tests.

    Chi-squared finds one of 14 operations that is chosen 30 % too often with a probability of 0.93. The two-sample
    Kolmogorov-Smirnov test on the 1,400 levels of each finds a shift by 8 % of their range with 0.9.
    """
    transform, theirs = make_policy("trivial-wide", 32, "RGB", "bicubic"), list[tuple[str, float]]()

    def record(self: Any, image: Any, name: str, magnitude: float, **_: object) -> Any:
        theirs.append((name, magnitude))
        return image

    monkeypatch.setattr(v2.TrivialAugmentWide, "_apply_image_or_video_transform", record)
    torch.manual_seed(0)
    image = Image.new("RGB", (32, 32))
    for _ in range(20_000):
        transform(image)
    batched = make_batched_policy("trivial-wide", 32, "RGB", "bicubic")
    assert isinstance(batched, TrivialPolicy)
    names = list(batched.space)
    layer = batched.draw(draws_of(20_000), 32, 32)
    ours = [(names[number], level) for number, level in zip(*(part.tolist() for part in layer), strict=True)]
    levels = [{name: [level for other, level in side if other == name] for name in names} for side in (theirs, ours)]
    pvalues = [chi2_contingency([[len(of_name) for of_name in side.values()] for side in levels]).pvalue]
    pvalues += [kstest(levels[0][name], levels[1][name]).pvalue for name in names]
    assert min(pvalues) > 1e-3 / len(pvalues)


def test_what_has_no_batched_form_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(has_batched_form(policy) for policy in POLICIES)
    assert not has_batched_form("augmix-m3-w3")
    with pytest.raises(ValueError, match="'augmix' has no batched form"):
        make_batched_policy("augmix", 32, "RGB", "bicubic")
    with pytest.raises(ValueError, match="unknown policy 'rnd-m9'"):
        has_batched_form("rnd-m9")
    # timm adds an operation, or torchvision does.
    monkeypatch.setitem(auto_augment.NAME_TO_OP, "AutoContrast", lambda image, **_: image)
    assert not has_batched_form("rand-m9")
    assert has_batched_form("three-augment")
    monkeypatch.setitem(v2.TrivialAugmentWide._AUGMENTATION_SPACE, "Swirl", (lambda *_: None, False))
    assert not has_batched_form("trivial-wide")


def test_weighted_operations_run_out_as_numpy_says() -> None:
    make_batched_policy("rand-n15-tweights", 32, "RGB", "bicubic")
    with pytest.raises(ValueError, match="has 15 operations, got n16"):
        make_batched_policy("rand-n16-tweights", 32, "RGB", "bicubic")


def test_timms_module_keeps_its_random_numbers() -> None:
    assert auto_augment.random is random


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES)
def test_the_device_changes_at_most_one_level(policy: str) -> None:
    transform = make_batched_policy(policy, 32, "RGB", "bicubic")
    images = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    here = transform(images, draws_of(256))
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = transform(on_device, draws_of(256))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int((there.cpu().int() - here.int()).abs().max()) <= 1
