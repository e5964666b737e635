from typing import Any

import pytest
import torch
from torch import nn

from lit_distill import DistillableViT, HardDistillation
from lit_distill.models import ConvTokenizer, PatchTokenizer, TokensToToken


@pytest.mark.parametrize(("size", "steps", "tokens"), [(32, None, 4), ((32, 64), None, 8), (16, [(4, 2), (3, 1)], 36)])
def test_tokens_are_as_many_as_the_steps_leave(size: Any, steps: Any, tokens: int) -> None:
    arguments = {} if steps is None else {"steps": steps}
    tokenizer = TokensToToken(size, dim=6, channels=1, **arguments)
    height, width = (size, size) if isinstance(size, int) else size
    assert tokenizer(torch.rand(2, 1, height, width)).shape == (2, tokens, 6)


def test_one_step_is_a_convolution() -> None:
    tokenizer = TokensToToken(8, dim=6, channels=3, steps=[(4, 2)])
    image, weight = torch.rand(2, 3, 8, 8), tokenizer.project.weight.view(6, 3, 4, 4)
    expected = nn.functional.conv2d(image, weight, tokenizer.project.bias, stride=2, padding=1)
    torch.testing.assert_close(tokenizer(image), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("size", "patch", "dim"), [(32, 4, 96), (8, 2, 6), ((16, 32), 16, 5), (8, 8, 3), (224, 16, 8)])
def test_convolutions_make_as_many_tokens_as_patches(size: Any, patch: int, dim: int) -> None:
    tokenizer = ConvTokenizer(size, patch, dim, channels=2).eval()
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.rand(2, 2, height, width)
    assert tokenizer(image).shape == PatchTokenizer(size, patch, dim, channels=2)(image).shape


def test_a_token_of_convolutions_stands_where_its_patch_is_and_reaches_over_its_edges() -> None:
    tokenizer = ConvTokenizer(16, 4, dim=8, channels=1).eval()
    image = torch.rand(1, 1, 16, 16, requires_grad=True)
    tokenizer(image)[0, 5].square().sum().backward()  # row 1, column 1
    rows, columns = image.grad[0, 0].abs().sum(1).nonzero().flatten(), image.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert rows.tolist() == columns.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_making_a_network_leaves_the_statistics_of_its_tokenizer_alone() -> None:
    tokenizer = ConvTokenizer(8, 8, dim=8, channels=1)  # one token: batch norm refuses one image of it in training
    vit = DistillableViT(8, 8, 2, dim=8, depth=1, heads=1, mlp_dim=8, channels=1, tokenizer=tokenizer)
    norm = vit.tokenizer[1]
    assert (norm.running_var == 1).all()
    assert norm.num_batches_tracked == 0
    assert vit.tokenizer.training


def test_conv_makes_the_convolutions_that_suit_the_network() -> None:
    sizes = {"dim": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "channels": 2}
    torch.manual_seed(0)
    named = DistillableViT((16, 8), 4, 2, tokenizer="conv", **sizes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    given = DistillableViT((16, 8), 4, 2, tokenizer=ConvTokenizer((16, 8), 4, dim=8, channels=2), **sizes)  # type: ignore[arg-type]
    image = torch.rand(2, 2, 16, 8)
    assert torch.equal(named(image).distill_logits, given(image).distill_logits)
    with pytest.raises(ValueError, match="tokenizer must be 'conv', got 'convs'"):
        DistillableViT(16, 4, 2, tokenizer="convs", **sizes)  # type: ignore[arg-type]


class LinearAttention(nn.Module):
    """An encoder of cost N: somebody's own, as `DistillableViT` takes any."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(dim, 3 * dim), nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=2)
        return tokens + q.softmax(dim=2) @ (k.softmax(dim=1).transpose(1, 2) @ v)


@pytest.mark.parametrize("kind", ["convolutions", "tokens to token", "linear attention", "both"])
def test_students_of_other_parts_learn(kind: str) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    if kind == "convolutions":
        parts["tokenizer"] = ConvTokenizer(16, 4, dim=16, channels=1)
    elif kind != "linear attention":
        parts["tokenizer"] = TokensToToken(16, dim=16, channels=1, steps=[(4, 2), (3, 2)])
    if kind in ("linear attention", "both"):
        parts["encoder"] = LinearAttention(16)
    vit = DistillableViT(16, 4, 2, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1, **parts)
    image, target = torch.rand(16, 1, 16, 16), torch.arange(16) % 2
    image[target == 1, :, :8] += 1.0
    optimizer, losses = torch.optim.AdamW(vit.parameters(), lr=3e-3), []
    for _ in range(40):
        output = vit(image)
        loss = nn.functional.cross_entropy(output.logits, target)
        loss = loss + HardDistillation()(output.distill_logits, nn.functional.one_hot(1 - target, 2).float(), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    output = vit(image)
    assert torch.equal(output.logits.argmax(1), target)
    assert torch.equal(output.distill_logits.argmax(1), 1 - target)  # each head learned from its own teacher


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": []}, "steps must be one or more"),
        ({"steps": [(0, 1)]}, "kernel must be >= 1, got 0"),
        ({"image_size": 4, "steps": [(7, 4), (9, 2)]}, r"nothing is left of \(4, 4\) pixels after step 2"),
        ({"image_size": 0}, "image_size must be one or two numbers >= 1, got 0"),
    ],
)
def test_refuses_what_leaves_no_tokens(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokensToToken(**{"image_size": 16, "dim": 4, **arguments})


@pytest.mark.parametrize(
    ("size", "patch", "message"),
    [
        (30, 4, "patch_size must divide image_size, got patch_size 4x4 and image_size 30x30"),
        (24, 6, "patch_size must be a power of 2 and >= 2 to be reached by halving, got 6x6"),
        (24, 1, "patch_size must be a power of 2 and >= 2 to be reached by halving, got 1x1"),
        (24, (2, 4), "patch_size must be a power of 2 and >= 2 to be reached by halving, got 2x4"),
    ],
)
def test_convolutions_refuse_what_halving_does_not_reach(size: int, patch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvTokenizer(size, patch, dim=8)
