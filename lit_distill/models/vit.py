"""A vision transformer with a class token and a distillation token."""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any, Literal, Self

from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]  # exported, but not declared so
import torch
from torch import Tensor, nn

from lit_distill.models.output import StudentOutput
from lit_distill.models.pixels import PixelInput, as_pair, check_batch
from lit_distill.models.saved import origin_of
from lit_distill.models.tokenizers import PatchTokenizer
from lit_distill.models.transformer import Transformer, norm_or_not
from lit_distill.models.vit_pytorch import from_vit_pytorch, is_vit_pytorch
from lit_distill.models.weights import load_strictly, pick, read_state_dict


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
        weights: Start from a file: a state dict or checkpoint of this network, for images of any size, or of
            vit-pytorch's, see `load_vit_pytorch`. Where they are for other classes, the heads are new. A checkpoint or
            an export of this project brings its mean and std, unless others are given.
        new_token: Start from ``weights`` that have no distillation token with a new one.

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
        weights: str | Path | None = None,
        new_token: bool = False,
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
        self.image_size = as_pair(image_size, "image_size")
        self.channels = channels
        self.pool = pool
        origin = None if weights is None else origin_of(weights)
        if origin is not None and mean is None and std is None:
            mean, std = origin.mean, origin.std
        self.pixels = PixelInput(mean, std)
        self.tokenizer: nn.Module = tokenizer or PatchTokenizer(image_size, patch_size, dim, channels, patch_norm)
        self.encoder: nn.Module = encoder or Transformer(dim, depth, heads, dim_head, mlp_dim, dropout)

        with torch.no_grad():
            shape = self.tokenizer(torch.zeros(1, channels, *self.image_size)).shape
        if len(shape) != 3 or shape[2] != dim:
            raise ValueError(f"the tokenizer must return (B, N, {dim}) tokens, got {tuple(shape)} for one image")
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, 1 + shape[1], dim) * position_std)
        self.dropout = nn.Dropout(emb_dropout)
        self.head: nn.Module = nn.Linear(dim, num_classes)
        self.distillation_token: nn.Parameter | None = None
        if distillation_token:
            self.distillation_token = nn.Parameter(torch.randn(1, 1, dim))
            self.distillation_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        if weights is not None:
            self._start_from(weights, new_token)

    def forward(self, image: Tensor) -> StudentOutput | Tensor:
        """Return the logits of both heads, or of the only one."""
        check_batch(image)
        if image.shape[1:] != (self.channels, *self.image_size):
            expected = (self.channels, *self.image_size)
            raise ValueError(
                f"expected images (B, C, H, W) = (B, {', '.join(map(str, expected))}), got {tuple(image.shape)}: "
                "make the network with their image_size and channels, or resize them"
            )
        tokens = self.tokenizer(self.pixels(image))
        batch = tokens.shape[0]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1) + self.pos_embedding
        if self.distillation_token is None:
            logits: Tensor = self.head(self._pooled(self.encoder(self.dropout(tokens))))
            return logits
        tokens = torch.cat([tokens, self.distillation_token.expand(batch, -1, -1)], dim=1)
        tokens = self.encoder(self.dropout(tokens))
        return StudentOutput(self.head(self._pooled(tokens[:, :-1])), self.distillation_head(tokens[:, -1]))

    def load_vit_pytorch(self, state_dict: Mapping[str, Tensor], new_token: bool = False) -> Self:
        """Take over the weights of vit-pytorch's ``ViT``, ``DistillableViT`` or ``DistillWrapper``, and return self.

        Of any release: where layer norms stand, and whether mean pooling has a class token, is taken over with them.

        Args:
            state_dict: What the network or the wrapper saved, on any device.
            new_token: Keep this network's new distillation token and head where the weights have none.

        Raises:
            ValueError: If the weights are not vit-pytorch's or are for another network; if they have a distillation
                token and this network has none, or the other way round without ``new_token``.

        Source:
            github.com/lucidrains/vit-pytorch, releases 0.6 to 1.26.
        """
        state = from_vit_pytorch(state_dict)
        self._check_token(state, new_token)
        load_strictly(self, {**self._token_state(state), **state}, "vit-pytorch's state dict")
        return self

    def _start_from(self, weights: str | Path, new_token: bool) -> None:
        state = read_state_dict(weights)
        if not is_vit_pytorch(state):
            state = pick(state, "cls_token")
        if is_vit_pytorch(state):
            state = from_vit_pytorch(state)
        if "pos_embedding" in state:  # else they are another network's, which is told below
            self._check_token(state, new_token)
        self.lay_out(state)
        own = self.state_dict()
        for key in own.keys() & state.keys():
            if "head." in key and state[key].shape != own[key].shape:
                state[key] = own[key]
        position = state.get("pos_embedding")
        if position is not None and position.shape != own["pos_embedding"].shape:
            prefix = self.cls_token.shape[1]
            state["pos_embedding"] = resample_abs_pos_embed(position, list(self._grid()), num_prefix_tokens=prefix)
        load_strictly(self, {**self._token_state(state), **state}, weights)

    def _token_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the token and head that are to stay new."""
        if self.distillation_token is None or "distillation_token" in state:
            return {}
        return {key: value for key, value in self.state_dict().items() if key.startswith("distillation_")}

    def _check_token(self, state: Mapping[str, Tensor], new_token: bool) -> None:
        has, wanted = "distillation_token" in state, self.distillation_token is not None
        if has and not wanted:
            raise ValueError("the weights have a distillation token, this network has none: set distillation_token")
        if wanted and not has and not new_token:
            raise ValueError(
                "the weights have no distillation token: set new_token for a new one, or distillation_token to False"
            )

    def _grid(self) -> tuple[int, int]:
        """Return rows and columns of the patch tokens, as the image's shape tells them."""
        tokens, (height, width) = self.pos_embedding.shape[1] - self.cls_token.shape[1], self.image_size
        rows = round(math.sqrt(tokens * height / width))
        return rows, tokens // rows

    def lay_out(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Have layer norms and class token where the weights have them: vit-pytorch's releases differ."""
        names = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
        if not {"cls_token", "pos_embedding"} <= names:  # of another network
            return
        for part, module in (("tokenizer.", self.tokenizer), ("encoder.", self.encoder)):
            if isinstance(module, (PatchTokenizer, Transformer)):
                module.lay_out({name.removeprefix(part) for name in names if name.startswith(part)})
        dim, normed = self.pos_embedding.shape[2], "head.0.weight" in names
        if normed != isinstance(self.head, nn.Sequential):
            linear = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
            norm = norm_or_not(normed, nn.Identity(), dim, self.pos_embedding)
            self.head = nn.Sequential(norm, linear) if normed else linear
        if self.distillation_token is not None and "distillation_token" in names:
            head = self.distillation_head
            head[0] = norm_or_not("distillation_head.0.weight" in names, head[0], dim, self.pos_embedding)
        cls = state.get(f"{prefix}cls_token")
        if cls is not None and cls.dim() == 3 and cls.shape[1] < 2 and cls.shape[1] != self.cls_token.shape[1]:
            patches = self.pos_embedding.shape[1] - self.cls_token.shape[1]
            self.cls_token = nn.Parameter(self.cls_token.new_zeros(1, cls.shape[1], dim))
            self.pos_embedding = nn.Parameter(self.pos_embedding.new_zeros(1, cls.shape[1] + patches, dim))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.lay_out(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, by name, as timm's models tell it."""
        return {"cls_token", "pos_embedding", "distillation_token"}

    def _pooled(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0]
