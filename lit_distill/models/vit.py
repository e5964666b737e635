"""A vision transformer with a class token and a distillation token."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
import math
from pathlib import Path
from typing import Any, Literal, Self

from timm.layers.pos_embed import resample_abs_pos_embed
import torch
from torch import Tensor, nn

from lit_distill.checks import check_at_least, check_choice, check_fraction
from lit_distill.models.output import StudentOutput
from lit_distill.models.pixels import PixelInput, as_pair, first_given
from lit_distill.models.saved import origin_of
from lit_distill.models.tokenizers import ConvTokenizer, PatchTokenizer
from lit_distill.models.transformer import AttentionScale, Transformer
from lit_distill.models.vit_pytorch import convert_vit_pytorch, is_vit_pytorch, read_arguments
from lit_distill.models.weights import load_strictly, pick, read_state_dict


class DistillableViT(nn.Module):
    """Vision transformer that learns from labels by its class token and from a teacher by its distillation token.

    vit-pytorch's network under vit-pytorch's hyper-parameter names: pre-norm, class token first, distillation token
    last and without position embedding. Its parts are a tokenizer, ``(B, C, H, W)`` to ``(B, N, D)``, and an encoder,
    ``(B, N, D)`` to ``(B, N, D)``; give your own module to replace either.

    Args:
        image_size: Height and width in pixels, or one int for a square.
        patch_size: Height and width of a patch in pixels; must divide ``image_size``.
        num_classes: Classes K, >= 1.
        dim: Width D of a token.
        depth: Encoder blocks.
        heads: Attention heads.
        mlp_dim: Hidden width of the feed-forward layers.
        dim_head: Width of a head.
        dropout: Dropout probability in the encoder, in 0..1.
        emb_dropout: Dropout probability on the embedded tokens, in 0..1.
        channels: Channels C of the image.
        pool: What the class head reads: ``"cls"`` the class token, ``"mean"`` the mean of class and patch tokens.
        distillation_token: False leaves the token and its head out; the class head then serves both losses.
        patch_norm: Layer norm around the patch embedding, see `PatchTokenizer`; False for patches of few pixels.
        position_std: Standard deviation of the position embedding at the start. The usual 0.02 is too faint beside
            the unit-variance tokens for a small data set to find out where a patch lies; see ``benchmarks/RESULTS.md``.
        mean: Per-channel mean of the pixels in 0..1 units; None takes the image as it comes.
        std: Per-channel standard deviation, with ``mean``.
        tokenizer: ``"conv"`` makes the patches' tokens by a few convolutions, see `ConvTokenizer`, which gains much
            where training images are few; see ``benchmarks/RESULTS.md``. A module replaces the patch embedding, and
            ``patch_size`` is then unused. ``patch_norm`` is unused with either.
        encoder: Replaces the transformer; ``depth``, ``heads``, ``mlp_dim``, ``dim_head``, ``dropout``,
            ``attention_scale``, ``final_norm`` and ``project_single_head`` are then unused.
        weights: Start from a file: a state dict or checkpoint of this network, for images of any size, or of
            vit-pytorch's network with these arguments, see `from_vit_pytorch`. Where they are for other classes, the
            heads are new. A checkpoint or an export of this project brings its mean and std, unless others are given.
        new_token: Start from ``weights`` that have no distillation token with a new one.
        attention_scale: Width whose inverse square root scales the attention: ``"dim_head"``, or ``"dim"`` as in
            vit-pytorch before 0.6.7.
        final_norm: Layer norm after the last block; False as in vit-pytorch before 1.3.
        head_norm: Layer norm in the class head; True as in vit-pytorch before 1.3.
        distillation_norm: Layer norm in the distillation head.
        class_token: False leaves the class token out, with ``pool="mean"``; as in vit-pytorch 1.26.
        project_single_head: Project the output of a single head as wide as the tokens too, as in vit-pytorch 0.6.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to `StudentOutput` with two ``(B, K)``; to a plain
        ``(B, K)`` tensor without distillation token.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``, a size is not positive, a dropout probability is
            out of range, the tokenizer does not return ``(B, N, dim)``, or the weights are for another network.

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
        tokenizer: nn.Module | Literal["conv"] | None = None,
        encoder: nn.Module | None = None,
        weights: str | Path | None = None,
        new_token: bool = False,
        attention_scale: AttentionScale = "dim_head",
        final_norm: bool = True,
        head_norm: bool = False,
        distillation_norm: bool = True,
        class_token: bool = True,
        project_single_head: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "dim": dim, "heads": heads, "mlp_dim": mlp_dim, "dim_head": dim_head}
        check_at_least(1, **sizes, channels=channels)
        check_at_least(0, depth=depth, position_std=position_std)
        check_fraction(dropout=dropout, emb_dropout=emb_dropout)
        check_choice(["cls", "mean"] if class_token else ["mean"], pool=pool)
        check_choice(AttentionScale, attention_scale=attention_scale)
        self.num_classes = num_classes
        self.image_size = as_pair(image_size, "image_size")
        self.channels = channels
        self.heads = heads
        self.pool = pool
        origin = origin_of(weights)
        if origin is not None:
            check_choice([origin.attention_scale], attention_scale=attention_scale)
            mean, std = first_given((mean, std), (origin.mean, origin.std))
        self.pixels = PixelInput(mean, std)
        if isinstance(tokenizer, str):
            check_choice(["conv"], tokenizer=tokenizer)
            tokenizer = ConvTokenizer(image_size, patch_size, dim, channels)
        self.tokenizer: nn.Module = tokenizer or PatchTokenizer(image_size, patch_size, dim, channels, patch_norm)
        self.encoder: nn.Module = encoder or Transformer(
            dim, depth, heads, dim_head, mlp_dim, dropout, attention_scale, final_norm, project_single_head
        )
        with torch.no_grad():
            # A copy in evaluation: batch norm would count an image of zeros.
            shape = deepcopy(self.tokenizer).eval()(torch.zeros(1, channels, *self.image_size)).shape
        if len(shape) != 3 or shape[2] != dim:
            raise ValueError(f"the tokenizer must return (B, N, {dim}) tokens, got {tuple(shape)} for one image")
        self.cls_token = nn.Parameter(torch.randn(1, int(class_token), dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, int(class_token) + shape[1], dim) * position_std)
        self.dropout = nn.Dropout(emb_dropout)
        head = nn.Linear(dim, num_classes)
        self.head = nn.Sequential(nn.LayerNorm(dim), head) if head_norm else head
        self.distillation_token: nn.Parameter | None = None
        if distillation_token:
            self.distillation_token = nn.Parameter(torch.randn(1, 1, dim))
            norm = nn.LayerNorm(dim) if distillation_norm else nn.Identity()
            self.distillation_head = nn.Sequential(norm, nn.Linear(dim, num_classes))
        if weights is not None:
            self._start_from(read_state_dict(weights), weights, new_token)

    def forward(self, image: Tensor) -> StudentOutput | Tensor:
        """Return the logits of both heads, or of the only one."""
        expected = (self.channels, *self.image_size)
        if image.shape[1:] != expected:
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

    @classmethod
    def from_vit_pytorch(
        cls,
        state_dict: Mapping[str, Tensor],
        heads: int = 8,
        attention_scale: AttentionScale = "dim_head",
        *,
        image_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] | None = None,
        channels: int | None = None,
        **arguments: Any,
    ) -> Self:
        """Make the network that vit-pytorch's weights are for, with these weights.

        Args:
            state_dict: What vit-pytorch's ``ViT``, ``DistillableViT`` or ``DistillWrapper`` of any release saved. A
                wrapper's teacher is left out.
            heads: Attention heads, which the weights do not tell. A wrong number gives wrong answers.
            attention_scale: ``"dim"`` for weights of releases before 0.6.7, of early 2021, which the weights do not
                tell either. A wrong one gives wrong answers.
            image_size: Height and width in pixels. Default: the square that the weights are for. The position
                embeddings are resampled for another one.
            patch_size: Height and width of a patch in pixels. Default: the square that the weights are for.
            channels: Channels of the image. Default: 3 if the patches are then square, else 1.
            arguments: Further arguments of `DistillableViT`, which replace those that the weights tell, such as
                ``num_classes`` for new heads, ``distillation_token=True`` for a new token, ``pool="mean"`` or ``mean``.

        Raises:
            ValueError: If the weights are not vit-pytorch's, or are for another network than the arguments say.

        Source:
            github.com/lucidrains/vit-pytorch, releases 0.6 to 1.26.

        Example:
            >>> saved = torch.load("ViT_LWR.pth")  # doctest: +SKIP
            >>> DistillableViT.from_vit_pytorch(saved, heads=8, attention_scale="dim")  # doctest: +SKIP
        """
        shape_arguments = read_arguments(convert_vit_pytorch(state_dict), heads, channels, patch_size, image_size)
        student = cls(**{**shape_arguments, **arguments}, attention_scale=attention_scale)
        student._start_from(state_dict, "vit-pytorch's state dict", new_token=True)
        return student

    def _start_from(self, state: Mapping[str, Tensor], path: str | Path, new_token: bool) -> None:
        of_vit_pytorch = is_vit_pytorch(state)
        weights = convert_vit_pytorch(state) if of_vit_pytorch else pick(state, "cls_token")
        has_token, wants_token = "distillation_token" in weights, self.distillation_token is not None
        if has_token and not wants_token:
            raise ValueError("the weights have a distillation token, this network has none: set distillation_token")
        # Without a position embedding the weights are another network's; `load_strictly` says so.
        if wants_token and not has_token and not new_token and "pos_embedding" in weights:
            raise ValueError(
                "the weights have no distillation token: set new_token for a new one, or distillation_token=False"
            )
        state = self._resampled(weights)
        for name, value in self.state_dict().items():
            new = name.startswith("distillation_") and not has_token
            if new or ("head." in name and name in state and state[name].shape != value.shape):
                state[name] = value
        try:
            load_strictly(self, state, path)
        except ValueError as error:
            if not of_vit_pytorch:
                raise
            fitting = ", ".join(f"{name}={value}" for name, value in read_arguments(weights, self.heads).items())
            raise ValueError(f"{error}; make it with DistillableViT.from_vit_pytorch, or with {fitting}") from None

    def _resampled(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict with its position embedding for this network's number of patches."""
        tokens, class_tokens = self.pos_embedding.shape[1], self.cls_token.shape[1]
        position = state.get("pos_embedding", self.pos_embedding)
        if position.shape[1] == tokens or state["cls_token"].shape[1] != class_tokens:
            return dict(state)
        height, width = self.image_size
        rows = round(math.sqrt((tokens - class_tokens) * height / width))
        grid = [rows, (tokens - class_tokens) // rows]
        return {**state, "pos_embedding": resample_abs_pos_embed(position, grid, num_prefix_tokens=class_tokens)}

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, by name, as timm's models tell it."""
        return {"cls_token", "pos_embedding", "distillation_token"}

    def _pooled(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0]
