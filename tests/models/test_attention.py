import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill.models.attention import attend


def attended(function, parts: list[Tensor], **kwargs) -> list[Tensor]:
    """Return the output and the gradients of its weighted sum."""
    parts = [part.clone().requires_grad_() for part in parts]
    output = function(*parts, **kwargs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (output * weights.to(output.dtype)).sum().backward()
    return [output.detach(), *(part.grad for part in parts)]


def parts_of(tokens: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [(spread * torch.randn(2, 3, tokens, 8, generator=generator)).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("tokens", [1, 5, 197, 512])
def test_in_bfloat16_it_differs_by_the_rounding_of_its_products(tokens, spread, scale) -> None:
    parts = parts_of(tokens, torch.bfloat16, spread)
    kernel = F.scaled_dot_product_attention
    exact = attended(kernel, [part.double() for part in parts], scale=scale)
    ours, fused = attended(attend, parts, scale=scale), attended(kernel, parts, scale=scale)
    query, key = (part.double() for part in parts[:2])
    products = query @ key.transpose(-2, -1) * (8**-0.5 if scale is None else scale)
    most = 2**-8 * max(1.0, float(products.abs().max()))
    for one, other, right in zip(ours, fused, exact, strict=True):
        assert one.dtype == torch.bfloat16
        error, error_of_fused = ((each - right).norm() / right.norm().clamp(min=1e-3) for each in (one, other))
        assert error <= 2 * error_of_fused + most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elsewhere_it_is_the_fused_kernel(dtype) -> None:
    parts = parts_of(513 if dtype == torch.bfloat16 else 7, dtype)
    for one, other in zip(
        attended(attend, parts, scale=0.2), attended(F.scaled_dot_product_attention, parts, scale=0.2), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_leaves_out_weights_and_scales_the_others(dtype) -> None:
    torch.manual_seed(0)
    flat, each = torch.zeros(1, 1, 256, 256, dtype=dtype), torch.eye(256, dtype=dtype)[None, None]
    weights = attend(flat, flat, each, dropout=0.25) * 256  # all weights are 1 / 256
    assert weights.unique().tolist() == pytest.approx([0.0, 4 / 3], rel=0.01)
    assert float((weights == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
