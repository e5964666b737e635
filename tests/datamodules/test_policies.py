import random
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
import torch
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from lit_distill.datamodules import Augmentation

BICUBIC = InterpolationMode.BICUBIC


def photo(width: int = 90, height: int = 70, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, so that every operation changes something."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BILINEAR)
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)


def both(ours: Any, theirs: Any, image: Image.Image, seed: int) -> tuple[Any, Any]:
    results = []
    for transform in (ours, theirs):
        seed_all(seed)
        results.append(transform(image.copy()))
    return results[0], results[1]


def test_three_augment_is_one_of_grey_solarized_and_blurred() -> None:
    """`main.py` of DeiT III: Grayscale(3), ImageOps.solarize(image), GaussianBlur(radius=uniform(0.1, 2))."""
    ours, image = Augmentation(crop="none", hflip=0.0, policy="three-augment", crop_pct=1.0).train(70), photo(70, 70)
    grey, solarized = (v1.PILToTensor()(v) for v in (v1.Grayscale(3)(image), ImageOps.solarize(image)))
    counts, radii = [0, 0, 0], []
    for seed in range(90):
        seed_all(seed)
        pixels = ours(image)
        if torch.equal(pixels, grey) or torch.equal(pixels, solarized):
            counts[int(torch.equal(pixels, solarized))] += 1
            continue
        random.seed(seed)
        random.choice([0, 1, 2])
        radii.append(random.uniform(0.1, 2.0))
        assert torch.equal(pixels, v1.PILToTensor()(image.filter(ImageFilter.GaussianBlur(radii[-1]))))
        counts[2] += 1
    assert min(counts) > 20
    assert min(radii) < 0.5 < 1.6 < max(radii)


def test_posterizing_to_no_bits_is_black_whatever_pillow_says() -> None:
    transform = Augmentation(policy="rand-m10-n1-p1.0-inc1").train(24)
    black = 0
    for seed in range(200):
        seed_all(seed)
        black += int(transform(photo()).max() == 0)
    assert 3 < black < 40  # of 15 operations one


def test_trivial_wide_is_torchvisions() -> None:
    ours = Augmentation(crop="none", hflip=0.0, policy="trivial-wide", crop_pct=1.0).train(40)
    theirs = v2.Compose([v2.TrivialAugmentWide(interpolation=BICUBIC), v2.PILToTensor()])
    for seed in range(40):
        assert torch.equal(*both(ours, theirs, photo(40, 40), seed))
