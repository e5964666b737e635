"""Which data sets have their images as one tensor."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from lit_distill.datamodules import DigitsDataModule
from lit_distill.datamodules.stacked import StackedImages, stack


def digits(transform: nn.Module | None = None) -> Dataset:
    data = DigitsDataModule(train_transform=transform)
    data.setup()
    return data.train_set


def test_a_data_set_says_whether_its_images_are_one_tensor() -> None:
    stacked = stack(digits(nn.Identity()))
    assert isinstance(stacked, StackedImages)
    assert stacked.images.shape == (1437, 1, 8, 8)
    assert stacked.transform is None
    assert stack(digits(nn.Flatten())) == "the transform Flatten has no form for batches"
    assert stack(TensorDataset(torch.zeros(2))) == "TensorDataset gives them so"


@pytest.mark.parametrize("rows", [[4, 2, 9], range(3, 6)])
def test_rows_of_a_subset_of_a_subset_are_places_in_the_whole(rows) -> None:
    whole = digits()
    outer = [2, 0]
    stacked = stack(Subset(Subset(whole, rows), outer))
    assert isinstance(stacked, StackedImages)
    assert stacked.place is not None
    assert stacked.place.tolist() == [rows[row] for row in outer]
    assert stacked.targets.tolist() == [whole[rows[row]][1] for row in outer]
    assert stacked.images.shape[0] == 1437  # not copied
