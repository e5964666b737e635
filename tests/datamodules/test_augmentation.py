"""The pixels are those of the libraries' own pipelines, and a pure function of (seed, view, index)."""

import io
import json
import math
import random
from typing import Any

import numpy as np
from PIL import Image, ImageOps
import pytest
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_train
import torch
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import VisionDataset
from torchvision.transforms import InterpolationMode, v2
from toys import both, photo, seed_all

from lit_distill.datamodules import Augmentation, IndexedDataset, KeyedSampler, generators_of
from lit_distill.keys import GENERATORS
from lit_distill.photos import read_image
from lit_distill.preprocessing import Preprocessing

BICUBIC = InterpolationMode.BICUBIC

POLICIES = [
    None,
    "rand-m9-mstd0.5-inc1",
    "rand-m7-n3-p0.7-tweights",
    "augmix-m3-w3-b1",
    "augmix",
    "original",
    "originalr-mstd0.5",
    "v0",
    "v0r",
    "three-augment",
    "trivial-wide",
]


class Photos(VisionDataset):
    """Twelve photos."""

    def __init__(self, transform: Any, mode: str = "RGB") -> None:
        super().__init__("", transform=transform)
        self.mode = mode

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(photo(seed=index, mode=self.mode)), index


Photos.__module__ = "torchvision.datasets.photos"  # whose data sets draw from nothing that is not torch's


@pytest.fixture
def _comparable(monkeypatch: pytest.MonkeyPatch) -> None:
    # timm's crop is torchvision's, but draws from Python's generator.
    draw = staticmethod(v1.RandomResizedCrop.get_params)
    monkeypatch.setattr(RandomResizedCropAndInterpolation, "get_params", draw)

    # Pillow 13 raises for no bits, which timm asks for; before it the image was black.
    def posterize(image: Image.Image, bits: int) -> Image.Image:
        mask = ~(2 ** (8 - bits) - 1)
        return image.point([value & mask for value in range(256)] * len(image.getbands()))

    monkeypatch.setattr(ImageOps, "posterize", posterize)


@pytest.mark.usefixtures("_comparable")
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "trivial-wide"])
def test_the_pixels_are_timms(policy: str | None) -> None:
    recipe = Augmentation(policy=policy, scale=(0.2, 1.0))
    name = "3a" if policy == "three-augment" else policy
    theirs = create_transform(
        48, is_training=True, auto_augment=name, color_jitter=0.0, interpolation="bicubic", scale=(0.2, 1.0),
        normalize=False,
    )  # fmt: skip
    for seed in range(30):
        ours, expected = both(recipe.train(48), theirs, photo(), seed)
        assert torch.equal(ours, expected)


@pytest.mark.usefixtures("_comparable")
def test_deits_recipe_with_its_erasing_is_timms_but_for_rounding_and_clipping() -> None:
    ours = Augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.25).train(48)
    theirs = create_transform(
        48, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3, interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    outside = erased = 0
    for seed in range(80):
        pixels, expected = both(ours, theirs, photo(), seed)
        values = (expected * std + mean) * 255
        assert (pixels - values.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
        noise = (values - values.round()).abs() > 1e-2  # as good as all of it, and nothing of the image
        erased += int(noise.sum())
        outside += int(((values < -0.5) | (values > 255.5)).sum())
    assert 0.03 < outside / erased < 0.06
    assert 0.25 * 0.02 < erased / (80 * 3 * 48 * 48) < 0.25 * 0.34


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", None, "three-augment"])
@pytest.mark.usefixtures("_comparable")
def test_color_jitter_is_timms_where_timm_is_told_to_apply_it(policy: str | None) -> None:
    ours = Augmentation(policy=policy, color_jitter=0.3).train(48)
    theirs = transforms_imagenet_train(
        48, auto_augment="3a" if policy == "three-augment" else policy, color_jitter=0.3, force_color_jitter=True,
        interpolation="bicubic", normalize=False,
    )  # fmt: skip
    for seed in range(20):
        assert torch.equal(*both(ours, theirs, photo(), seed))


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        ({"crop": "simple"}, [v1.Resize(32, BICUBIC), v1.RandomCrop(32, padding=4, padding_mode="reflect")]),
        ({"crop": "padded"}, [v1.Resize(32, BICUBIC), v1.RandomCrop(32, padding=4)]),
        (
            {"crop": "padded", "padding": 6, "padding_mode": "reflect", "interpolation": "bilinear"},
            [v1.Resize(32), v1.RandomCrop(32, padding=6, padding_mode="reflect")],
        ),
        ({"crop": "resized", "scale": (0.6, 0.7)}, [v1.RandomResizedCrop(32, (0.6, 0.7), interpolation=BICUBIC)]),
        ({"crop": "none"}, [v1.Resize(36, BICUBIC), v1.CenterCrop(32)]),
        ({"crop": "none", "crop_pct": 1.0}, [v1.Resize(32, BICUBIC), v1.CenterCrop(32)]),
    ],
)
@pytest.mark.parametrize("size", [(50, 40), (32, 32), (32, 33), (20, 32)])
def test_the_crops_are_torchvisions(recipe: dict[str, Any], steps: list[Any], size: tuple[int, int]) -> None:
    ours = Augmentation(**recipe).train(32)
    theirs = v1.Compose([*steps, v1.RandomHorizontalFlip(), v1.PILToTensor()])
    for seed in range(20):
        assert torch.equal(*both(ours, theirs, photo(*size), seed))


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(90, 70), (32, 32), (40, 90)])
def test_evaluation_is_timms_and_random_in_nothing(crop_pct: float, size: tuple[int, int]) -> None:
    ours = Augmentation(policy="augmix", erasing=1.0, crop_pct=crop_pct).evaluate(32)
    theirs = create_transform(32, crop_pct=crop_pct, interpolation="bicubic", normalize=False)
    assert ours.generators == ()
    assert torch.equal(ours(photo(*size)), theirs(photo(*size)))
    assert torch.equal(ours(photo(*size)), ours(photo(*size)))


def recipe_of(policy: str | None, **kwargs: Any) -> Augmentation:
    extra = {"color_jitter": 0.2, "erasing": 0.5} if policy in (None, "trivial-wide") else {}
    return Augmentation(policy=policy, **{**extra, **kwargs})


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("policy", POLICIES)
def test_pixels_are_a_pure_function_of_seed_view_and_index(policy: str | None, mode: str) -> None:
    data = IndexedDataset(Photos(recipe_of(policy).train(24), mode), seed=4)
    sampler = KeyedSampler(data, seed=4)
    images = {}
    for workers in (0, 2):
        for epoch in range(2):
            sampler.set_epoch(epoch)
            seed_all(100 * workers + epoch)  # the process's own state has no say
            loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers)
            for batch in loader:
                assert batch.image.dtype == torch.uint8
                assert batch.image.shape == (4, 3 if mode == "RGB" else 1, 24, 24)
                for index, image in zip(batch.index.tolist(), batch.image, strict=True):
                    assert torch.equal(images.setdefault((epoch, index), image), image)
    assert len({tuple(image.flatten().tolist()) for image in images.values()}) == 24


@pytest.mark.parametrize(
    "recipe",
    [
        *(Augmentation(crop="none", hflip=0.0, policy=policy) for policy in POLICIES),
        Augmentation(),
        Augmentation(crop="padded", hflip=0.0),
        Augmentation(crop="simple", hflip=0.0),
        Augmentation(crop="none"),
        Augmentation(crop="none", hflip=0.0, color_jitter=0.3),
        Augmentation(crop="none", hflip=0.0, erasing=0.5),
        recipe_of("original", color_jitter=0.3),
    ],
)
def test_says_which_generators_it_draws_from_beside_torchs(recipe: Augmentation) -> None:
    transform = recipe.train(24)
    used = set()
    for seed in range(25):
        seed_all(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
        transform(photo(seed=seed))
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
        for name, was, now in zip(GENERATORS, before, after, strict=True):
            same = torch.equal(was, now) if name == "torch" else str(was) == str(now)
            used |= set() if same else {name}
    assert set(transform.generators) == used | {"torch"}
    assert set(generators_of(Photos(transform))) == used | {"torch"}
    assert set(generators_of(Photos(v2.Compose([transform, v2.RandomHorizontalFlip()])))) == used | {"torch"}


def test_a_greyscale_image_is_treated_as_its_three_equal_channels() -> None:
    """But for the fill of what is turned or moved in from outside."""
    grey = photo(mode="L")
    for recipe in (
        Augmentation(color_jitter=0.3),
        Augmentation(policy="three-augment"),
        Augmentation(policy="rand-m9-mstd0.5-inc1-t3a"),
        Augmentation(crop="simple"),
    ):
        for seed in range(10):
            one, three = both(recipe.train(32), lambda image, r=recipe: r.train(32)(image.convert("RGB")), grey, seed)
            assert one.shape == (1, 32, 32)
            assert (one.int() - three).abs().max() <= 1  # the rounding of a luminance


def test_the_noise_of_a_greyscale_image_has_the_mean_statistics() -> None:
    transform = Augmentation(crop="none", hflip=0.0, erasing=1.0).train(64)
    black = Image.new("L", (64, 64))
    seed_all(0)
    noise = torch.cat([pixels[pixels > 0] for pixels in (transform(black) for _ in range(40))]).double() / 255
    mean, std = (sum(values) / 3 for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    low, high = (0.5 / 255 - mean) / std, (254.5 / 255 - mean) / std  # clipped there, and 0 is the image's
    cdf = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor([low, high]))
    assert math.isclose((noise == 1).double().mean(), (1 - cdf[1]) / (1 - cdf[0]), abs_tol=0.003)
    assert math.isclose(noise.median(), mean + std * 0.03, abs_tol=0.01)


def test_says_what_it_cannot_transform() -> None:
    with pytest.raises(ValueError, match="images must be of mode RGB or L, got CMYK: convert them"):
        Augmentation().train(8)(Image.new("CMYK", (9, 9)))
    for make in (Augmentation(crop="none").train, Augmentation().train, Augmentation().evaluate):
        with pytest.raises(ValueError, match="size must be >= 1, got 0"):
            make(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "random"}, r"crop must be 'resized', 'padded', 'simple' or 'none', got 'random'"),
        ({"interpolation": "cubic"}, r"interpolation must be 'nearest', 'bilinear' or 'bicubic', got 'cubic'"),
        ({"padding_mode": "edge"}, r"padding_mode must be 'constant' or 'reflect', got 'edge'"),
        ({"hflip": 1.5}, r"hflip must be in \[0, 1\], got 1.5"),
        ({"erasing": -0.1}, r"erasing must be in \[0, 1\], got -0.1"),
        ({"scale": (0.9, 0.1)}, r"scale must be \(smallest, largest\), got \(0.9, 0.1\)"),
        ({"scale": (0.9, 1.1)}, r"largest_scale must be in \[0, 1\], got 1.1"),
        ({"ratio": (2.0, 1.0)}, r"ratio must be \(smallest, largest\), got \(2.0, 1.0\)"),
        ({"padding": 4}, r"padding is for crop='padded' alone, got 4 with crop='resized'"),
        ({"padding": -1, "crop": "padded"}, r"padding must be >= 0, got -1"),
        ({"color_jitter": -0.3}, r"color_jitter must be >= 0, got -0.3"),
        ({"crop_pct": 0.0}, r"crop_pct must be > 0, got 0.0"),
        ({"policy": "rnd-m9"}, r"unknown policy 'rnd-m9': did you mean 'rand'\? expected one like 'rand-m9"),
        ({"policy": "three-augmnt"}, r"unknown policy 'three-augmnt': did you mean 'three-augment'\?"),
        (
            {"policy": "autoaugment"},
            r"unknown policy 'autoaugment': .*expected .*'original', 'originalr', 'v0'",
        ),
        ({"policy": "rand-m9-std0.5"}, r"has no option 'std0.5': did you mean 'mstd'\? its options, each with a value"),
        (
            {"policy": "rand-m9-inc"},
            r"policy 'rand-m9-inc' has no option 'inc': .*its options, each with a value",
        ),
        ({"policy": "rand-m9.5"}, r"has no option 'm9.5'"),
        ({"policy": "rand-m9-tsome"}, r"has no option 'tsome'"),
        ({"policy": "v0-m9"}, r"policy 'v0-m9' has no option 'm9'.*its options, each with a value, are mstd"),
        ({"policy": "trivial-wide-m9"}, r"unknown policy 'trivial-wide-m9': did you mean 'trivial-wide'\?"),
    ],
)
def test_refuses_what_is_out_of_range_or_unknown(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Augmentation(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 915), ({"scale": (0.35, 1.0)}, 672), ({"ratio": (0.5, 1.0)}, 1120), ({"scale": (1.0, 1.0)}, 672)],
)
def test_the_smallest_random_crop_has_its_pixels(options: dict[str, Any], expected: int) -> None:
    recipe = Augmentation(**options)
    assert recipe.sufficient_side(224) == recipe.train(224).sufficient_side == expected
    side = math.sqrt(recipe.scale[0] * expected**2 / max(recipe.ratio[1], 1 / recipe.ratio[0]))
    assert side >= 224
    assert Augmentation(crop="padded").train(224).sufficient_side is None


@pytest.mark.parametrize("side", [500, 900])
def test_random_crops_of_a_shrunk_photo_are_those_of_the_whole(side: int) -> None:
    """Sharp ones, the worst there are: 0.3 levels of 255 on average, where twice the size of the crop gives 3."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    recipe, size = Augmentation(), 64
    whole, shrunk = read_image(file), read_image(file, shrink=recipe.sufficient_side(size))
    assert shrunk.size < whole.size
    torch.manual_seed(0)
    found = []
    for _ in range(20):
        top, left, h, w = v2.RandomResizedCrop.get_params(
            torch.empty(3, side, side * 4 // 3), recipe.scale, recipe.ratio
        )
        shares = left / whole.width, top / side, (left + w) / whole.width, (top + h) / side
        boxes = [[x * y for x, y in zip(shares, image.size * 2, strict=True)] for image in (whole, shrunk)]
        ours, theirs = (
            np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)).astype(int)
            for image, box in zip((whole, shrunk), boxes, strict=True)
        )
        found.append(np.abs(ours - theirs))
    assert np.mean(found) < 0.7
    assert np.percentile(found, 99) <= 4


@pytest.mark.parametrize(
    "options", [{}, {"crop_pct": 1.0}, {"interpolation": "bilinear"}, {"interpolation": "nearest"}]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_photo_is_read_from_what_the_data_says_as_in_evaluation(options: dict[str, Any], channels: int) -> None:
    recipe = Augmentation(**options)
    said = Preprocessing.of(json.loads(json.dumps(recipe.evaluate(32, channels).as_dict())))
    for kind, size in (("JPEG", (300, 200)), ("PNG", (20, 45)), ("JPEG", (32, 32))):
        file = io.BytesIO()
        photo(*size).save(file, kind)
        expected = recipe.evaluate(32)(read_image(file, "L" if channels == 1 else "RGB"))
        assert torch.equal(said(read_image(file, said.mode)), expected)


def test_preprocessing_is_complete() -> None:
    assert Augmentation(crop_pct=0.9, interpolation="bilinear").evaluate(224).as_dict() == {
        "channels": 3,
        "color": "RGB",
        "resize": 248,
        "interpolation": "bilinear",
        "antialias": True,
        "longer_side": "int(resize * longer / shorter)",
        "crop": [224, 224],
        "crop_from": "round((side - crop) / 2)",
        "upright": "turned as its EXIF says",
        "transparent": "on white",
        "scale": "1/255, to float32 0..1",
        "layout": "NCHW",
    }
