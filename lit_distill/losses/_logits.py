"""What all losses do with their logits first."""

import torch
from torch import Tensor

# Differences of bfloat16's largest values would overflow float32; smaller values stay as they are.
_LARGEST = 1e30


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
