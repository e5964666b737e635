from typing import Any

import pytest
import torch
from torch import nn

from lit_distill import DistillableViT, HardDistillation
from lit_distill.models import TokensToToken


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


class LinearAttention(nn.Module):
    """An encoder of cost N: somebody's own, as `DistillableViT` takes any."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(dim, 3 * dim), nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=2)
        return tokens + q.softmax(dim=2) @ (k.softmax(dim=1).transpose(1, 2) @ v)


@pytest.mark.parametrize("kind", ["tokens to token", "linear attention", "both"])
def test_the_other_students_of_vit_pytorch_learn(kind: str) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    if kind != "linear attention":
        parts["tokenizer"] = TokensToToken(16, dim=16, channels=1, steps=[(4, 2), (3, 2)])
    if kind != "tokens to token":
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
