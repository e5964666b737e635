import timm
from torch import nn
from torchvision.models import squeezenet1_0

from lit_distill import FrozenTeacher
from lit_distill.models.classes import count_classes


def test_class_counts_are_read_where_they_can_be() -> None:
    assert count_classes(nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 5))) == 5
    assert count_classes(timm.create_model("resnet10t", num_classes=7)) == 7
    assert count_classes(nn.Conv2d(3, 4, 1)) is None
    assert FrozenTeacher(squeezenet1_0(num_classes=4)).num_classes == 4
