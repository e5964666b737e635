"""Distil a teacher into a vision transformer with PyTorch Lightning."""

from typing import TYPE_CHECKING

import lit_distill._early  # noqa: F401  # first: torch and Lightning take seconds to import
from lit_distill._lazy import attach
from lit_distill.losses import (
    DIST,
    DKD,
    HardDistillation,
    SoftDistillation,
    StandardizedDistillation,
    WeightedLosses,
    dist_loss,
    dkd_loss,
    hard_distillation_loss,
    retrospection_loss,
    retrospection_weight,
    retrospective_loss,
    soft_distillation_loss,
    standardized_distillation_loss,
)

if TYPE_CHECKING:
    from lit_distill.models import (
        DigitsCNN,
        DistillableViT,
        FrozenTeacher,
        StudentOutput,
        Teacher,
        TeacherOutput,
        TimmStudent,
        export_student,
        load_student,
    )
    from lit_distill.module import LitDistiller
    from lit_distill.schedule import WarmupCosine
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "models": [
                "DigitsCNN",
                "DistillableViT",
                "FrozenTeacher",
                "StudentOutput",
                "Teacher",
                "TeacherOutput",
                "TimmStudent",
                "export_student",
                "load_student",
            ],
            "module": ["LitDistiller"],
            "schedule": ["WarmupCosine"],
        },
    )


__version__ = "0.1.0"

__all__ = [
    "DIST",
    "DKD",
    "DigitsCNN",
    "DistillableViT",
    "FrozenTeacher",
    "HardDistillation",
    "LitDistiller",
    "SoftDistillation",
    "StandardizedDistillation",
    "StudentOutput",
    "Teacher",
    "TeacherOutput",
    "TimmStudent",
    "WarmupCosine",
    "WeightedLosses",
    "dist_loss",
    "dkd_loss",
    "export_student",
    "hard_distillation_loss",
    "load_student",
    "retrospection_loss",
    "retrospection_weight",
    "retrospective_loss",
    "soft_distillation_loss",
    "standardized_distillation_loss",
]
