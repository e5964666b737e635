"""Everything here is equal to Pillow to the last bit."""

from itertools import product

from PIL import Image
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_distill.datamodules.batched import resize
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.batched.resize import ShorterSide, resized_crop, windows
from lit_distill.preprocessing import ShorterSide as PillowShorterSide
from lit_distill.preprocessing import pixels_of

INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]


def made(count: int, channels: int, height: int, width: int) -> Tensor:
    """Return noise, a constant and a drawn shape in turn."""
    images = torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(1))
    images[1::3] = 201
    images[2::3] = 0
    images[2::3, :, height // 3 : height // 2 + 1, width // 4 : 3 * width // 4 + 1] = 255
    return images.to(torch.uint8)


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kept_weights", [True, False])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, (1, 1)), (1, 1, (8, 8)), (8, 8, (8, 8)), (32, 32, (32, 32)), (9, 14, (7, 11)), (40, 23, (6, 30))],
)
def test_equals_pillow(height, width, size, interpolation, kept_weights, monkeypatch) -> None:
    monkeypatch.setattr(resize, "_SMALL", 10**9 if kept_weights else 0)
    lengths = list(product(range(1, height + 1), range(1, width + 1)))[:: max(1, height * width // 120)]
    boxes = [(0, 0, height, width)]
    for tall, wide in lengths:
        boxes.append(((7 * tall + wide) % (height - tall + 1), (5 * wide + tall) % (width - wide + 1), tall, wide))
    for channels in (1, 3):
        images = made(len(boxes), channels, height, width)
        result = resized_crop(images, torch.tensor(boxes), size, interpolation)
        expected = [
            pixels_of(F.resized_crop(as_pillow(image), *box, list(size), InterpolationMode(interpolation)))
            for image, box in zip(images, boxes, strict=True)
        ]
        assert torch.equal(result, torch.stack(expected))
        assert result.is_contiguous()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (20, 30), (30, 20), (5, 3), (1, 1), (2, 200), (200, 2), (3, 211)]
)
def test_the_shorter_side_is_that_of_single_images(height: int, width: int, interpolation: str) -> None:
    images = made(3, 3, height, width)
    result = ShorterSide(8, interpolation)(images, Draws(0, torch.arange(3), torch.arange(3)))
    single = PillowShorterSide(8, interpolation)
    assert torch.equal(result, torch.stack([pixels_of(single(as_pillow(image))) for image in images]))


def test_windows_hold_the_pixels_inside_the_image() -> None:
    images = made(6, 3, 9, 7)
    tops, lefts = torch.tensor([0, 1, 5, 0, 4, 2]), torch.tensor([0, 3, 2, 3, 1, 0])
    for height, width in [(4, 4), (9, 7)]:
        cut = windows(images, tops, lefts, height, width)
        for row, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
            expected = images[row, :, top : top + height, left : left + width]
            assert torch.equal(cut[row, :, : expected.shape[1], : expected.shape[2]], expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_never_waits_for_the_device(interpolation: str) -> None:
    # A meta tensor has no values: reading one, as a wait for a GPU would be, raises.
    images = torch.empty(3, 3, 20, 20, dtype=torch.uint8, device="meta")
    boxes = torch.tensor([[0, 0, 20, 20], [3, 4, 5, 6], [0, 2, 20, 3]])
    assert resized_crop(images, boxes, (8, 8), interpolation).shape == (3, 3, 8, 8)


def test_an_empty_batch_stays_empty() -> None:
    for interpolation in INTERPOLATIONS:
        images, boxes = torch.zeros(0, 3, 9, 9, dtype=torch.uint8), torch.zeros(0, 4, dtype=torch.int64)
        assert resized_crop(images, boxes, (4, 5), interpolation).shape == (0, 3, 4, 5)
