"""The mathematics: one pure function and one module per loss, computed in float32."""

from lit_distill.losses.dist import DIST, dist_loss
from lit_distill.losses.dkd import DKD, dkd_loss
from lit_distill.losses.hard import HardDistillation, hard_distillation_loss
from lit_distill.losses.retrospection import retrospection_loss, retrospection_weight
from lit_distill.losses.retrospective import retrospective_loss
from lit_distill.losses.soft import SoftDistillation, soft_distillation_loss
from lit_distill.losses.standardized import StandardizedDistillation, standardized_distillation_loss
from lit_distill.losses.weighted import WeightedLosses

__all__ = [
    "DIST",
    "DKD",
    "HardDistillation",
    "SoftDistillation",
    "StandardizedDistillation",
    "WeightedLosses",
    "dist_loss",
    "dkd_loss",
    "hard_distillation_loss",
    "retrospection_loss",
    "retrospection_weight",
    "retrospective_loss",
    "soft_distillation_loss",
    "standardized_distillation_loss",
]
