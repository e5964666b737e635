"""Any timm classifier as a student."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from timm.data.config import resolve_model_data_config
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
import torch
from torch import Tensor, nn

from lit_distill.checks import check_at_least
from lit_distill.models.attention import is_faster_in_steps
from lit_distill.models.output import StudentOutput
from lit_distill.models.pixels import PixelInput, first_given
from lit_distill.models.saved import origin_of
from lit_distill.models.timm_net import timm_net
from lit_distill.models.weights import pick, read_state_dict

_ADDED = "model.norm_pre.distillation_token"


class TimmStudent(nn.Module):
    """A timm classifier that learns from labels and from a teacher.

    - Architectures that timm has with a second head (``deit_*_distilled_*``, ``pit_*_distilled_*``, LeViT,
      EfficientFormer, ...) answer with both, in training and in evaluation.
    - A vision transformer (timm's ``VisionTransformer`` and ``Eva``, so ``vit_*``, ``deit3_*``, DINO, SigLIP, ...) is
      given a distillation token after its class and register tokens, without position embedding, and a head for it.
    - Any other network has one head, which serves both losses.

    Args:
        name: As ``timm.list_models()`` has it, with or without a tag.
        num_classes: Classes K, >= 1. If the weights are for other classes, the head is new.
        pretrained: Start from timm's pretrained weights, downloaded unless they are in the local cache.
        weights: Start from a file: a state dict or checkpoint of timm's network, or of a student like this one, whose
            token is then kept; so the student of one run can go on at another size in the next. A checkpoint or an
            export of this project brings the size, mean and std that it was trained with, unless others are given.
        distillation_token: False leaves a vision transformer as it is, with one head for both losses.
        img_size: Side of the images in pixels, or ``(height, width)``; images of another size are resized. By default
            timm's for this network and these weights, whose position embeddings are resampled to a size given.
        patch_size: Side of a patch in pixels, where the architecture has patches.
        in_chans: Channels C of the images.
        drop_path_rate: Probability of leaving out a block in training, in 0..1.
        mean: Per-channel mean of the pixels in 0..1 units; by default timm's for this network.
        std: Per-channel standard deviation, with ``mean``.
        channels_last: Lay images and weights out by pixel. Many convolutional networks train faster so, on a CPU up to
            twice as fast. Results differ by rounding.
        timm_kwargs: Further arguments of ``timm.create_model``.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to `StudentOutput` with two ``(B, K)``; to a plain
        ``(B, K)`` tensor where there is one head.

    Raises:
        ValueError: If timm has no such model or refuses the arguments, the weights are missing or for another
            architecture, or there is no mean and std for ``in_chans`` channels.

    Source:
        Wightman, "PyTorch Image Models", github.com/huggingface/pytorch-image-models; the token as in Touvron et al.,
        arXiv 2012.12877.

    Example:
        >>> student = TimmStudent("vit_tiny_patch16_224", num_classes=10, img_size=32)
        >>> student(torch.rand(2, 3, 32, 32)).distill_logits.shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        pretrained: bool = False,
        weights: str | Path | None = None,
        distillation_token: bool = True,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | None = None,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        check_at_least(1, num_classes=num_classes)
        chosen = {"patch_size": patch_size, "drop_path_rate": drop_path_rate, "in_chans": in_chans}
        args = {key: value for key, value in chosen.items() if value is not None} | timm_kwargs
        origin = origin_of(weights)
        if origin is not None:
            img_size = img_size or origin.input_size
            if len(origin.mean or ()) == in_chans:
                mean, std = first_given((mean, std), (origin.mean, origin.std))
        start, token = (None, {}) if weights is None else _parted(read_state_dict(weights))
        self.model: Any = timm_net(name, num_classes, pretrained, start or weights, img_size, args, new_head=True)
        config: Any = resolve_model_data_config(self.model)  # type: ignore[no-untyped-call]  # timm has no types
        mean, std = first_given((mean, std), (config["mean"], config["std"]))
        if mean is config["mean"] and len(mean) != in_chans:
            raise ValueError(f"{name} was made for {len(mean)} channels: give mean and std for yours")
        self.num_classes = num_classes
        self.pixels = PixelInput(mean, std, img_size or config["input_size"][1:])
        self.distillation_head: nn.Sequential | None = None
        if distillation_token and _takes_a_token(self.model):
            self.distillation_head = self._add_token()
            fresh = self.state_dict()
            kept = {name: value for name, value in token.items() if name in fresh and value.shape == fresh[name].shape}
            self.load_state_dict(fresh | kept)
        self._in_steps: list[Any] = []  # timm's attentions that do without the fused kernel now
        self.channels_last = channels_last
        self.to(memory_format=self._layout)
        self.train()

    def _add_token(self) -> nn.Sequential:
        """Put a distillation token into the network, and return a head for it."""
        vit, width = self.model, self.model.embed_dim
        vit.norm_pre = _TokenBefore(vit.norm_pre, self._place, width)
        head = nn.Linear(width, self.num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        for module in vit.blocks.modules():
            if hasattr(module, "num_prefix_tokens"):  # Eva's attention does not rotate these
                module.num_prefix_tokens += 1
        # Where timm normalises after pooling, the token would come as the last block left it.
        normed = not isinstance(vit.norm, nn.Identity)
        return nn.Sequential(nn.Identity() if normed else nn.LayerNorm(width), head)

    @property
    def _place(self) -> int:
        """Return the place of the distillation token: after the class token and the registers."""
        return int(self.model.num_prefix_tokens)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.preserve_format

    def forward(self, image: Tensor) -> StudentOutput | Tensor:
        """Return the logits of both heads, or of the only one."""
        image = self.pixels(image).to(memory_format=self._layout)
        self._choose_attention(image)
        if self.distillation_head is None:
            output: StudentOutput | Tensor = self.model(image)
            return output if isinstance(output, Tensor) else StudentOutput(*output)
        tokens = self.model.forward_features(image)
        before, token, after = tokens.tensor_split([self._place, self._place + 1], dim=1)
        logits = self.model.forward_head(torch.cat([before, after], dim=1))
        return StudentOutput(logits, self.distillation_head(token.squeeze(1)))

    def _choose_attention(self, image: Tensor) -> None:
        """Have timm's attention use torch's fused kernel only where that is faster."""
        tokens = getattr(getattr(self.model, "patch_embed", None), "num_patches", None)
        if tokens is None:
            return
        device = image.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
        if is_faster_in_steps(image.device, dtype, tokens) == bool(self._in_steps):
            return
        changed: list[Any] = self._in_steps or [m for m in self.model.modules() if getattr(m, "fused_attn", False)]
        self._in_steps = [] if self._in_steps else changed
        for module in changed:
            module.fused_attn = not module.fused_attn

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep timm's distilled models at two heads: in evaluation they would return the mean."""
        super().train(mode)
        for module in self.model.modules():
            if hasattr(module, "distilled_training"):
                # Its children keep the mode that was set, so nothing else changes.
                module.distilled_training = True
                module.training = True
        return self

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, by name, as timm's models tell it."""
        return {_ADDED} | {f"model.{name}" for name in getattr(self.model, "no_weight_decay", set)()}


class _TokenBefore(nn.Module):
    """Puts the distillation token among the tokens, before the module that timm has at this place."""

    def __init__(self, module: nn.Module, place: int, width: int) -> None:
        super().__init__()
        self.module = module
        self.place = place
        self.distillation_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))

    def forward(self, tokens: Tensor) -> Tensor:
        before, after = tokens.tensor_split([self.place], dim=1)
        token = self.distillation_token.expand(tokens.shape[0], -1, -1)  # len() would fix an exported batch
        out: Tensor = self.module(torch.cat([before, token, after], dim=1))
        return out


def _parted(state: dict[str, Tensor]) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """Return timm's part and the token's part of the weights of a student with a token; else None and nothing."""
    if not any(name.endswith(_ADDED) for name in state):
        return None, {}
    student = pick(state, _ADDED)
    token = {name: value for name, value in student.items() if name.startswith((_ADDED, "distillation_head."))}
    network = {name: value for name, value in student.items() if name not in token}
    places = ("model.norm_pre.module.", "model.norm_pre.")
    return {name.replace(*places).removeprefix("model."): value for name, value in network.items()}, token


def _takes_a_token(model: nn.Module) -> bool:
    vit = isinstance(model, (VisionTransformer, Eva)) and not isinstance(model, VisionTransformerDistilled)
    return vit and hasattr(model, "norm_pre")  # newer releases of timm have it in Eva
