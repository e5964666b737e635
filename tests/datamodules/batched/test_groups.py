import pytest
import torch
from torch import Tensor

from lit_distill.datamodules.batched.groups import by_group


def grown(images: Tensor, rows: Tensor) -> Tensor:
    return images + 10 * rows.view(-1, 1, 1, 1)


@pytest.mark.parametrize("choice", [[0, 1, 2, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [2, 0, 2, 2, 0]])
def test_each_row_gets_the_function_of_its_group(choice: list[int]) -> None:
    images = torch.arange(5).view(5, 1, 1, 1)
    result = by_group(images, torch.tensor(choice), [None, grown, lambda images, rows: -images])
    expected = [{0: row, 1: row + 10 * row, 2: -row}[group] for row, group in enumerate(choice)]
    assert result.flatten().tolist() == expected
    assert images.flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_function_may_change_the_size() -> None:
    images = torch.zeros(3, 1, 4, 4)
    parts = [lambda images, rows: images[:, :, :2, :2], lambda images, rows: images[:, :, 2:, 2:]]
    assert by_group(images, torch.tensor([0, 1, 0]), parts).shape == (3, 1, 2, 2)
    assert by_group(images[:0], torch.tensor([], dtype=torch.int64), parts).shape == (0, 1, 2, 2)
