import pytest
import torch
from torch import nn

from lit_distill.models.finite import not_finite, refuse_not_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_lost_is_named(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    refuse_not_finite(network)
    network[1].weight.data[1] = value
    assert not_finite(network) == "1.weight"
    with pytest.raises(ValueError, match=r"the student's weights are not finite \(1\.weight\): its run has diverged"):
        refuse_not_finite(network)


def test_a_buffer_may_hold_infinities_and_no_nan() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    assert not_finite(network) is None
    network.mask[0] = float("nan")
    assert not_finite(network) == "mask"
