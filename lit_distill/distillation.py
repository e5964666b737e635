"""The distillation of one step: what student and teacher are asked for, and what each loss makes of it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_distill.batch import Batch
from lit_distill.losses.weighted import WeightedLosses
from lit_distill.models.output import StudentOutput, TeacherOutput
from lit_distill.models.taps import pick_feature, tapped
from lit_distill.models.teacher_base import Teacher


def ask_both(
    teacher: Teacher, student: nn.Module, batch: Batch, distillation: nn.Module
) -> tuple[TeacherOutput, StudentOutput]:
    """Ask the teacher, then the student; their features hold all layers that the losses name.

    A loss names layers by its attributes ``student_layer`` and ``teacher_layer``: the dotted name of a submodule, or of
    a feature that the network itself returns.

    Raises:
        ValueError: If a network has no layer of a name, or the teacher has no logits for a loss that needs them.
    """
    losses = losses_of(distillation)
    wanted = {
        side: {name for loss in losses.values() if (name := _layer(loss, side)) is not None}
        for side in ("teacher", "student")
    }
    with (
        tapped(teacher.network, wanted["teacher"]) as teacher_layers,
        tapped(student, wanted["student"]) as student_layers,
    ):
        answer = teacher(batch)
        output = StudentOutput.of(student(batch.image))
    known = {**{name: layer.float() for name, layer in teacher_layers.items()}, **answer.features}
    answer = answer._replace(features=known)
    output = output._replace(features={**student_layers, **output.features})
    for layer in wanted["teacher"]:
        pick_feature(answer.features, layer, teacher.network, "teacher")
    for layer in wanted["student"]:
        pick_feature(output.features, layer, student, "student")
    if answer.logits is None:
        for name, loss in losses.items():
            if _layer(loss, "teacher") is None:
                given = ", ".join(answer.features) or "nothing"
                raise ValueError(
                    f"{name} needs the teacher's logits, but the teacher {type(teacher).__name__} gives only features: "
                    f"{given}; take a loss on features, or a teacher with classes"
                )
    return answer, output


def distillation_loss(
    distillation: nn.Module, teacher: TeacherOutput, student: StudentOutput, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the distillation loss, and the terms that it is the weighted sum of, by name; a single loss has none.

    Each loss is called with ``(student, teacher, target)``: the logits, or the layers that it names.
    """

    def value(loss: nn.Module) -> Tensor:
        student_layer, teacher_layer = _layer(loss, "student"), _layer(loss, "teacher")
        ours = student.distill_logits if student_layer is None else student.features[student_layer]
        theirs = teacher.logits if teacher_layer is None else teacher.features[teacher_layer]
        result: Tensor = loss(ours, theirs, target)
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


def _layer(loss: nn.Module, side: str) -> str | None:
    layer = getattr(loss, f"{side}_layer", None)
    return layer if isinstance(layer, str) else None
