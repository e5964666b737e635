"""A network that was put away is the same one afterwards, and takes no memory meanwhile."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_distill.models.put_away import PutAway


def network() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
    net[4].weight = net[3].weight
    return net.to(memory_format=torch.channels_last).eval()


def test_the_network_comes_back_to_the_bit(tmp_path) -> None:
    net, image = network(), torch.randn(2, 3, 3, 3)
    before, strides = net(image), net[0].weight.stride()
    away = PutAway(net, tmp_path)
    assert sum(part.numel() for part in (*net.parameters(), *net.buffers())) == 0
    assert list(tmp_path.iterdir()) == []
    net.to("cpu")
    away.take_back()
    assert torch.equal(net(image), before)
    assert net[0].weight.stride() == strides
    assert net[4].weight is net[3].weight
    assert net.training is False


def test_a_full_disk_leaves_the_network_as_it_was(tmp_path, monkeypatch) -> None:
    net, image = network(), torch.randn(2, 3, 3, 3)
    before = net(image)

    def full(*args: object) -> None:
        raise RuntimeError("write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="the weights were not written to"):
        PutAway(net, tmp_path)
    assert torch.equal(net(image), before)
    with pytest.raises(OSError, match="No such file"):
        PutAway(net, Path(tmp_path, "nowhere"))
