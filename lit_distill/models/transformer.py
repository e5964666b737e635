"""Encoder blocks."""

from collections.abc import Collection
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Sequential):
    """Pre-norm two-layer perceptron, ``(B, N, D)`` to ``(B, N, D)``."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim),
            nn.Dropout(dropout),
        )


class Attention(nn.Module):
    """Pre-norm multi-head self-attention with inner width ``heads * dim_head``; q, k and v have no bias."""

    def __init__(self, dim: int, heads: int = 8, dim_head: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, inner_dim * 3, bias=False)
        # One head as wide as the tokens needs no mixing of heads.
        single = heads == 1 and dim_head == dim
        self.to_out = nn.Identity() if single else nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend over ``(B, N, D)`` tokens."""
        q, k, v = rearrange(self.to_qkv(self.norm(tokens)), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out: Tensor = self.to_out(rearrange(x, "b h n d -> b n (h d)"))
        return out


class Transformer(nn.Module):
    """``depth`` residual blocks of attention and feed-forward and a last layer norm, ``(B, N, D)`` to ``(B, N, D)``."""

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)])
            for _ in range(depth)
        )
        self.norm: nn.Module = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode ``(B, N, D)`` tokens."""
        for block in self.layers:
            attention, feed_forward = block.children()
            tokens = tokens + attention(tokens)
            tokens = tokens + feed_forward(tokens)
        out: Tensor = self.norm(tokens)
        return out

    def lay_out(self, names: Collection[str]) -> None:
        """Have the last norm, and the mixing of a single head, where the weights of these names have them."""
        for number, block in enumerate(self.layers):
            attention: Any = next(block.children())
            mixes, width = f"layers.{number}.0.to_out.0.weight" in names, attention.to_qkv.in_features
            if attention.heads == 1 and mixes == isinstance(attention.to_out, nn.Identity):
                linear = nn.Sequential(nn.Linear(width, width), nn.Dropout(attention.dropout))
                attention.to_out = linear.to(attention.to_qkv.weight) if mixes else nn.Identity()
            self.norm = norm_or_not("norm.weight" in names, self.norm, width, attention.to_qkv.weight)


def norm_or_not(wanted: bool, module: nn.Module, width: int, like: Tensor) -> nn.Module:
    """Return the module, or a layer norm or nothing in its place."""
    if wanted == isinstance(module, nn.LayerNorm):
        return module
    return nn.LayerNorm(width, device=like.device, dtype=like.dtype) if wanted else nn.Identity()
