import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp
import torch
from torch import Tensor

from lit_distill.datamodules.augmentation import _Erasing
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.batched.erasing import Erasing
from lit_distill.keys import seeded


def made_draws(count: int, view: int = 0) -> Draws:
    return Draws(9, torch.full((count,), view), torch.arange(count))


def single_boxes(count: int, height: int, width: int) -> Tensor:
    """Return ``(top, left, height, width)`` of what timm erases, none as zeros, and record nothing else."""
    erase = _Erasing(0.6).erase
    boxes = []
    with seeded(4):
        for _ in range(count):
            filled = ~erase(torch.full((1, height, width), torch.nan))[0].isnan()
            rows, columns = filled.any(1).nonzero()[:, 0].tolist(), filled.any(0).nonzero()[:, 0].tolist()
            boxes.append((rows[0], columns[0], len(rows), len(columns)) if rows else (0, 0, 0, 0))
    return torch.tensor(boxes)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (10, 24)])
def test_erases_the_rectangles_that_timm_does(height: int, width: int) -> None:
    # 4,000 draws of timm's against 40,000: a shift of a parameter by 4 % of its range is noticed in 99 % of cases.
    expected = single_boxes(4000, height, width)
    _, found = Erasing(0.6).boxes(made_draws(40_000), height, width)
    erased = found[(found[:, 2:] > 0).all(1)]
    expected_count = int((expected[:, 2] > 0).sum())
    table = [[len(erased), 40_000 - len(erased)], [expected_count, 4000 - expected_count]]
    assert chi2_contingency(table).pvalue > 1e-3
    expected = expected[expected[:, 2] > 0]
    for column in range(4):
        assert ks_2samp(erased[:, column], expected[:, column]).pvalue > 1e-3
    assert ks_2samp(erased[:, 2] * erased[:, 3], expected[:, 2] * expected[:, 3]).pvalue > 1e-3
    assert (found[:, 0] + found[:, 2] <= height).all()
    assert (found[:, 1] + found[:, 3] <= width).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_fills_with_the_noise_that_timm_does(channels: int) -> None:
    # Some 70,000 pixels a channel: a shift of the mean by 1.5 grey levels is noticed in 99 % of cases.
    empty = torch.zeros(1000, channels, 20, 20, dtype=torch.uint8)
    draws = made_draws(1000)
    rows, boxes = Erasing(1.0).boxes(draws, 20, 20)
    noise = [
        image[:, top : top + height, left : left + width].flatten(1)
        for image, (top, left, height, width) in zip(Erasing(1.0)(empty, draws)[rows], boxes.tolist(), strict=True)
    ]
    single = _Erasing(1.0)
    single.erase = torch.randn_like  # the whole image
    with seeded(2):
        expected = torch.stack([single(image) for image in torch.zeros(200, channels, 20, 20, dtype=torch.uint8)])
    for channel in range(channels):
        levels = torch.cat([part[channel] for part in noise])
        counts = [torch.bincount(part.flatten().long(), minlength=256) for part in (levels, expected[:, channel])]
        assert chi2_contingency(np.stack(counts)).pvalue > 1e-3
    if channels == 3:
        pixels = torch.cat(noise, dim=1).double()
        assert torch.corrcoef(pixels).fill_diagonal_(0).abs().max() < 4.5 / pixels.shape[1] ** 0.5


def test_leaves_other_pixels_alone() -> None:
    images = torch.randint(0, 256, (50, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    draws = made_draws(50)
    rows, boxes = Erasing(0.5).boxes(draws, 12, 12)
    assert 10 < len(rows) < 40
    erased = Erasing(0.5)(images, draws)
    assert torch.equal(images, before)
    for row, (top, left, height, width) in zip(rows.tolist(), boxes.tolist(), strict=True):
        assert not torch.equal(erased[row], images[row])
        erased[row, :, top : top + height, left : left + width] = images[
            row, :, top : top + height, left : left + width
        ]
    assert torch.equal(erased, images)


def test_rows_do_not_depend_on_their_batch() -> None:
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    draws = made_draws(40)
    together = Erasing(0.5)(images, draws)
    for rows in (torch.tensor([7]), torch.tensor([30, 3, 7]), torch.arange(39, -1, -1)):
        assert torch.equal(Erasing(0.5)(images[rows], draws.rows(rows)), together[rows])
    assert not torch.equal(Erasing(0.5)(images, made_draws(40, view=1)), together)


def test_never_waits_for_the_device() -> None:
    # A meta tensor has no values: reading one, as a wait for a GPU would be, raises.
    images = torch.empty(40, 3, 16, 16, dtype=torch.uint8, device="meta")
    assert Erasing(0.5)(images, made_draws(40)).shape == images.shape


def test_edges() -> None:
    for shape in [(5, 1, 1, 1), (5, 3, 1, 1), (0, 3, 8, 8)]:
        images = torch.zeros(shape, dtype=torch.uint8)
        assert Erasing(1.0)(images, made_draws(len(images))).shape == shape
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    assert torch.equal(Erasing(0.0)(images, made_draws(5)), images)
