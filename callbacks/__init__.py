"""Callbacks for any Lightning project, one per file."""

from lit_distill.callbacks.criterion import CriterionCallback
from lit_distill.callbacks.distillation_warmup import DistillationWarmup
from lit_distill.callbacks.divergence import DivergenceCheck
from lit_distill.callbacks.memory import SoftLabelMemory
from lit_distill.callbacks.pskd import ProgressiveSelfDistillation
from lit_distill.callbacks.retrospection import LearningWithRetrospection
from lit_distill.callbacks.retrospective import RetrospectiveLoss
from lit_distill.callbacks.self_adaptive import SelfAdaptiveTraining
from lit_distill.callbacks.soft_labels import SoftLabelCallback
from lit_distill.callbacks.step_seed import StepSeed
from lit_distill.callbacks.summary import RunSummary
from lit_distill.callbacks.teacher_caching import TeacherCaching
from lit_distill.callbacks.teacher_check import TeacherCheck

__all__ = [
    "CriterionCallback",
    "DistillationWarmup",
    "DivergenceCheck",
    "LearningWithRetrospection",
    "ProgressiveSelfDistillation",
    "RetrospectiveLoss",
    "RunSummary",
    "SelfAdaptiveTraining",
    "SoftLabelCallback",
    "SoftLabelMemory",
    "StepSeed",
    "TeacherCaching",
    "TeacherCheck",
]
