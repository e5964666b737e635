"""Distil a teacher into a vision transformer with PyTorch Lightning."""

from lit_distill.losses import (
    HardDistillation,
    SoftDistillation,
    hard_distillation_loss,
    retrospection_loss,
    retrospection_weight,
    retrospective_loss,
    soft_distillation_loss,
)
from lit_distill.models import DigitsCNN, DistillableViT, FrozenTeacher, StudentOutput
from lit_distill.module import LitDistiller
from lit_distill.schedule import WarmupCosine

__version__ = "0.1.0"

__all__ = [
    "DigitsCNN",
    "DistillableViT",
    "FrozenTeacher",
    "HardDistillation",
    "LitDistiller",
    "SoftDistillation",
    "StudentOutput",
    "WarmupCosine",
    "hard_distillation_loss",
    "retrospection_loss",
    "retrospection_weight",
    "retrospective_loss",
    "soft_distillation_loss",
]
