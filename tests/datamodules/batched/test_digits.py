import pytest
from scipy.stats import ks_2samp
from sklearn.datasets import load_digits
import torch

from lit_distill.datamodules.batched import digits as batched_digits
from lit_distill.datamodules.batched.digits import move_digits, transform_digits
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.digits import _Affine


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.tensor(load_digits().images[:300] / 16, dtype=torch.float32)[:, None]


def test_equals_the_transform_of_one_digit(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    single = _Affine()
    numbers = torch.rand(len(images), 5, generator=torch.Generator().manual_seed(1))
    numbers[:4] = torch.tensor([[0.0] * 5, [1.0] * 5, [0.5] * 5, [0.5, 0.0, 1.0, 0.5, 0.5]])
    expected = []
    for image, drawn in zip(images, numbers, strict=True):
        monkeypatch.setattr(torch, "rand", lambda count, drawn=drawn: drawn)
        expected.append(single(image))
    parameters = torch.addcmul(single.least, numbers, single.spread)
    result = transform_digits(images, parameters.double())
    assert (result - torch.stack(expected)).abs().max() < 1e-6
    assert result.dtype == torch.float32


def test_rows_do_not_depend_on_their_batch(images: torch.Tensor) -> None:
    draws = Draws(5, torch.full((300,), 3), torch.arange(300))
    together = move_digits(images, draws)
    for rows in (torch.tensor([7]), torch.tensor([250, 3, 7]), torch.arange(299, -1, -1)):
        assert torch.equal(move_digits(images[rows], draws.rows(rows)), together[rows])


def test_never_waits_for_the_device() -> None:
    # A meta tensor has no values: reading one, as a wait for a GPU would be, raises.
    images = torch.empty(40, 1, 8, 8, device="meta")
    assert move_digits(images, Draws(5, torch.zeros(40, dtype=torch.int64), torch.arange(40))).shape == images.shape


def test_draws_the_parameters_of_single_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20,000 draws a side notice a shift by 2 % of the range in 99 % of cases.
    recorded = []
    monkeypatch.setattr(batched_digits, "transform_digits", lambda images, parameters: recorded.append(parameters))
    move_digits(torch.zeros(1), Draws(1, torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000)))
    single = _Affine()
    torch.manual_seed(0)
    expected = torch.addcmul(single.least, torch.rand(20_000, 5), single.spread)
    for column in range(5):
        assert ks_2samp(recorded[0][:, column], expected[:, column]).pvalue > 1e-3
