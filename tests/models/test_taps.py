import copy

import pytest
import torch
from torch import nn

from lit_distill.models.taps import check_features, tapped


class Tuple(nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, None]:
        return image + 1, None


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add = Tuple()
        self.idle = nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.add(self.add(image)[0])[0]


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_keeps_the_last_output_of_a_layer_and_leaves_no_hook() -> None:
    network, image = nn.Sequential(Twice(), nn.Linear(2, 2)), torch.zeros(1, 2)
    with tapped(network, ["0.add", "1", "nowhere"]) as features:
        logits = network(image)
    assert features.keys() == {"0.add", "1"}
    assert features["0.add"].tolist() == [[2, 2]]  # the first of the tuple, of the second call
    assert features["1"] is logits
    with pytest.raises(RuntimeError), tapped(network, ["0.add"]):
        network(torch.zeros(1, 3))
    assert hooks(network) == 0


def test_a_copy_does_not_write_into_the_originals_taps() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    copied = copy.deepcopy(network)
    with tapped(network, ["0"]) as features:
        logits = network(torch.ones(1, 2))
        copied(torch.zeros(1, 2))
    assert features["0"] is logits


@pytest.mark.parametrize("in_place", [True, False])
def test_taps_a_compiled_network_at_every_step(in_place: bool) -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    network = plain if in_place else torch.compile(plain, backend="aot_eager", fullgraph=True)
    if in_place:
        plain.compile(backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        network(torch.rand(4, 2))  # as in the sanity check, before the first training step
    for _ in range(3):
        image = torch.rand(4, 2)
        with tapped(network, ["0"]) as features:
            network(image)
        torch.testing.assert_close(features["0"], plain[0](image))


def test_names_the_nearest_layers() -> None:
    network = Twice()
    with pytest.raises(ValueError, match="the student Twice has no layer 'ad'; did you mean 'add' or 'idle'"):
        check_features({}, ["ad"], network, "student")
    with pytest.raises(ValueError, match="the teacher's layer 'idle' gave no tensor: it was not called, or"):
        check_features({}, ["idle"], network, "teacher")
    check_features({"ad": torch.zeros(1)}, ["ad"], network, "student")  # one that the network returns itself
