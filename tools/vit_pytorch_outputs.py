"""Make the fixtures of tests/models/test_vit_pytorch.py with a release of vit-pytorch.

    pip install --no-deps --target /tmp/release vit-pytorch==0.6.8   # then again with 1.26.11
    PYTHONPATH=/tmp/release python tools/vit_pytorch_outputs.py tests/models/fixtures/vit_pytorch_0.6.8

Two releases cannot be installed together, so this script saves their weights and outputs: one safetensors file per
network, with the state dict under ``weights.``, an image and, in evaluation, the logits of each head. Releases 0.6.6
and 0.6.7 differ only in the scale of the attention: keep their files ``*_cls_2_vit`` and ``*_cls_2_wrapper``.
"""

import inspect
from pathlib import Path
import sys
from typing import Any

from safetensors.torch import save_file
import torch
from torch import nn
import vit_pytorch
from vit_pytorch.distill import DistillableViT, DistillWrapper

NETWORK: dict[str, Any] = {
    "image_size": 20,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 8,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 12,
    "dim_head": 6,
}


def main(stem: str) -> None:
    """Write the networks and outputs of the installed release."""
    for pool in ("cls", "mean"):
        for heads, dim_head in ((2, 6), (1, 8)):
            torch.manual_seed(0)
            args = {**NETWORK, "pool": pool, "heads": heads, "dim_head": dim_head}
            pixels = torch.randint(256, (2, 3, 20, 20), dtype=torch.uint8)
            image = pixels / 255
            name = f"{stem}_{pool}_{heads}"
            vit = _random(vit_pytorch.ViT(**args))
            _save(f"{name}_vit", vit, pixels, {"logits": vit(image)})
            student = _random(DistillableViT(**args))
            kinds = [{}]
            if "mlp_layernorm" in inspect.signature(DistillWrapper).parameters:
                kinds.append({"mlp_layernorm": True})
            for kind in kinds:
                wrapper = _random(DistillWrapper(teacher=nn.Linear(1, 1), student=student, **kind))
                logits, token = student(image, distill_token=wrapper.distillation_token)
                out = {"logits": logits, "distill_logits": wrapper.distill_mlp(token)}
                _save(f"{name}_wrapper{'_norm' if kind else ''}", wrapper, pixels, out)


def _random(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module.eval()


def _save(name: str, module: nn.Module, pixels: torch.Tensor, out: dict[str, torch.Tensor]) -> None:
    weights = {f"weights.{key}": value.contiguous() for key, value in module.state_dict().items()}
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    save_file(weights | {"image": pixels} | {k: v.detach().contiguous() for k, v in out.items()}, f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
