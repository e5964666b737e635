import timm
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision.models import squeezenet1_0

from lit_distill import FrozenTeacher
from lit_distill.models.classes import count_classes, count_targets


def test_class_counts_are_read_where_they_can_be() -> None:
    assert count_classes(nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 5))) == 5
    assert count_classes(timm.create_model("resnet10t", num_classes=7)) == 7
    assert count_classes(nn.Conv2d(3, 4, 1)) is None
    assert FrozenTeacher(squeezenet1_0(num_classes=4)).num_classes == 4


class Labelled(list[int]):
    """A data set of which nobody may read a sample."""

    def __init__(self, targets: object, rows: object = None) -> None:
        super().__init__(range(len(targets)))  # type: ignore[arg-type]
        self.targets, self.rows = targets, rows

    def __getitem__(self, index: object) -> int:  # type: ignore[override]
        raise AssertionError("was read")


def test_targets_are_counted_without_reading_a_sample() -> None:
    listed, tensor = Labelled([0, 2, 2, 1]), Labelled(torch.tensor([1, 1, -1, 2], dtype=torch.int8))
    assert count_targets(listed, 4) == [1, 1, 2, 0]
    assert count_targets(tensor, 3) == [0, 2, 1]
    assert count_targets(Labelled([0, 2, 2, 1], rows=torch.tensor([1, 3])), 3) == [0, 1, 1]
    assert count_targets(Subset(ConcatDataset([listed, tensor]), [0, 1, 5]), 3) == [1, 1, 1]  # type: ignore[arg-type,list-item]


def test_a_data_set_that_does_not_tell_is_not_read() -> None:
    for dataset in ([(0, 1)], None, Labelled(torch.rand(4, 3)), ConcatDataset([Labelled([0]), [1]])):  # type: ignore[list-item]
        assert count_targets(dataset, 3) is None
