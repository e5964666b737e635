"""What all losses have in common: what they do with their logits first, and how they show their settings."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.checks import check_at_least, check_positive

# Differences of bfloat16's largest values would overflow float32; smaller values stay as they are.
_LARGEST = 1e30


class LogitLoss(nn.Module):
    """A loss that shows its public attributes, which are its settings, in ``print(module)``."""

    @override
    def extra_repr(self) -> str:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "training")


def check_settings(temperature: float, **weights: float) -> None:
    """Raise ``ValueError`` unless the temperature is > 0 and each weight is >= 0."""
    check_positive(temperature=temperature)
    check_at_least(0, **weights)


def as_float32(logits: Tensor) -> Tensor:
    """Return the logits in float32 (float64 stays), so that a loss does not depend on the precision plugin."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.clamp(-_LARGEST, _LARGEST)


def as_labels(target: Tensor) -> Tensor:
    """Return the classes ``(B,)``, int64: the likeliest ones if the target is ``(B, K)`` probabilities."""
    return target.long() if target.dim() == 1 else target.argmax(dim=1)


def check_same_classes(student_logits: Tensor, teacher: Tensor, name: str = "teacher logits", least: int = 1) -> None:
    """Raise ``ValueError`` unless both are ``(B, K)`` of one size, K >= ``least``; the device is not waited for."""
    if student_logits.dim() != 2 or student_logits.shape != teacher.shape:
        raise ValueError(
            f"student logits and {name} must have one shape (B, K), "
            f"got {tuple(student_logits.shape)} and {tuple(teacher.shape)}"
        )
    if student_logits.shape[1] < least:
        raise ValueError(f"this loss is for {least} or more classes, got {student_logits.shape[1]}")
