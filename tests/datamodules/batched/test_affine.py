"""Everything here is equal to Pillow to the last bit."""

from collections.abc import Callable, Iterator

from PIL import Image
import pytest
from timm.data import auto_augment as timm_ops
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_distill.datamodules.batched import affine
from lit_distill.preprocessing import pixels_of

INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]
SIZES = [(1, 1), (8, 8), (32, 32), (5, 9), (1, 6)]  # height and width


def sample_images(height: int, width: int, channels: int) -> Iterator[Tensor]:
    """Yield noise, ramps, a constant and a drawn shape, each ``(C, H, W)``."""
    shape = (channels, height, width)
    yield torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    yield torch.arange(channels * height * width).mul(7).remainder(256).to(torch.uint8).view(shape)
    yield torch.full(shape, 201, dtype=torch.uint8)
    drawn = torch.zeros(shape, dtype=torch.uint8)
    drawn[:, height // 3 : height // 2 + 1, width // 4 : 3 * width // 4 + 1] = 255
    yield drawn


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def expected(images: Tensor, apply: Callable[[Image.Image, int], Image.Image]) -> Tensor:
    return torch.stack([pixels_of(apply(as_pillow(image), row)) for row, image in enumerate(images)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_equals_pillow(interpolation: str, height: int, width: int, channels: int) -> None:
    draws = torch.Generator().manual_seed(height * width)
    matrices = torch.randn(60, 6, dtype=torch.float64, generator=draws)
    matrices[:, [2, 5]] *= max(height, width) / 3
    matrices[10:20, [1, 3]] = 0  # scaled
    matrices[20:30, [0, 4]] = 1  # near the image itself
    matrices[20:30, [1, 3]] /= 10
    matrices[30:40] = matrices[30:40].round()  # whole pixels, or half of them
    matrices[40:45, 3:] = torch.tensor([0.0, 1, 1])  # along x alone
    matrices[45:50, :3] = torch.tensor([1.0, 0, -1])  # along y alone
    matrices[50] = torch.tensor([1.0, 0, 0, 0, 1, 0])
    matrices[51] = torch.tensor([1.0, 0, 1e6, 0, 1, 0])
    fill = (11, 22, 33)[:channels]
    mode = Image.Resampling[interpolation.upper()]
    for image in sample_images(height, width, channels):
        images = image.expand(len(matrices), -1, -1, -1)

        def apply(photo: Image.Image, row: int) -> Image.Image:
            color = fill if channels == 3 else fill[0]
            return photo.transform(photo.size, Image.Transform.AFFINE, matrices[row].tolist(), mode, fillcolor=color)

        result = affine.transform(images, matrices, interpolation, fill)
        assert torch.equal(result, expected(images, apply))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_rotation_equals_timm_and_torchvision(interpolation: str, height: int, width: int, channels: int) -> None:
    angles = torch.tensor(
        [0, 90, -90, 180, 270, 360, 1, -1, 30, 29.7, -45, 135, 0.001, 400, -13.5], dtype=torch.float64
    )
    fill = (124, 116, 104)[:channels]
    for image in sample_images(height, width, channels):
        images = image.expand(len(angles), -1, -1, -1)
        result = affine.transform(images, affine.rotate(angles, height, width), interpolation, fill)

        def with_timm(photo: Image.Image, row: int) -> Image.Image:
            color = fill if channels == 3 else fill[0]
            resample = Image.Resampling[interpolation.upper()]
            return timm_ops.rotate(photo, float(angles[row]), fillcolor=color, resample=resample)

        def with_torchvision(photo: Image.Image, row: int) -> Image.Image:
            return F.rotate(photo, float(angles[row]), InterpolationMode(interpolation), fill=list(fill))

        assert torch.equal(result, expected(images, with_timm))
        assert torch.equal(result, expected(images, with_torchvision))


TIMM = {
    "shear_x": affine.shear_x,
    "shear_y": affine.shear_y,
    "translate_x_abs": affine.translate_x,
    "translate_y_abs": affine.translate_y,
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", TIMM)
def test_shears_and_shifts_equal_timms(name: str, interpolation: str) -> None:
    values = torch.tensor([0, 0.3, -0.3, 0.123456789, 1, -2, 6.3, -40], dtype=torch.float64)
    resample = Image.Resampling[interpolation.upper()]
    for height, width in SIZES:
        for image in sample_images(height, width, 3):
            images = image.expand(len(values), -1, -1, -1)

            def apply(photo: Image.Image, row: int) -> Image.Image:
                return getattr(timm_ops, name)(photo, float(values[row]), fillcolor=(1, 2, 3), resample=resample)

            result = affine.transform(images, TIMM[name](values), interpolation, (1, 2, 3))
            assert torch.equal(result, expected(images, apply))


TORCHVISION = {
    "ShearX": affine.torchvision_shear_x,
    "ShearY": affine.torchvision_shear_y,
    "TranslateX": lambda values: affine.translate_x(-values.trunc()),
    "TranslateY": lambda values: affine.translate_y(-values.trunc()),
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", TORCHVISION)
def test_shears_and_shifts_equal_torchvisions(name: str, interpolation: str) -> None:
    largest = 0.99 if name.startswith("Shear") else 32.0
    values = torch.linspace(0, largest, 31).double()
    values = torch.cat([values, -values])
    policy = v2.TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
    for height, width in SIZES:
        for image in sample_images(height, width, 3):
            images = image.expand(len(values), -1, -1, -1)

            def apply(photo: Image.Image, row: int) -> Image.Image:
                mode = InterpolationMode(interpolation)
                return policy._apply_image_or_video_transform(photo, name, float(values[row]), mode, policy._fill)

            result = affine.transform(images, TORCHVISION[name](values), interpolation, (0, 0, 0))
            assert torch.equal(result, expected(images, apply))


def test_rows_do_not_depend_on_their_batch() -> None:
    images = torch.stack(list(sample_images(8, 8, 3)))
    matrices = torch.cat([affine.rotate(torch.tensor([20.0, 90]), 8, 8), affine.shear_x(torch.tensor([0.2, 0]))])
    together = affine.transform(images, matrices, "bicubic", (0, 0, 0))
    alone = [affine.transform(images[[row]], matrices[[row]], "bicubic", (0, 0, 0)) for row in range(4)]
    assert torch.equal(together, torch.cat(alone))
    turned = affine.transform(images.flip(0), matrices.flip(0), "bicubic", (0, 0, 0))
    assert torch.equal(together, turned.flip(0))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_never_waits_for_the_device(interpolation: str) -> None:
    # A meta tensor has no values: reading one, as a wait for a GPU would be, raises.
    images = torch.empty(5, 3, 8, 8, dtype=torch.uint8, device="meta")
    matrices = [affine.rotate(torch.tensor([20.0, 90]), 8, 8), affine.shear_x(torch.tensor([0.2]))]
    matrices += [affine.shear_y(torch.tensor([0.2])), affine.translate_x(torch.tensor([2.0]))]
    assert affine.transform(images, torch.cat(matrices), interpolation, (1, 2, 3)).shape == images.shape


def test_an_empty_batch_stays_empty() -> None:
    images, matrices = torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 6, dtype=torch.float64)
    assert affine.transform(images, matrices, "bicubic", (0, 0, 0)).shape == images.shape
    assert affine.rotate(torch.zeros(0), 8, 8).shape == (0, 6)
