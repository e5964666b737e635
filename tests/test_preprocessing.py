import numpy as np
from PIL import Image
import pytest
from torchvision.transforms import v2

from lit_distill.preprocessing import Preprocessing, ShorterSide


@pytest.mark.parametrize(("width", "height"), [(1, 8000), (8000, 1), (3, 500), (7, 301), (301, 7), (2, 333)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_of_a_strip_only_the_middle_is_enlarged_to_the_same_pixels(width: int, height: int, interpolation: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    preprocessing = Preprocessing(9, (8, 8), interpolation)
    resized = preprocessing.resized(image)
    assert min(resized.size) == 9
    assert max(resized.size) <= 16 * 9 + 4  # of up to 72,000
    whole = v2.functional.resize(image, [9], v2.InterpolationMode(interpolation))
    middle = np.asarray(v2.functional.center_crop(whole, [8, 8])).transpose(2, 0, 1)
    assert np.abs(preprocessing(image).numpy().astype(int) - middle).max() <= 1


def test_ordinary_photos_are_resized_as_torchvision_does_it() -> None:
    for size in ((40, 30), (30, 480), (31, 30), (500, 32)):
        image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        whole = v2.functional.resize(image, [20], v2.InterpolationMode.BICUBIC)
        assert np.array_equal(np.asarray(ShorterSide(20, "bicubic")(image)), np.asarray(whole))
