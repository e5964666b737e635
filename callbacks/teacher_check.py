"""What the teacher knows, before anybody learns from it."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.models.teacher_base import Teacher
from lit_distill.padding import SampleCounter

# The table of classes and answers has one row for each class; of more classes it would not be small.
_MOST_CLASSES = 2000


class TeacherCheck(Callback):
    """Measure the teacher's accuracy on the validation set before the first step, and print it.

    A teacher that is right on less than ``chance + 0.25 (1 - chance)`` of the images gets a warning. If its answers
    would be right with its classes in another order, the warning names that order. Needs a module whose ``teacher``
    is a `Teacher`, or any module from images to logits ``(B, K)``, and batches that begin with image and target. A
    teacher without logits is not checked.

    Raises:
        ValueError: Before the first step, if the teacher's logits are not finite.

    Example:
        >>> trainer = Trainer(callbacks=TeacherCheck(), logger=False)
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        teacher, loaders = getattr(pl_module, "teacher", None), trainer.val_dataloaders
        if not isinstance(teacher, nn.Module) or loaders is None or trainer.global_step > 0:
            return
        loaders = list(loaders.values()) if isinstance(loaders, dict) else loaders
        # What a data module does to training batches, such as mixing, must not be done to these.
        stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
        try:
            answers, broken = _count_answers(trainer, teacher, loaders if isinstance(loaders, list) else [loaders])
        finally:
            trainer.state.stage = stage
        images = int(answers.sum())
        if broken:
            raise ValueError(
                f"the teacher's outputs are NaN or infinite on {broken} of {images} images of the validation set: "
                "check its weights, its mean and std, and its precision"
            )
        if images:
            _report(getattr(teacher, "asked", teacher), answers, images)


def _report(teacher: nn.Module, answers: Tensor, images: int) -> None:
    """Print the accuracy, and warn of a low one with what may cause it."""
    classes = _num_classes(teacher) or len(answers)
    accuracy, chance = float(answers.diagonal().sum() / images), 1 / classes
    least = chance + 0.25 * (1 - chance)
    rank_zero_info(f"teacher: accuracy {accuracy:.2%} on {images} images of the validation set")
    if accuracy >= least:
        return
    finding = f"the teacher is right on {accuracy:.1%} of the validation set, where chance is {chance:.1%}"
    answered_as = answers.argmax(dim=1)
    reordered_accuracy = float(answers.gather(1, answered_as[:, None]).sum() / images)
    is_permutation = len(answers) == classes == len(set(answered_as.tolist()))
    if is_permutation and reordered_accuracy >= least:
        rank_zero_warn(
            f"{finding}: its classes look permuted, in another order it would be right on {reordered_accuracy:.1%}; "
            f"{_advice_to_reorder(teacher, answered_as.tolist())}"
        )
    else:
        rank_zero_warn(f"{finding}: a student will learn little from it; {_advice(teacher)}")


def _count_answers(trainer: Trainer, teacher: nn.Module, loaders: Sequence[Iterable[object]]) -> tuple[Tensor, int]:
    """Ask the teacher about the validation set, over all ranks.

    Returns:
        How many images of each class (row) the teacher takes for each class (column); of many classes only how many it
        takes for their own class (place 0, 0) and for another one (place 0, 1). And for how many its logits are not
        finite.
    """
    classes = _num_classes(teacher)
    side = classes if classes is not None and classes <= _MOST_CLASSES else 2
    has_table, counter = side == classes, SampleCounter()
    answers = torch.zeros(side, side, dtype=torch.int64, device=trainer.strategy.root_device)
    broken = answers.new_zeros(())
    # Loaders draw from torch's generator: the run must be the same with and without this callback.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.precision_plugin.forward_context():
        for loader_number, (loader, limit) in enumerate(zip(loaders, trainer.num_val_batches, strict=False)):
            for number, raw_batch in enumerate(loader):
                if number >= limit:
                    break
                raw_batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(raw_batch))
                batch = Batch.of(raw_batch)
                if isinstance(teacher, Teacher):
                    with teacher.evaluating(loader_number):
                        logits = teacher(batch).logits
                else:
                    logits = teacher(batch.image)
                if logits is None:
                    continue
                count = counter.count(loader, number, len(batch.target), loader_number)
                logits, target = logits[:count], batch.target[:count]
                broken += (~logits.isfinite().all(dim=1)).sum()
                answer, labels = logits.argmax(dim=1), target if target.dim() == 1 else target.argmax(dim=1)
                place = labels * side + answer if has_table else (labels != answer).long()
                answers += torch.bincount(place, minlength=answers.numel()).view_as(answers)
    answers, broken = (trainer.strategy.reduce(counts, reduce_op="sum") for counts in (answers, broken))
    return answers, int(broken)


def _num_classes(teacher: nn.Module) -> int | None:
    classes = getattr(teacher, "num_classes", None)
    return classes if isinstance(classes, int) else None


def _advice_to_reorder(teacher: nn.Module, places: list[int]) -> str:
    own_advice = getattr(teacher, "advice_to_reorder", None)
    return str(own_advice(places)) if callable(own_advice) else f"give the teacher classes={[[k] for k in places]}"


def _advice(teacher: nn.Module) -> str:
    card = getattr(getattr(teacher, "model", None), "card", None)
    epochs = ((card if isinstance(card, dict) else {}).get("trained") or {}).get("epochs")
    if epochs:  # it brings its own statistics and size
        return (
            f"it was trained for {epochs} epochs: train it longer (--teacher_epochs of distill), from pretrained "
            "weights or on more images, or take another teacher"
        )
    groups = "" if getattr(teacher, "groups", None) is None else ", each with the right numbers of the teacher's"
    return f"check the teacher's weights, its mean, std and input_size, and that its classes are the data's{groups}"
