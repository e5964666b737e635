"""Scaled dot-product attention, by the way that is faster."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Of more tokens, the probabilities take more memory than all else that a block keeps for its backward pass.
_MOST_TOKENS = 512


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, scale: float | None = None) -> Tensor:
    """Return what ``torch.nn.functional.scaled_dot_product_attention`` does, up to rounding.

    Args:
        query: ``(B, H, N, D)``, as ``key`` and ``value``.
        key: What the queries are compared with.
        value: What is averaged.
        dropout: Probability in 0..1 of leaving out a weight; 0 in evaluation.
        scale: Factor of the products; None is ``D ** -0.5``.

    Shape:
        ``(B, H, N, D)``.

    Example:
        >>> tokens = torch.rand(1, 2, 5, 8)
        >>> torch.equal(attend(tokens, tokens, tokens), F.scaled_dot_product_attention(tokens, tokens, tokens))
        True
    """
    if not is_faster_in_steps(query.device, query.dtype, query.shape[-2]):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)
    products = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    return F.dropout(products.softmax(dim=-1), dropout) @ value


def is_faster_in_steps(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Tell whether two products with a softmax between them are faster than torch's fused attention.

    In bfloat16 on a CPU they are, above all in the backward pass: the fused kernel multiplies slowly there.
    The products are then rounded to bfloat16, as autocast rounds those of any attention that is written out. The
    probabilities are kept for the backward pass, so many tokens would take too much memory.

    Example:
        >>> is_faster_in_steps(torch.device("cpu"), torch.bfloat16, 197)
        True
        >>> is_faster_in_steps(torch.device("cpu"), torch.float32, 197)
        False
    """
    return device.type == "cpu" and dtype == torch.bfloat16 and tokens <= _MOST_TOKENS
