"""Images to tokens."""

from collections.abc import Sequence
from itertools import chain, pairwise

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
        _check_divides(image_size, patch_size)
        p1, p2 = as_pair(patch_size, "patch_size")
        patch_dim = channels * p1 * p2
        if norm and patch_dim == 1:
            raise ValueError("a patch of one value is nothing but its mean to a layer norm: set patch_norm to False")
        super().__init__(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p1, p2=p2),
            nn.LayerNorm(patch_dim) if norm else nn.Identity(),
            nn.Linear(patch_dim, dim),
            nn.LayerNorm(dim) if norm else nn.Identity(),
        )


class ConvTokenizer(nn.Sequential):
    """Convolve an image, halving it step by step, to as many tokens as `PatchTokenizer` makes.

    One convolution of 3x3 pixels and stride 2 a step, with batch norm and ReLU, until a pixel stands for a patch; a
    convolution of 1x1 then projects to the width of a token: ``(B, C, H, W)`` to ``(B, N, D)``. Neighbouring tokens
    share pixels, and edges need not be learned patch by patch; in the study ``cifar10_losses`` that gains more than any
    loss. The channels double with every step and end at D.

    Args:
        image_size: Height and width in pixels, or one int for a square.
        patch_size: Height and width in pixels that a token stands for; must divide ``image_size``. A power of 2, >= 2.
        dim: Width D of a token.
        channels: Channels C of the image.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``, or is not a power of 2.

    Source:
        Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021, arXiv 2106.14881. Hassani et al.,
        "Escaping the Big Data Paradigm with Compact Transformers", arXiv 2104.05704, pools in place of strides.

    Example:
        >>> import torch
        >>> ConvTokenizer(image_size=32, patch_size=4, dim=96)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 64, 96])
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        dim: int,
        channels: int = 3,
    ) -> None:
        _check_divides(image_size, patch_size)
        p1, p2 = as_pair(patch_size, "patch_size")
        steps = max(p1, p2).bit_length() - 1
        if p1 != p2 or p1 != 2**steps or not steps:
            raise ValueError(f"patch_size must be a power of 2 and >= 2 to be reached by halving, got {p1}x{p2}")
        widths = [channels, *(max(1, dim >> step) for step in reversed(range(steps)))]
        layers = (
            (nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in pairwise(widths)
        )
        super().__init__(*chain(*layers), nn.Conv2d(dim, dim, 1), Rearrange("b d h w -> b (h w) d"))


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


def _check_divides(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> None:
    (height, width), (p1, p2) = as_pair(image_size, "image_size"), as_pair(patch_size, "patch_size")
    if height % p1 or width % p2:
        raise ValueError(f"patch_size must divide image_size, got patch_size {p1}x{p2} and image_size {height}x{width}")


def _cut(size: Sequence[int], kernel: int, stride: int) -> tuple[int, int]:
    height, width = ((side + 2 * (stride // 2) - kernel) // stride + 1 for side in size)
    return height, width
