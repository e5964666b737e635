"""Callbacks for any Lightning project, one per file."""

from lit_distill.callbacks.memory import SoftLabelMemory
from lit_distill.callbacks.retrospection import LearningWithRetrospection
from lit_distill.callbacks.step_seed import StepSeed
from lit_distill.callbacks.summary import RunSummary

__all__ = ["LearningWithRetrospection", "RunSummary", "SoftLabelMemory", "StepSeed"]
