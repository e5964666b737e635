"""Which parameters decay, and how the optimizer steps."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lit_distill import DistillableViT, LitDistiller
from lit_distill.optimizer import parameter_groups, use_fused_kernel


def vit() -> DistillableViT:
    return DistillableViT(8, 4, 5, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8)


def frozen(network: nn.Module, *kept: str) -> nn.Module:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith(kept))
    return network


def names(network: nn.Module) -> list[tuple[set[str], float | None]]:
    known = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network)
    return [({known[id(p)] for p in group["params"]}, group.get("weight_decay")) for group in groups]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Linear(2, 2, bias=False), [({"weight"}, None)]),
        (nn.LayerNorm(2), [({"weight", "bias"}, 0.0)]),
        (nn.Linear(2, 2), [({"bias"}, 0.0), ({"weight"}, None)]),
        (frozen(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "1.weight"), [({"1.weight"}, None)]),
        (frozen(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "1.weight"), [({"1.weight"}, 0.0)]),
    ],
)
def test_an_empty_group_is_left_out(network: nn.Module, expected: Any) -> None:
    assert names(network) == expected
    torch.optim.AdamW(parameter_groups(network))


def test_says_that_nothing_trains() -> None:
    with pytest.raises(ValueError, match="nothing to train: all parameters are frozen; unfreeze some with student"):
        LitDistiller(vit().requires_grad_(False)).parameter_groups()


class Resized(nn.Module):
    """Somebody's own student around one of timm's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: torch.compile(net, backend="eager"),
        Resized,
        lambda net: Resized(torch.compile(net, backend="eager")),
    ],
    ids=["plain", "compiled", "wrapped", "compiled inside"],
)
@pytest.mark.parametrize(
    "make",
    [vit, lambda: timm.create_model("vit_tiny_patch16_224", img_size=16, depth=1, embed_dim=16, num_heads=2)],
    ids=["ours", "timm"],
)
def test_tokens_and_positions_do_not_decay_wherever_their_network_is(wrap: Any, make: Any) -> None:
    net = make()
    plain, decayed = parameter_groups(LitDistiller(wrap(net)))
    exempt = ("token", "pos_embed", "pos_embedding")
    tokens = [parameter for name, parameter in net.named_parameters() if name.endswith(exempt)]
    assert len(tokens) >= 2
    assert {id(p) for p in tokens} < {id(p) for p in plain["params"]}
    assert all(p.dim() > 1 for p in decayed["params"])
    assert len(plain["params"]) + len(decayed["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, True), ({"fused": False}, False), ({"foreach": True}, None), ({"differentiable": True}, None)],
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_it_is_fused_unless_it_was_told_how_to_step(kind: Any, options: dict[str, bool], expected: bool | None) -> None:
    optimizer = kind([nn.Parameter(torch.zeros(2))], **options)
    use_fused_kernel(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert [group["fused"] for group in optimizer.param_groups] == [expected, expected]
    # Lightning refuses to clip gradients for an optimizer that unscales them itself.
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def test_other_optimizers_and_devices_are_left_alone() -> None:
    other = torch.optim.RMSprop([nn.Parameter(torch.zeros(2))])
    use_fused_kernel(other)
    assert "fused" not in other.param_groups[0]
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(2, device="meta"))])
    use_fused_kernel(adam)
    assert adam.param_groups[0]["fused"] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
    ids=["AdamW", "SGD"],
)
def test_a_fused_step_is_as_near_to_the_formula_as_a_plain_one(make: Any, dtype: torch.dtype) -> None:
    def after(fuse: bool, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        parameter = nn.Parameter(torch.randn(1000, generator=generator).bfloat16().to(dtype))
        optimizer = make([parameter])
        if fuse:
            use_fused_kernel(optimizer)
        for _ in range(5):
            parameter.grad = torch.randn(1000, generator=generator).bfloat16().to(dtype)
            optimizer.step()
        return parameter.detach().double()

    exact = after(False, torch.float64)
    plain, fused = ((after(fuse, dtype) - exact).abs().mean() for fuse in (False, True))
    assert fused <= 1.5 * plain + 1e-12


def test_a_checkpoint_of_an_optimizer_that_was_not_fused_goes_on_as_it_was() -> None:
    parameter = nn.Parameter(torch.ones(3))
    old, new = torch.optim.AdamW([parameter]), torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    old.step()
    use_fused_kernel(new)
    new.load_state_dict(old.state_dict())
    assert new.param_groups[0]["fused"] is None
    new.step()
