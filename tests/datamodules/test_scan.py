from pathlib import Path

import numpy as np
from PIL import Image
import pytest
import torch
from toys import make_photos

from lit_distill.datamodules.images import Files, ImageFiles
from lit_distill.datamodules.scan import read_all

NAMES = [f"c{i % 3}/{i}.{kind}" for i, kind in enumerate(["png", "jpg", "webp", "bmp"] * 5)]


def photos(root: Path, mode="RGB", shrink: int | None = None) -> ImageFiles:
    for i, name in enumerate(NAMES):
        make_photos(root, [name], size=(20 + i, 50 - i), seed=i)
    return ImageFiles(Files(root, NAMES), [i % 3 for i in range(len(NAMES))], mode=mode, shrink=shrink)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def test_a_buffer_larger_than_the_budget_is_dropped_and_all_else_is_told(tmp_path) -> None:
    data = photos(tmp_path)
    whole = read_all(data, budget=10**9)
    assert whole.decoded is not None
    short = read_all(data, budget=whole.decoded.nbytes - 1)
    none = read_all(data)
    exact = read_all(data, budget=whole.decoded.nbytes)
    assert short.decoded is None
    assert none.decoded is None
    assert exact.decoded is not None
    for reading in (short, none, exact):
        assert torch.equal(reading.sizes, whole.sizes)
        assert torch.equal(reading.moments, whole.moments)


def test_moments_are_those_of_the_pixels(tmp_path) -> None:
    data = photos(tmp_path)
    reading = read_all(data)
    for row in range(len(NAMES)):
        pixels = np.asarray(data.image(row)).reshape(-1, 3) / 255
        expected = np.stack([pixels.mean(0), (pixels**2).mean(0)])
        np.testing.assert_allclose(reading.moments[row].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_told_with_their_row_and_reason(tmp_path, workers: int) -> None:
    data = photos(tmp_path)
    (tmp_path / NAMES[2]).write_bytes(b"")
    (tmp_path / NAMES[5]).write_bytes((tmp_path / NAMES[5]).read_bytes()[:200])
    (tmp_path / NAMES[6]).unlink()
    reading = read_all(data, budget=10**9, workers=workers)
    assert list(reading.damaged) == [2, 5, 6]
    assert "cannot identify image file" in reading.damaged[2]
    assert reading.sizes[[2, 5, 6]].sum() == 0
    assert reading.moments[5].isnan().all()
    images = reading.decoded
    assert images is not None
    assert same(images[7], data.image(7))
    with pytest.raises(ValueError, match=r"image 5 could not be read"):
        images[5]
