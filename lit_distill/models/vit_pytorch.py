"""Read vit-pytorch's weights: under this project's names, and as the arguments of the network they are for."""

from collections.abc import Mapping, Sequence
import math
import re

from torch import Tensor

from lit_distill.checks import some_of
from lit_distill.models.pixels import as_pair

# Applied in this order; a name without a match stays. Release 0.6, of early 2021, cut patches outside of any module and
# wrapped every layer twice. Later releases, up to 1.2, wrapped it once. Since 1.3 each layer holds its norm.
_RENAMED = (
    (r"^patch_to_embedding\.", "tokenizer.2."),
    (r"^to_patch_embedding\.", "tokenizer."),
    (r"^mlp_head\.", "head."),
    (r"^transformer\.", "encoder."),
    (r"^(encoder\.layers\.\d+\.[01])\.fn\.norm\.", r"\1.norm."),
    (r"^(encoder\.layers\.\d+\.0)\.(?:fn\.)+", r"\1."),
    (r"^(encoder\.layers\.\d+\.1)\.norm\.", r"\1.0."),
    (r"^(encoder\.layers\.\d+\.1)\.(?:fn\.)+net\.0\.", r"\1.1."),
    (r"^(encoder\.layers\.\d+\.1)\.(?:fn\.)+net\.3\.", r"\1.4."),
    (r"^(encoder\.layers\.\d+\.1)\.net\.", r"\1."),
    (r"^distill_mlp\.", "distillation_head."),
)


def is_vit_pytorch(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of vit-pytorch's ``ViT``, ``DistillableViT`` or ``DistillWrapper``."""
    names = {name.removeprefix("student.") for name in state}
    return "cls_token" in names and any(name.startswith("mlp_head.") for name in names)


def convert_vit_pytorch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of `DistillableViT`, without a wrapper's teacher.

    Raises:
        ValueError: If the names are not vit-pytorch's.
    """
    if not is_vit_pytorch(state):
        expected = "the state dict of vit-pytorch's ViT, DistillableViT or DistillWrapper"
        raise ValueError(f"expected {expected}, got {some_of(state)}")
    student = {name.removeprefix("student."): value for name, value in state.items() if not name.startswith("teacher.")}
    projection = student.get("to_patch_embedding.1.weight")
    if projection is not None and projection.dim() == 2:  # releases 0.7 to 0.35 have no norm before the projection
        student = {name.replace("to_patch_embedding.1.", "tokenizer.2."): value for name, value in student.items()}
    converted = {}
    for name, value in student.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        is_token = name in ("cls_token", "pos_embedding", "distillation_token")
        converted[name] = value[None] if is_token and value.dim() == 2 else value
    return converted


def read_arguments(
    state: Mapping[str, Tensor],
    heads: int,
    channels: int | None = None,
    patch_size: int | Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
) -> dict[str, object]:
    """Return the arguments of the `DistillableViT` that the weights are for, as their shapes tell them.

    The weights have the names of `DistillableViT`; the other arguments are those of its ``from_vit_pytorch``.

    Raises:
        ValueError: If a weight is missing, ``heads`` does not fit, or images or patches can only be rectangular.
    """
    try:
        values, dim = state["tokenizer.2.weight"].shape[1], state["pos_embedding"].shape[2]
        class_tokens = state["cls_token"].shape[1]
        patches = state["pos_embedding"].shape[1] - class_tokens
        inner_dim = state["encoder.layers.0.0.to_qkv.weight"].shape[0] // 3
        mlp_dim = state["encoder.layers.0.1.1.weight"].shape[0]
        head_norm = "head.0.weight" in state
        num_classes = state["head.1.weight" if head_norm else "head.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"vit-pytorch's weights lack {error}") from None
    if inner_dim % heads:
        raise ValueError(
            f"heads must divide the {inner_dim} columns of q, k and v in vit-pytorch's weights, got {heads}"
        )
    channels = channels or (3 if math.isqrt(values // 3) ** 2 * 3 == values else 1)
    height, width = as_pair(patch_size or math.isqrt(values // channels), "patch_size")
    side = math.isqrt(patches)
    if height * width * channels != values or (image_size is None and side**2 != patches):
        raise ValueError(
            f"vit-pytorch's weights have {patches} patches of {values} values, which are no squares of "
            f"{channels} channels: give image_size, patch_size and channels"
        )
    return {
        "image_size": image_size or (side * height, side * width),
        "patch_size": (height, width),
        "num_classes": num_classes,
        "dim": dim,
        "depth": len({name.split(".")[2] for name in state if name.startswith("encoder.layers.")}),
        "heads": heads,
        "mlp_dim": mlp_dim,
        "dim_head": inner_dim // heads,
        "channels": channels,
        "pool": "cls" if class_tokens else "mean",
        "distillation_token": "distillation_token" in state,
        "patch_norm": "tokenizer.1.weight" in state,
        "final_norm": "encoder.norm.weight" in state,
        "head_norm": head_norm,
        "distillation_norm": "distillation_token" not in state or "distillation_head.0.weight" in state,
        "class_token": class_tokens > 0,
        "project_single_head": heads == 1 and inner_dim == dim and "encoder.layers.0.0.to_out.0.weight" in state,
    }
