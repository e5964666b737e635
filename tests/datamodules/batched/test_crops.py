from PIL import Image
import pytest
from scipy.stats import chisquare, ks_2samp
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_distill.datamodules.batched.crops import CenterCrop, HorizontalFlip, PaddedCrop, RandomResizedCrop
from lit_distill.datamodules.batched.draws import BatchTransform, Draws, chain
from lit_distill.preprocessing import pixels_of


def made_draws(count: int, view: int = 0) -> Draws:
    return Draws(9, torch.full((count,), view), torch.arange(count))


def made_images(count: int, channels: int, height: int, width: int) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=draws)


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize(
    ("height", "width", "size", "padding"),
    [(32, 32, 32, 4), (8, 8, 8, 1), (1, 1, 1, 0), (1, 1, 1, 2), (6, 9, 6, 2), (9, 6, 6, 0), (4, 4, 4, 7)],
)
def test_padded_crops_are_those_of_torchvision(height: int, width: int, size: int, padding: int, mode: str) -> None:
    # Each image of the batch is one of the crops that there are, and each of these comes as often as the others.
    for channels in (1, 3):
        image = made_images(1, channels, height, width)
        padded = pixels_of(F.pad(as_pillow(image[0]), [padding], padding_mode=mode)) if padding else image[0]
        tops, lefts = (side + 2 * padding - size + 1 for side in (height, width))
        expected = [padded[:, top : top + size, left : left + size] for top in range(tops) for left in range(lefts)]
        each = 100 if tops * lefts < 10 else 3
        count = each * len(expected)
        crops = PaddedCrop(size, padding, mode)(image.expand(count, -1, -1, -1), made_draws(count))
        matches = (crops[:, None] == torch.stack(expected)).flatten(2).all(2)
        assert matches.any(1).all()
        if height == width == 8:
            assert chisquare(matches.sum(0)).pvalue > 1e-3


def test_padded_crops_refuse_what_is_too_small() -> None:
    with pytest.raises(ValueError, match="must have at least 9 px, got 8 x 8"):
        PaddedCrop(9, 0)(made_images(1, 3, 8, 8), made_draws(1))
    with pytest.raises(ValueError, match="must have at least 9 px, got 8 x 8"):
        CenterCrop(9)(made_images(1, 3, 8, 8), made_draws(1))


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (40, 60, (0.08, 1.0), (3 / 4, 4 / 3)),
        (20, 60, (0.9, 1.0), (3 / 4, 4 / 3)),  # nothing fits: the middle
        (60, 20, (0.9, 1.0), (3 / 4, 4 / 3)),
        (30, 30, (1.0, 1.0), (1.0, 1.0)),
        (1, 1, (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_boxes_are_distributed_like_torchvisions(height: int, width: int, scale, ratio) -> None:
    # 4,000 draws of torchvision's against 20,000: a shift by 4 % of the range is noticed in 95 % of cases.
    single, image = v2.RandomResizedCrop(32, scale, ratio), Image.new("L", (width, height))
    torch.manual_seed(0)
    parameters = [single.make_params([image]) for _ in range(4000)]
    expected = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in parameters])
    boxes = RandomResizedCrop(32, scale, ratio).boxes(made_draws(20_000), height, width)
    for column in range(4):
        assert ks_2samp(boxes[:, column], expected[:, column]).pvalue > 1e-3
    assert ks_2samp(boxes[:, 2] * boxes[:, 3], expected[:, 2] * expected[:, 3]).pvalue > 1e-3
    assert ks_2samp(boxes[:, 2] / boxes[:, 3], expected[:, 2] / expected[:, 3]).pvalue > 1e-3


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_resized_crops_are_those_of_the_boxes(interpolation: str) -> None:
    for channels in (1, 3):
        images, draws = made_images(50, channels, 24, 32), made_draws(50)
        crop = RandomResizedCrop(16, interpolation=interpolation)
        boxes = crop.boxes(draws, 24, 32).tolist()
        mode = InterpolationMode(interpolation)
        expected = [
            pixels_of(F.resized_crop(as_pillow(image), *box, [16, 16], mode))
            for image, box in zip(images, boxes, strict=True)
        ]
        assert torch.equal(crop(images, draws), torch.stack(expected))


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 8), (9, 8, 8), (8, 11, 8), (13, 13, 8), (1, 1, 1)])
def test_centre_crops_are_torchvisions(height: int, width: int, size: int) -> None:
    images = made_images(3, 3, height, width)
    expected = [pixels_of(v2.CenterCrop(size)(as_pillow(image))) for image in images]
    assert torch.equal(CenterCrop(size)(images, made_draws(3)), torch.stack(expected))


def test_flips_as_often_as_asked() -> None:
    images = made_images(1, 3, 4, 5).expand(10_000, -1, -1, -1)
    for probability in (0.0, 0.3, 1.0):
        result = HorizontalFlip(probability)(images, made_draws(10_000))
        flipped = (result == images.flip(3)).flatten(1).all(1)
        assert ((result == images).flatten(1).all(1) ^ flipped).all()
        assert abs(flipped.double().mean() - probability) <= 4.5 * (probability * (1 - probability) / 10_000) ** 0.5


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_crop_flips_as_the_flip_after_it_does(mode: str) -> None:
    images, draws = made_images(100, 3, 8, 11), made_draws(100)
    for hflip in (0.0, 0.4, 1.0):
        in_turn = chain([PaddedCrop(8, 2, mode), HorizontalFlip(hflip)])
        assert torch.equal(PaddedCrop(8, 2, mode, hflip)(images, draws), in_turn(images, draws))


STEPS: dict[str, BatchTransform] = {
    "padded": PaddedCrop(8, 2),
    "simple": PaddedCrop(8, 4, "reflect"),
    "resized": RandomResizedCrop(8),
    "flip": HorizontalFlip(0.5),
    "flipped": PaddedCrop(8, 1, hflip=0.5),
    "both": chain([PaddedCrop(8, 1), HorizontalFlip(0.5)]),
}


@pytest.mark.parametrize("name", STEPS)
def test_rows_do_not_depend_on_their_batch(name: str) -> None:
    images, draws, step = made_images(40, 3, 8, 8), made_draws(40), STEPS[name]
    before = images.clone()
    together = step(images, draws)
    assert torch.equal(images, before)
    for rows in (torch.tensor([7]), torch.tensor([30, 3, 7]), torch.arange(39, -1, -1)):
        assert torch.equal(step(images[rows], draws.rows(rows)), together[rows])
    assert not torch.equal(step(images, made_draws(40, view=1)), together)
    assert step(images[:0], draws.rows(torch.arange(0))).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", STEPS)
def test_never_waits_for_the_device(name: str) -> None:
    # A meta tensor has no values: reading one, as a wait for a GPU would be, raises.
    images = torch.empty(40, 3, 8, 8, dtype=torch.uint8, device="meta")
    assert STEPS[name](images, made_draws(40)).shape == images.shape


@pytest.mark.parametrize("name", STEPS)
def test_memory_formats_do_not_matter(name: str) -> None:
    images, draws = made_images(20, 3, 8, 8), made_draws(20)
    other = images.to(memory_format=torch.channels_last)
    assert torch.equal(STEPS[name](other, draws), STEPS[name](images, draws))
    everything = made_images(20, 3, 8, 8)[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(STEPS[name](everything, draws), STEPS[name](everything.contiguous(), draws))


def test_the_crop_and_the_flip_are_independent() -> None:
    draws = made_draws(20_000)
    left = draws.uniform(1, 2)[:, 1]
    assert torch.corrcoef(torch.stack([left, draws.uniform(2, 1)[:, 0]]))[0, 1].abs() < 4.5 / 20_000**0.5
