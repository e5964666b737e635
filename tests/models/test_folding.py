from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
import torchvision

from lit_distill.models.folding import Pair, copy_sharing, find_pairs, fold, without_hooks


def unlike_new(network: nn.Module) -> nn.Module:
    """Give BatchNorms statistics and weights as training gives them; new ones hardly do anything."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return network.eval().requires_grad_(False)


class Branches(nn.Module):
    """Whose path depends on the values, which torch.fx cannot trace; the body it can."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.body(image) if image.sum() > 0 else self.body(-image)


class Twice(nn.Module):
    """Uses the convolution's output beside the BatchNorm's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        convolved = self.conv(image)
        return self.norm(convolved) + convolved


def block(conv: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(conv or nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4), nn.ReLU())


def shared() -> nn.Module:
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "timm resnet": (lambda: timm.create_model("resnet10t", num_classes=5), 14, 14),
    "timm regnety": (lambda: timm.create_model("regnety_002", num_classes=5), 44, 44),
    "timm mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 34, 34),
    "timm with same padding": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5), 34, 34),
    "torchvision": (lambda: torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=5), 56, 56),
    "without affine": (lambda: block(norm=nn.BatchNorm2d(4, affine=False)), 1, 1),
    "without bias, groups": (lambda: block(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), 1, 1),
    "cannot be traced": (lambda: Branches(nn.Sequential(block(), nn.Conv2d(4, 2, 1))), 1, 1),
    "used twice": (Twice, 0, 1),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 0, 1),
    "shared": (shared, 0, 2),
    "no statistics": (lambda: block(norm=nn.BatchNorm2d(4, track_running_stats=False)), 0, 1),
    "transposed": (lambda: block(nn.ConvTranspose2d(3, 4, 3)), 0, 1),
}


@pytest.mark.parametrize(("make", "count", "norms"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_folded_network_answers_as_before(make: Callable[[], nn.Module], count: int, norms: int) -> None:
    network, image = unlike_new(make()), torch.rand(2, 3, 64, 64)
    expected = network(image)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pairs, note = find_pairs(network)
    assert (len(pairs), note) == (count, None)
    assert sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()) == norms
    folded = copy_sharing(network)
    fold(folded, pairs)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(folded(image), expected, rtol=0, atol=2e-5 * scale)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_standardised_convolution_is_not_folded() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.conv2d(image, self.weight / self.weight.std())

    assert find_pairs(block(Standardised(3, 4, 3))) == ([], None)
    assert find_pairs(block(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))) == ([], None)


def test_says_what_cannot_be_traced() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, image: Tensor) -> Tensor:
            return self.norm(self.conv(image)) if image.mean() > 0 else image

    pairs, note = find_pairs(nn.Sequential(Chooses(), block()))
    assert pairs == [Pair("1.0", "1.1")]
    assert note is not None
    assert note.startswith("1 of 2 BatchNorms are not folded into convolutions, because torch.fx cannot trace Seq")
    assert "\n" not in note


def test_a_copy_shares_weights_and_hooks() -> None:
    network = block()
    copied, calls = copy_sharing(network), []
    assert copied[0] is not network[0]
    assert copied[0].weight is network[0].weight
    handle = network[0].register_forward_hook(lambda *_: calls.append(1))
    copied(torch.rand(1, 3, 4, 4))
    with without_hooks(network):
        copied(torch.rand(1, 3, 4, 4))
    handle.remove()
    copied(torch.rand(1, 3, 4, 4))
    assert calls == [1]


def test_finding_pairs_draws_and_calls_nothing() -> None:
    class Noisy(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image + torch.rand(1)

    network = nn.Sequential(block(), Noisy())
    network[0].register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    find_pairs(network)
    assert torch.equal(torch.get_rng_state(), before)
