"""Exact: equal to timm's and torchvision's functions on PIL images in every pixel."""

from typing import Any

from PIL import Image
import pytest
from shapes import images_of, pictures
from timm.data import auto_augment
import torch
from torchvision.transforms import InterpolationMode, v2

from lit_distill.datamodules.batched.operations import TIMM, TORCHVISION, Layer, Operations

INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]
FILL = (124, 116, 104)

# Arguments of timm's functions, where they have one.
NONE = [0.0]
FACTORS = [0.1, 0.64, 1.0, 1.9, 3.7]
SHEARS = [-0.9, -0.27, 0.0, 0.135, 0.3]
SHIFTS = [-32.0, -4.05, -1.0, 0.0, 0.5, 2.99, 30.0]
PARTS = [-0.45, -0.1, 0.0, 0.405, 1.3]
LEVELS: dict[str, list[float]] = {
    **dict.fromkeys(["auto_contrast", "equalize", "invert"], NONE),
    **dict.fromkeys(["color", "contrast", "brightness", "sharpness"], FACTORS),
    "desaturate": [-0.1, 0.0, 0.5, 0.77, 1.0],
    "posterize": [1, 2, 4, 7, 8],
    "solarize": [0, 51, 128, 230, 256],
    "solarize_add": [0, 33, 99, 110, 128],
    "gaussian_blur": [0.1, 0.29, 1.0, 1.4, 2.0],
    "rotate": [-90.0, -27.3, 0.0, 13.5, 30.0],
    **dict.fromkeys(["shear_x", "shear_y"], SHEARS),
    **dict.fromkeys(["translate_x_abs", "translate_y_abs"], SHIFTS),
    **dict.fromkeys(["translate_x_rel", "translate_y_rel"], PARTS),
}
MAGNITUDES = [-0.99, -0.033, 0.0, 0.5, 0.9]
OF_TORCHVISION = {
    **dict.fromkeys(TORCHVISION, MAGNITUDES),
    **dict.fromkeys(["TranslateX", "TranslateY"], SHIFTS),
    "Rotate": [-135.0, -90.0, 0.0, 4.5, 40.5],
    "Posterize": [2, 3, 5, 7, 8],
    "Solarize": [0.0, 0.3, 0.5, 0.9, 1.0],
}


def applied(forms: dict[str, Any], levels: dict[str, list[float]], image: Image.Image, interpolation: Any) -> Any:
    """Return the names and levels, in a mixed order, and the batch in which each is applied to the image."""
    cases = [(name, level) for name in levels for level in levels[name]]
    cases = [cases[place] for place in torch.randperm(len(cases), generator=torch.Generator().manual_seed(0)).tolist()]
    names = list(levels)
    apply = Operations([forms[name] for name in names], interpolation, FILL[: len(image.getbands())])
    operations = torch.tensor([names.index(name) for name, _ in cases])
    values = torch.tensor([level for _, level in cases], dtype=torch.float64)
    return cases, apply(images_of([image] * len(cases)), Layer(operations, values))


def of_size(width: int, height: int) -> list[Any]:
    return [picture for picture in pictures([(width, height)]) if picture.name in ("noise", "shape")]


def test_every_function_of_timm_has_a_form() -> None:
    names = {function.__name__ for function in auto_augment.NAME_TO_OP.values()}
    assert names == TIMM.keys() == LEVELS.keys() | {"gaussian_blur_rand"}
    assert TIMM["gaussian_blur_rand"] == TIMM["gaussian_blur"]
    assert set(v2.TrivialAugmentWide._AUGMENTATION_SPACE) | {"Invert"} == set(TORCHVISION)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("picture", [*of_size(13, 9), *of_size(32, 32), *of_size(1, 1)], ids=str)
def test_timms_pixels(picture: Any, interpolation: str) -> None:
    cases, result = applied(TIMM, LEVELS, picture.image, interpolation)
    fill = FILL if picture.image.mode == "RGB" else FILL[0]
    for row, (name, level) in enumerate(cases):
        arguments = [] if LEVELS[name] is NONE else [level]
        resample = Image.Resampling[interpolation.upper()]
        expected = getattr(auto_augment, name)(picture.image, *arguments, fillcolor=fill, resample=resample)
        assert torch.equal(result[row], images_of([expected])[0]), (name, level)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("picture", [*of_size(13, 9), *of_size(32, 32), *of_size(1, 1)], ids=str)
def test_torchvisions_pixels(picture: Any, interpolation: str) -> None:
    cases, result = applied(TORCHVISION, OF_TORCHVISION, picture.image, interpolation)
    fill = list(FILL[: len(picture.image.getbands())])
    policy = v2.TrivialAugmentWide(interpolation=InterpolationMode(interpolation), fill=fill)
    for row, (name, level) in enumerate(cases):
        expected = policy._apply_image_or_video_transform(
            picture.image, name, level, interpolation=policy.interpolation, fill=policy._fill
        )
        assert torch.equal(result[row], images_of([expected])[0]), (name, level)


def test_no_operation_leaves_the_image() -> None:
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    apply = Operations(list(TIMM.values()), "bicubic", FILL)
    for operations in ([-1, -1, -1], [-1, 2, -1]):
        result = apply(images, Layer(torch.tensor(operations), torch.zeros(3, dtype=torch.float64)))
        assert [torch.equal(*pair) for pair in zip(result, images, strict=True)] == [n < 0 for n in operations]
