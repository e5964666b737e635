import numpy as np
import pytest
import torch
from toys import MIXED, mixed_files, same_image

from lit_distill.datamodules.scan import read_all


def test_a_buffer_larger_than_the_budget_is_dropped_and_all_else_is_told(tmp_path) -> None:
    data = mixed_files(tmp_path)
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
    data = mixed_files(tmp_path)
    reading = read_all(data)
    for row in range(len(MIXED)):
        pixels = np.asarray(data.image(row)).reshape(-1, 3) / 255
        expected = np.stack([pixels.mean(0), (pixels**2).mean(0)])
        np.testing.assert_allclose(reading.moments[row].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_told_with_their_row_and_reason(tmp_path, workers: int) -> None:
    data = mixed_files(tmp_path)
    (tmp_path / MIXED[2]).write_bytes(b"")
    (tmp_path / MIXED[5]).write_bytes((tmp_path / MIXED[5]).read_bytes()[:200])
    (tmp_path / MIXED[6]).unlink()
    reading = read_all(data, budget=10**9, workers=workers)
    assert list(reading.damaged) == [2, 5, 6]
    assert "cannot identify image file" in reading.damaged[2]
    assert reading.sizes[[2, 5, 6]].sum() == 0
    assert reading.moments[5].isnan().all()
    images = reading.decoded
    assert images is not None
    assert same_image(images[7], data.image(7))
    with pytest.raises(ValueError, match=r"image 5 could not be read"):
        images[5]
