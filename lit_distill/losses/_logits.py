"""What every loss asks of its logits."""

import torch
from torch import Tensor

# Differences of logits must not overflow float32, which bfloat16's largest values would; nothing smaller is touched.
_LARGEST = 1e30


def as_float32(logits: Tensor) -> Tensor:
    """Half precision to float32 (float64 stays), so that a loss never depends on the precision plugin."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.clamp(-_LARGEST, _LARGEST)


def check_temperature(temperature: float) -> float:
    """Raise ``ValueError`` unless ``temperature`` is a positive number."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be > 0, got {temperature}")
    return float(temperature)


def check_weights(**weights: float) -> None:
    """Raise ``ValueError`` unless every weight is >= 0."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} must be >= 0, got {weight}")


def as_labels(target: Tensor) -> Tensor:
    """Return the classes ``(B,)``, int64, the likeliest where the target is ``(B, K)`` probabilities."""
    return target.long() if target.dim() == 1 else target.argmax(dim=1)


def check_same_classes(student_logits: Tensor, teacher: Tensor, name: str = "teacher logits", least: int = 1) -> None:
    """Raise ``ValueError`` unless both are ``(B, K)`` of the same size, K >= ``least``; shapes live on the host."""
    if student_logits.dim() != 2 or student_logits.shape != teacher.shape:
        raise ValueError(
            f"student logits and {name} must have one shape (B, K), "
            f"got {tuple(student_logits.shape)} and {tuple(teacher.shape)}"
        )
    if student_logits.shape[1] < least:
        raise ValueError(f"this loss is for {least} or more classes, got {student_logits.shape[1]}")
