"""A vision transformer with a class token and a distillation token."""

from collections.abc import Sequence
from typing import Literal

from einops import pack, rearrange, repeat, unpack
from einops.layers.torch import Rearrange
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill.models.output import StudentOutput
from lit_distill.models.pixels import PixelInput


class PatchTokenizer(nn.Sequential):
    """Cut an image into patches and project each to one token: ``(B, C, H, W)`` to ``(B, N, D)``.

    Args:
        image_size: Height and width in pixels, or one int for a square.
        patch_size: Height and width of a patch in pixels; must divide ``image_size``.
        dim: Width D of a token.
        channels: Channels C of the image.
        norm: Layer norm before and after the projection, as in vit-pytorch since 2022; its first releases have none.
            The one before takes mean and contrast from every patch, so leave both out for patches of few pixels.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``, or ``norm`` would leave nothing of patches of one
            value.

    Example:
        >>> PatchTokenizer(image_size=8, patch_size=2, dim=32, channels=1)(torch.rand(4, 1, 8, 8)).shape
        torch.Size([4, 16, 32])
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        dim: int,
        channels: int = 3,
        norm: bool = True,
    ) -> None:
        (height, width), (p1, p2) = _pair(image_size, "image_size"), _pair(patch_size, "patch_size")
        if height % p1 or width % p2:
            raise ValueError(
                f"patch_size must divide image_size, got patch_size {p1}x{p2} and image_size {height}x{width}"
            )
        patch_dim = channels * p1 * p2
        if norm and patch_dim == 1:
            raise ValueError("a patch of one value is nothing but its mean to a layer norm: set patch_norm to False")
        super().__init__(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p1, p2=p2),
            nn.LayerNorm(patch_dim) if norm else nn.Identity(),
            nn.Linear(patch_dim, dim),
            nn.LayerNorm(dim) if norm else nn.Identity(),
        )


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
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode ``(B, N, D)`` tokens."""
        for block in self.layers:
            attention, feed_forward = block.children()
            tokens = tokens + attention(tokens)
            tokens = tokens + feed_forward(tokens)
        out: Tensor = self.norm(tokens)
        return out


class DistillableViT(nn.Module):
    """Vision transformer that learns from labels by its class token and from a teacher by its distillation token.

    vit-pytorch's network under vit-pytorch's hyper-parameter names: pre-norm, class token first, distillation token
    last and without position embedding. It is put together from a tokenizer, ``(B, C, H, W)`` to ``(B, N, D)``, and an
    encoder, ``(B, N, D)`` to ``(B, N, D)``; give your own to replace either.

    Args:
        image_size: Height and width in pixels, or one int for a square.
        patch_size: Height and width of a patch in pixels; must divide ``image_size``.
        num_classes: Classes K, >= 1.
        dim: Width D of a token.
        depth: Encoder blocks.
        heads: Attention heads.
        mlp_dim: Hidden width of the feed-forward layers.
        dim_head: Width of a head.
        dropout: Dropout probability in the encoder, 0 <= p < 1.
        emb_dropout: Dropout probability on the embedded tokens, 0 <= p < 1.
        channels: Channels C of the image.
        pool: What the class head reads: ``"cls"`` the class token, ``"mean"`` the mean of class and patch tokens.
        distillation_token: False leaves the token and its head out; the class head then serves both losses.
        patch_norm: Layer norm around the patch embedding, see `PatchTokenizer`; False for patches of few pixels.
        position_std: Standard deviation of the position embedding at the start. The usual 0.02 is too faint beside
            the unit-variance tokens for a small data set to find out where a patch lies; see ``benchmarks/RESULTS.md``.
        mean: Per-channel mean of the pixels in 0..1 units; None takes the image as it comes.
        std: Per-channel standard deviation, with ``mean``.
        tokenizer: Replaces the patch embedding; ``patch_size`` and ``patch_norm`` are then unused.
        encoder: Replaces the transformer; ``depth``, ``heads``, ``mlp_dim``, ``dim_head`` and ``dropout`` are then
            unused.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to `StudentOutput` with two ``(B, K)``; to a plain
        ``(B, K)`` tensor without distillation token.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``, a size is not positive, a dropout probability is
            out of range, or the tokenizer does not return ``(B, N, dim)``.

    Source:
        Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877; layout of lucidrains/vit-pytorch.

    Example:
        >>> vit = DistillableViT(image_size=8, patch_size=2, num_classes=10, dim=32, depth=1, heads=2, mlp_dim=64)
        >>> vit(torch.rand(4, 3, 8, 8)).distill_logits.shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        pool: Literal["cls", "mean"] = "cls",
        distillation_token: bool = True,
        patch_norm: bool = True,
        position_std: float = 0.5,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        tokenizer: nn.Module | None = None,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "dim": dim, "heads": heads, "mlp_dim": mlp_dim, "dim_head": dim_head}
        for name, size in {**sizes, "channels": channels}.items():
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        for name, p in {"dropout": dropout, "emb_dropout": emb_dropout}.items():
            if not 0 <= p < 1:
                raise ValueError(f"{name} must be in [0, 1), got {p}")
        if position_std < 0:
            raise ValueError(f"position_std must be >= 0, got {position_std}")
        if depth < 0:
            raise ValueError(f"depth must be >= 0, got {depth}")
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean', got {pool!r}")
        self.num_classes = num_classes
        self.image_size = _pair(image_size, "image_size")
        self.channels = channels
        self.pool = pool
        self.pixels = PixelInput(mean, std)
        self.tokenizer = tokenizer or PatchTokenizer(image_size, patch_size, dim, channels, patch_norm)
        self.encoder = encoder or Transformer(dim, depth, heads, dim_head, mlp_dim, dropout)

        with torch.no_grad():
            shape = self.tokenizer(torch.zeros(1, channels, *self.image_size)).shape
        if len(shape) != 3 or shape[2] != dim:
            raise ValueError(f"the tokenizer must return (B, N, {dim}) tokens, got {tuple(shape)} for one image")
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, 1 + shape[1], dim) * position_std)
        self.dropout = nn.Dropout(emb_dropout)
        self.head = nn.Linear(dim, num_classes)
        self.distillation_token: nn.Parameter | None = None
        if distillation_token:
            self.distillation_token = nn.Parameter(torch.randn(1, 1, dim))
            self.distillation_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, image: Tensor) -> StudentOutput | Tensor:
        """Return the logits of both heads, or of the only one."""
        if image.shape[1:] != (self.channels, *self.image_size):
            expected = (self.channels, *self.image_size)
            raise ValueError(
                f"expected images (B, C, H, W) = (B, {', '.join(map(str, expected))}), got {tuple(image.shape)}"
            )
        tokens = self.tokenizer(self.pixels(image))
        batch = len(tokens)
        tokens, _ = pack([repeat(self.cls_token, "1 1 d -> b 1 d", b=batch), tokens], "b * d")
        tokens = tokens + self.pos_embedding
        if self.distillation_token is None:
            logits: Tensor = self.head(self._pooled(self.encoder(self.dropout(tokens))))
            return logits
        distill = repeat(self.distillation_token, "1 1 d -> b 1 d", b=batch)
        tokens, packing = pack([tokens, distill], "b * d")
        tokens, distill = unpack(self.encoder(self.dropout(tokens)), packing, "b * d")
        return StudentOutput(self.head(self._pooled(tokens)), self.distillation_head(distill.squeeze(1)))

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, by name, as timm's models tell it."""
        return {"cls_token", "pos_embedding", "distillation_token"}

    def _pooled(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0]


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return height, width
