import random

from PIL import ImageFilter, ImageOps
import torch
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2
from toys import both, photo, seed_all

from lit_distill.datamodules import Augmentation

BICUBIC = InterpolationMode.BICUBIC


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
