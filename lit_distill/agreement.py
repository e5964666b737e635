"""Whether student, teacher, losses and data fit each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_distill.distillation import losses_of
from lit_distill.models.classes import count_classes, match_names
from lit_distill.models.output import Head
from lit_distill.models.teacher_base import Teacher


def check_class_counts(student: nn.Module, teacher: Teacher | None, data: object, criterion: nn.Module) -> None:
    """Check that all that tell their number of classes have the same.

    Args:
        student: See `count_classes`.
        teacher: Its ``num_classes`` counts, or None.
        data: A data module, whose ``num_classes`` counts, or None.
        criterion: A ``weight`` of classes must have one value for each.

    Raises:
        ValueError: If they differ.
    """
    counts = {
        "student": count_classes(student),
        "teacher": None if teacher is None else teacher.num_classes,
        "data": getattr(data, "num_classes", None),
    }
    known = {name: count for name, count in counts.items() if count is not None}
    if len(set(known.values())) > 1:
        numbers = ", ".join(f"the {name} has {count}" for name, count in known.items())
        raise ValueError(
            f"student, teacher and data must have the same number of classes, but {numbers}; "
            "group the teacher's classes with its classes=, and give num_classes to a network that was misread"
        )
    weight = getattr(criterion, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 1 and known and len(weight) not in known.values():
        raise ValueError(
            f"the criterion has weights for {len(weight)} classes, but there are {max(known.values())}: "
            "give it one for each"
        )


def check_learned_names(learned: Sequence[str] | None, names: Sequence[str] | None) -> None:
    """Check that a trained student meets the classes that it learned: it would confuse any others with them.

    Raises:
        ValueError: If the data's names, or their order, are others.

    Example:
        >>> check_learned_names(["cat", "dog"], ["dog", "cat"])
        Traceback (most recent call last):
        ValueError: the student knows the classes in another order than the data has: class 0 was 'cat' and is 'dog...
    """
    if learned is None or names is None:
        return
    advice = "for new classes start anew, with the student's weights= if you like"
    for number, place in enumerate(match_names(learned, names, "student", advice)):
        if number != place:
            raise ValueError(
                "the student knows the classes in another order than the data has: "
                f"class {number} was {learned[number]!r} and is {names[number]!r}; {advice}"
            )


def check_teacher(teacher: Teacher | None, distillation: nn.Module | None, head: Head) -> None:
    """Check that a distillation loss has its teacher, and tell what else may not be meant.

    Args:
        teacher: The teacher.
        distillation: The loss, or all of them.
        head: What predicts.

    Raises:
        ValueError: If there is a loss and no teacher.
    """
    if distillation is not None and teacher is None:
        raise ValueError(
            f"{', '.join(losses_of(distillation))} needs a teacher, got teacher=None: give one, or set distillation to "
            "None"
        )
    if distillation is None and head == "distill":
        rank_zero_info("head=distill has no effect: without a distillation loss the class head answers")
    if teacher is None:
        return
    if distillation is None:
        rank_zero_info("there is a teacher but no distillation loss: nothing is learned from it")
    for note in teacher.notes():
        rank_zero_info(f"teacher: {note}")


def carry_grouping(about: Mapping[str, Any], teacher: Teacher, trains: bool) -> None:
    """Let a teacher answer as in the run of a checkpoint, or say that it does not.

    Args:
        about: What the checkpoint says beside its weights; its ``grouping`` is how the teacher combined its classes.
        teacher: The teacher now.
        trains: Whether training goes on. The training set then has its own class frequencies.
    """
    before, now = about.get("grouping"), teacher.grouping()
    if before and not trains:
        teacher.set_class_counts(lambda: before["target_prior"])
    if before is None and trains and now.get("target_prior") != now.get("teacher_shares"):
        rank_zero_warn(
            "this checkpoint is of a version whose teachers summed the probabilities of a group of classes; from here "
            "on the teacher answers by Bayes' rule: to go on as before, give it target_prior='teacher'"
        )


def refuse_shared_parameters(network: object, other: object) -> None:
    """Raise ``ValueError`` if student and teacher share parameters: a teacher is frozen, and the student would be."""
    if isinstance(network, nn.Module) and isinstance(other, nn.Module):
        shared = {id(p) for p in network.parameters()} & {id(p) for p in other.parameters()}
        if shared:
            raise ValueError(
                "student and teacher are one network, and a teacher is frozen: give copy.deepcopy of it as the teacher"
            )
