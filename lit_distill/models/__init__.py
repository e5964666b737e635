"""Students, the frozen teacher, and what they are made of. No Lightning here."""

from lit_distill.models.classes import count_classes
from lit_distill.models.digits_cnn import DigitsCNN
from lit_distill.models.output import StudentOutput
from lit_distill.models.pixels import PixelInput
from lit_distill.models.teacher import FrozenTeacher
from lit_distill.models.vit import Attention, DistillableViT, FeedForward, PatchTokenizer, Transformer
from lit_distill.models.weights import load_safely, load_strictly, read_state_dict

__all__ = [
    "Attention",
    "DigitsCNN",
    "DistillableViT",
    "FeedForward",
    "FrozenTeacher",
    "PatchTokenizer",
    "PixelInput",
    "StudentOutput",
    "Transformer",
    "count_classes",
    "load_safely",
    "load_strictly",
    "read_state_dict",
]
