"""vit-pytorch's names for the weights of `DistillableViT`."""

from collections.abc import Mapping
import re

from torch import Tensor

# In this order; what a pattern does not name keeps its name. The releases: 0.6, of early 2021, cut patches outside of
# any module and wrapped every layer twice, then once until 1.2; since 1.3 each layer has its norm within.
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


def from_vit_pytorch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under this project's names; a wrapper's teacher is left out.

    Raises:
        ValueError: If the names are not vit-pytorch's.
    """
    if not is_vit_pytorch(state):
        names = ", ".join([*state][:3])
        raise ValueError(f"expected the state dict of vit-pytorch's ViT, DistillableViT or DistillWrapper, got {names}")
    wrapped = any(name.startswith("student.") for name in state)
    own = {name.removeprefix("student."): value for name, value in state.items() if not name.startswith("teacher.")}
    # Between 0.7 and 0.35 the patches were projected at place 1, without norms.
    bare = "to_patch_embedding.1.weight" in own and own["to_patch_embedding.1.weight"].dim() == 2
    out = {}
    for name, value in own.items():
        if bare:
            name = re.sub(r"^to_patch_embedding\.1\.", "to_patch_embedding.2.", name)
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        if name in ("cls_token", "pos_embedding", "distillation_token") and value.dim() == 2:
            value = value[None]
        out[name] = value
    if not wrapped:
        out = {name: value for name, value in out.items() if not name.startswith("distillation_")}
    return out
