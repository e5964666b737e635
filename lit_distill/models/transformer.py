"""Encoder blocks."""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from lit_distill.models.attention import attend

AttentionScale = Literal["dim_head", "dim"]


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
    """Pre-norm multi-head self-attention with inner width ``heads * dim_head``; q, k and v have no bias.

    The arguments are those of `DistillableViT`; ``scale`` is its ``attention_scale``.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        scale: AttentionScale = "dim_head",
        project_single_head: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        self.dropout = dropout
        self.scale = None if scale == "dim_head" else dim**-0.5  # None is torch's own, by dim_head
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, inner_dim * 3, bias=False)
        projects = project_single_head or heads > 1 or dim_head != dim
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout)) if projects else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend over ``(B, N, D)`` tokens."""
        q, k, v = rearrange(self.to_qkv(self.norm(tokens)), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        x = attend(q, k, v, self.dropout if self.training else 0.0, self.scale)
        out: Tensor = self.to_out(rearrange(x, "b h n d -> b n (h d)"))
        return out


class Transformer(nn.Module):
    """``depth`` residual blocks of attention and feed-forward and a last layer norm, ``(B, N, D)`` to ``(B, N, D)``.

    The arguments are those of `DistillableViT`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        dropout: float = 0.0,
        attention_scale: AttentionScale = "dim_head",
        final_norm: bool = True,
        project_single_head: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(dim, heads, dim_head, dropout, attention_scale, project_single_head),
                    FeedForward(dim, mlp_dim, dropout),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if final_norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode ``(B, N, D)`` tokens."""
        for block in self.layers:
            attention, feed_forward = block.children()
            tokens = tokens + attention(tokens)
            tokens = tokens + feed_forward(tokens)
        out: Tensor = self.norm(tokens)
        return out
