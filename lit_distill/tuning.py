"""When a run has its teacher choose how to be fast, and how its checkpoints keep the choice."""

from collections.abc import Iterable, Mapping
import math
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lit_distill.batch import Batch
from lit_distill.models.fast import FastNetwork
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.variants import PLAIN

_KEY = "teacher_variants"  # in a checkpoint


def fast_networks(teacher: nn.Module | None) -> dict[str, FastNetwork]:
    """Return what runs the networks of a teacher, by the names of the teachers inside it.

    Example:
        >>> from lit_distill import FrozenTeacher
        >>> list(fast_networks(FrozenTeacher(nn.Linear(2, 2))))
        ['']
    """
    return {name: part.fast_network for name, part in _parts(teacher).items() if part.fast_network is not None}


def tune(trainer: Trainer, teacher: nn.Module | None, batch: object) -> None:
    """Have the teacher choose what is fastest for a batch of training; all ranks call it in the same step."""
    parts = _parts(teacher)
    if all(network.is_tuned for network in fast_networks(teacher).values()):
        return
    if any(getattr(part, "is_away", False) for part in parts.values()):  # a cache answers, and the weights are on disk
        return
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps * trainer.accumulate_grad_batches
    calls = min(trainer.num_training_batches * epochs, steps)
    with trainer.precision_plugin.forward_context():
        for part in parts.values():
            part.tune(Batch.of(batch), calls)


def precision_of(trainer: Trainer, runs: Iterable[FastNetwork]) -> str:
    """Return in words the precision that a teacher answers in: the trainer's, unless its networks have another one."""
    as_is, found = str(trainer.precision), set()
    for run in runs:
        variant = run.variant_on(trainer.strategy.root_device)
        # Its weights are float32 while the trainer's autocast is on.
        of_weights = "32-true" if as_is.endswith("-mixed") else as_is
        precision = {"trainer": as_is, "own": of_weights}.get(variant.precision, "bf16")
        if run.precision is not None:
            precision = str(run.precision)
        found.add(f"{precision}, plainly" if run.chosen and variant == PLAIN else precision)
    return " and ".join(sorted(found or {as_is}))


def choices_of(teacher: nn.Module | None) -> dict[str, dict[str, dict[str, str]]]:
    """Return what a checkpoint keeps of the choices; nothing where a rule decides."""
    chosen = {name: network.chosen for name, network in fast_networks(_behind(teacher)).items() if network.chosen}
    return {_KEY: chosen} if chosen else {}


def restore_choices(teacher: nn.Module | None, checkpoint: Mapping[str, Any]) -> None:
    """Have the teacher run as in the run of a checkpoint, if the device is of the same kind."""
    choices = checkpoint.get(_KEY, {})
    for name, network in fast_networks(_behind(teacher)).items():
        network.chosen = dict(choices.get(name, {}))


def _behind(teacher: nn.Module | None) -> nn.Module | None:
    """Return the teacher behind a cache, so that names are the same with a cache and without."""
    asked = getattr(teacher, "asked", None)
    return asked if isinstance(asked, Teacher) else teacher


def _parts(teacher: nn.Module | None) -> dict[str, Teacher]:
    modules = () if teacher is None else teacher.named_modules()
    return {name: module for name, module in modules if isinstance(module, Teacher)}
