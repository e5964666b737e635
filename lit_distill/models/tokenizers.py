"""Images to tokens."""

from collections.abc import Sequence

from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill.checks import check_at_least
from lit_distill.models.pixels import as_pair
from lit_distill.models.transformer import Transformer


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
        >>> import torch
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
        (height, width), (p1, p2) = as_pair(image_size, "image_size"), as_pair(patch_size, "patch_size")
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


class TokensToToken(nn.Module):
    """Overlapping patches, gathered in steps with attention between them: ``(B, C, H, W)`` to ``(B, N, D)``.

    Every step but the last cuts the image into overlapping patches, lets them attend to each other, and lays them out
    as an image again; after the last the patches are projected. vit-pytorch's version, where a token is as wide as its
    patch: 147 and 1,323 values for the usual steps and three channels, so a step costs far more than a block after it.

    Args:
        image_size: Height and width in pixels, or one int for a square.
        dim: Width D of a token.
        channels: Channels C of the image.
        steps: ``(kernel, stride)`` in pixels of each step.
        dropout: Dropout probability in the attention of the steps, 0 <= p < 1.

    Raises:
        ValueError: If there is no step, or nothing is left of the image after one.

    Source:
        Yuan et al., "Tokens-to-Token ViT", ICCV 2021, arXiv 2101.11986; layout of lucidrains/vit-pytorch.

    Example:
        >>> import torch
        >>> TokensToToken(image_size=32, dim=64, channels=1)(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 4, 64])
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        dim: int,
        channels: int = 3,
        steps: Sequence[tuple[int, int]] = ((7, 4), (3, 2), (3, 2)),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not steps:
            raise ValueError("steps must be one or more (kernel, stride), got none")
        self.image_size = as_pair(image_size, "image_size")
        self.steps = [(int(kernel), int(stride)) for kernel, stride in steps]
        width, size = channels, self.image_size
        attention: list[nn.Module] = []
        for number, (kernel, stride) in enumerate(self.steps):
            check_at_least(1, kernel=kernel, stride=stride)
            width *= kernel**2
            size = _cut(size, kernel, stride)
            if min(size) < 1:
                raise ValueError(f"nothing is left of {self.image_size} pixels after step {number + 1} of {self.steps}")
            if number < len(self.steps) - 1:
                attention.append(Transformer(width, 1, 1, width, width, dropout))
        self.attention = nn.ModuleList(attention)
        self.project = nn.Linear(width, dim)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens."""
        for number, (kernel, stride) in enumerate(self.steps):
            height, _ = _cut(image.shape[-2:], kernel, stride)
            tokens = rearrange(F.unfold(image, kernel, stride=stride, padding=stride // 2), "b d n -> b n d")
            if number < len(self.attention):
                image = rearrange(self.attention[number](tokens), "b (h w) d -> b d h w", h=height)
        out: Tensor = self.project(tokens)
        return out


def _cut(size: Sequence[int], kernel: int, stride: int) -> tuple[int, int]:
    height, width = ((side + 2 * (stride // 2) - kernel) // stride + 1 for side in size)
    return height, width
