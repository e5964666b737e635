"""Students, the frozen teacher, and what they are made of. No Lightning here."""

from typing import TYPE_CHECKING

from lit_distill._lazy import attach

if TYPE_CHECKING:
    from lit_distill.models.class_groups import ClassGroups
    from lit_distill.models.classes import count_classes
    from lit_distill.models.digits_cnn import DigitsCNN
    from lit_distill.models.export import export_student
    from lit_distill.models.output import StudentOutput, TeacherOutput
    from lit_distill.models.pixels import PixelInput
    from lit_distill.models.saved import load_student
    from lit_distill.models.serving import Prediction, predict
    from lit_distill.models.teacher import FrozenTeacher
    from lit_distill.models.teacher_base import Teacher
    from lit_distill.models.teacher_cache import TeacherCache
    from lit_distill.models.timm_student import TimmStudent
    from lit_distill.models.tokenizers import ConvTokenizer, PatchTokenizer, TokensToToken
    from lit_distill.models.transformer import Attention, FeedForward, Transformer
    from lit_distill.models.vit import DistillableViT
    from lit_distill.models.weights import load_safely, load_strictly, read_state_dict
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "class_groups": ["ClassGroups"],
            "classes": ["count_classes"],
            "digits_cnn": ["DigitsCNN"],
            "export": ["export_student"],
            "output": ["StudentOutput", "TeacherOutput"],
            "pixels": ["PixelInput"],
            "saved": ["load_student"],
            "serving": ["Prediction", "predict"],
            "teacher": ["FrozenTeacher"],
            "teacher_base": ["Teacher"],
            "teacher_cache": ["TeacherCache"],
            "timm_student": ["TimmStudent"],
            "tokenizers": ["ConvTokenizer", "PatchTokenizer", "TokensToToken"],
            "transformer": ["Attention", "FeedForward", "Transformer"],
            "vit": ["DistillableViT"],
            "weights": ["load_safely", "load_strictly", "read_state_dict"],
        },
    )


__all__ = [
    "Attention",
    "ClassGroups",
    "ConvTokenizer",
    "DigitsCNN",
    "DistillableViT",
    "FeedForward",
    "FrozenTeacher",
    "PatchTokenizer",
    "PixelInput",
    "Prediction",
    "StudentOutput",
    "Teacher",
    "TeacherCache",
    "TeacherOutput",
    "TimmStudent",
    "TokensToToken",
    "Transformer",
    "count_classes",
    "export_student",
    "load_safely",
    "load_strictly",
    "load_student",
    "predict",
    "read_state_dict",
]
