"""The distillation of one step: what student and teacher are asked for, and what each loss makes of it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_distill.batch import Batch
from lit_distill.losses.weighted import WeightedLosses
from lit_distill.models.output import StudentOutput, TeacherOutput
from lit_distill.models.taps import check_features, tapped
from lit_distill.models.teacher_base import Teacher


def ask_both(
    teacher: Teacher | None, student: nn.Module, batch: Batch, distillation: nn.Module | None
) -> tuple[TeacherOutput | None, StudentOutput]:
    """Ask the teacher, then the student; their features hold all layers that the losses name.

    A loss names layers by its attributes ``student_layer`` and ``teacher_layer``: the dotted name of a submodule, or of
    a feature that the network itself returns. Without distillation the teacher is not asked.

    Raises:
        ValueError: If a network has no layer of a name, or the teacher has no logits for a loss that needs them.
    """
    if teacher is None or distillation is None:
        return None, StudentOutput.of(student(batch.image))
    teacher_layers, student_layers = _layers(distillation, "teacher_layer"), _layers(distillation, "student_layer")
    with tapped(teacher.network, teacher_layers) as theirs, tapped(student, student_layers) as ours:
        answer = teacher(batch)
        output = StudentOutput.of(student(batch.image))
    answer = answer._replace(features={name: layer.float() for name, layer in theirs.items()} | {**answer.features})
    output = output._replace(features=ours | {**output.features})
    check_features(answer.features, teacher_layers, teacher.network, "teacher")
    check_features(output.features, student_layers, student, "student")
    if answer.logits is None:
        _refuse_losses_on_logits(distillation, teacher, answer)
    return answer, output


def distillation_loss(
    distillation: nn.Module, teacher: TeacherOutput, student: StudentOutput, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the distillation loss, and the terms that it is the weighted sum of, by name; a single loss has none.

    Each loss is called with ``(student, teacher, target)``: the logits, or the layers that it names.
    """

    def value(loss: nn.Module) -> Tensor:
        student_layer, teacher_layer = _layer(loss, "student_layer"), _layer(loss, "teacher_layer")
        result: Tensor = loss(
            student.distill_logits if student_layer is None else student.features[student_layer],
            teacher.logits if teacher_layer is None else teacher.features[teacher_layer],
            target,
        )
        return result

    if not isinstance(distillation, WeightedLosses):
        return value(distillation), {}
    terms = {name: value(loss) for name, loss in distillation.items()}
    return torch.stack([distillation.weights[name] * term for name, term in terms.items()]).sum(), terms


def losses_of(distillation: nn.Module) -> Mapping[str, nn.Module]:
    """Return the losses by name; a single one goes by its class's name."""
    if isinstance(distillation, WeightedLosses):
        return dict(distillation.items())
    return {type(distillation).__name__: distillation}


def uses_logits(distillation: nn.Module) -> bool:
    """Tell whether a loss is about the student's logits, and not only about layers inside it."""
    return any(_layer(loss, "student_layer") is None for loss in losses_of(distillation).values())


def _layers(distillation: nn.Module, attribute: str) -> set[str]:
    layers = {_layer(loss, attribute) for loss in losses_of(distillation).values()}
    return {layer for layer in layers if layer is not None}


def _layer(loss: nn.Module, attribute: str) -> str | None:
    layer = getattr(loss, attribute, None)
    return layer if isinstance(layer, str) else None


def _refuse_losses_on_logits(distillation: nn.Module, teacher: Teacher, answer: TeacherOutput) -> None:
    needy = [name for name, loss in losses_of(distillation).items() if _layer(loss, "teacher_layer") is None]
    if needy:
        raise ValueError(
            f"{', '.join(needy)} needs the teacher's logits, but the teacher {type(teacher).__name__} gives only "
            f"features: {', '.join(answer.features) or 'none'}; take a loss on features, or a teacher with classes"
        )
