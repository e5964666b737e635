"""What the teacher knows, before anybody learns from it."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.checks import counted, knows_little_below
from lit_distill.evaluation import loaders_of
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.teacher_cache import TeacherCache
from lit_distill.padding import SampleCounter
from lit_distill.tuning import fast_networks, tune

# The table of classes and answers has one row for each class; of more classes it would not be small.
_MOST_CLASSES = 2000
_MOST_LOSS = 0.002  # of accuracy, that being fast may cost

# A class is named far too often if it is by this part of all images more than are of it, or by this factor, and by so
# many standard errors of a teacher that errs in both directions equally often.
_PART, _FACTOR, _ERRORS = 0.05, 3, 4


class TeacherCheck(Callback):
    """Measure the teacher's accuracy on the validation set before the first step, and print it.

    A `FrozenTeacher` that runs folded, in lower precision or compiled is measured as it is too, in the precision of its
    weights. Both accuracies are printed. If being fast costs more than 0.2 points, the teacher runs as it is from then
    on, also in a run that resumes this one.

    A teacher that is right on less than ``chance + 0.25 (1 - chance)`` of the images gets a warning. If its answers
    would be right with its classes in another order, the warning names that order. A teacher that names one class far
    too often gets a warning with the figures: on more images than are of that class by a twentieth of all, or three
    times as often, and by more than four standard errors of chance. Needs a module whose ``teacher``
    is a `Teacher`, or any module from images to logits ``(B, K)``, and batches that begin with image and target. A
    teacher without logits is not checked.

    Raises:
        ValueError: Before the first step, if the teacher's logits are not finite.

    Example:
        >>> trainer = Trainer(callbacks=TeacherCheck(), logger=False)
    """

    def __init__(self) -> None:
        self._is_due = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_due = trainer.global_step == 0

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:  # with a batch, a teacher can choose how to be fast
        is_due, self._is_due = self._is_due, False
        teacher = getattr(pl_module, "teacher", None)
        if not is_due or not isinstance(teacher, nn.Module) or trainer.val_dataloaders is None:
            return
        tune(trainer, teacher, batch)
        # What a data module does to training batches, such as mixing, must not be done to these.
        stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
        try:
            counts = _count_answers(trainer, teacher)
        finally:
            trainer.state.stage = stage
        images = int(counts.answers.sum())
        if counts.plain is not None and _loses_too_much(counts):
            rank_zero_warn(
                f"the teacher is right on {_accuracy(counts.answers):.2%} of the validation set as it runs fastest and "
                f"on {_accuracy(counts.plain):.2%} run plainly in {_precision(teacher)}, which it does from now on"
            )
            for network in fast_networks(teacher).values():
                network.switch_back(trainer.strategy.root_device)
            if isinstance(teacher, TeacherCache) and teacher.reopen is not None:
                teacher.reopen()
            counts = _Counts(counts.plain, counts.plain_broken, None, 0, counts.classes)
        if counts.broken:
            raise ValueError(
                f"the teacher's outputs are NaN or infinite on {counts.broken} of {images} images of the validation "
                "set: check its weights, its mean and std, and its precision"
            )
        if images:
            data = getattr(trainer, "datamodule", None)
            _report(getattr(teacher, "asked", teacher), counts, getattr(data, "class_names", None))


class _Counts(NamedTuple):
    """How many images of each class (row) the teacher takes for each class (column), and the same of it run plainly.

    Of many classes only how many it takes for their own class (place 0, 0) and for another one (place 0, 1). ``broken``
    are those for which its logits are not finite. ``classes`` is how many its logits have.
    """

    answers: Tensor
    broken: int
    plain: Tensor | None
    plain_broken: int
    classes: int


def _accuracy(answers: Tensor) -> float:
    return float(answers.diagonal().sum() / answers.sum())


def _loses_too_much(counts: _Counts) -> bool:
    if counts.plain is None:
        return False
    lost = int((counts.plain - counts.answers).diagonal().sum())
    return lost > _MOST_LOSS * int(counts.plain.sum()) or counts.broken > counts.plain_broken


def _precision(teacher: nn.Module) -> str:
    return str(next(teacher.parameters()).dtype).removeprefix("torch.")


def _report(teacher: nn.Module, counts: _Counts, class_names: Sequence[str] | None) -> None:
    """Print the accuracy, and warn of a low one with what may cause it."""
    answers, images = counts.answers, int(counts.answers.sum())
    has_table = len(answers) == _num_classes(teacher)
    bias = _bias(teacher, answers, class_names) if has_table else ""
    accuracy, chance = _accuracy(answers), 1 / counts.classes
    least = knows_little_below(chance)
    if counts.plain is not None:
        ways = sorted({str(run.variant) for run in fast_networks(teacher).values() if run.was_fast})
        rank_zero_info(
            f"teacher: runs {' or '.join(ways) or 'as its cache says'}: right on {accuracy:.2%} of the validation set, "
            f"run plainly in {_precision(teacher)} on {_accuracy(counts.plain):.2%}"
        )
    rank_zero_info(f"teacher: accuracy {accuracy:.2%} on {images} images of the validation set")
    if accuracy >= least:
        if bias:
            rank_zero_warn(f"the teacher favours a class, and the student will too: {bias}")
        return
    finding = f"the teacher is right on {accuracy:.1%} of the validation set, where chance is {chance:.1%}"
    answered_as = answers.argmax(dim=1)
    reordered_accuracy = float(answers.gather(1, answered_as[:, None]).sum() / images)
    every_class_is_there = has_table and bool(answers.any(dim=1).all())
    is_permutation = every_class_is_there and len(answers) == len(set(answered_as.tolist()))
    if is_permutation and reordered_accuracy >= least:
        rank_zero_warn(
            f"{finding}: its classes look permuted, in another order it would be right on {reordered_accuracy:.1%}; "
            f"{_advice_to_reorder(teacher, answered_as.tolist())}"
        )
    else:
        rank_zero_warn(f"{finding}: a student will learn little from it; {_advice(teacher)}{bias and f'; {bias}'}")


def _bias(teacher: nn.Module, answers: Tensor, class_names: Sequence[str] | None) -> str:
    """Say which class the teacher names far too often, and how to correct that; nothing if there is none."""
    counts = answers.double()
    named, there = counts.sum(dim=0), counts.sum(dim=1)
    wrong = named + there - 2 * counts.diagonal()  # named though it is another, or another named instead
    excess = named - there
    is_far = (excess >= _PART * counts.sum()) | (named >= _FACTOR * there)
    is_far &= excess > _ERRORS * wrong.sqrt()
    number = int(torch.where(is_far, excess, -torch.inf).argmax())
    if not is_far[number]:
        return ""
    groups = getattr(teacher, "groups", None)
    names = class_names or getattr(groups, "names", None) or range(len(answers))
    share, truth = (float(count[number] / counts.sum()) for count in (named, there))
    mend = "if its training data had more of it, say so with the teacher's teacher_prior"
    if getattr(groups, "target_prior", None) == "teacher":
        mend = "give the teacher target_prior='uniform'"
    return f"it says {names[number]} for {share:.1%} of the images, of which {truth:.1%} are {names[number]}: {mend}"


def _count_answers(trainer: Trainer, teacher: nn.Module) -> _Counts:
    """Ask the teacher about the validation set, over all ranks; plainly too, if it ran otherwise."""
    classes = _num_classes(teacher)
    side = classes if classes is not None and classes <= _MOST_CLASSES else 2
    loaders = cast(list[Iterable[object]], loaders_of(trainer, "val"))
    has_table, counter, runs = side == classes, SampleCounter(), fast_networks(teacher).values()
    answered = 0
    for run in runs:
        run.was_fast = False  # it may not be asked at all, if there is a cache
    # The last two places count the images whose logits are not finite, and those that were asked about plainly.
    answers, plain = (
        torch.zeros(side * side + 2, dtype=torch.int64, device=trainer.strategy.root_device) for _ in range(2)
    )

    def count_up(counts: Tensor, logits: Tensor, target: Tensor) -> None:
        counts[-2] += (~logits.isfinite().all(dim=1)).sum()
        counts[-1] += len(target)
        answer, labels = logits.argmax(dim=1), target if target.dim() == 1 else target.argmax(dim=1)
        place = labels * side + answer if has_table else (labels != answer).long()
        counts[:-2] += torch.bincount(place, minlength=side * side)

    # Loaders draw from torch's generator: the run must be the same with and without this callback.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.precision_plugin.forward_context():
        for loader_number, (loader, limit) in enumerate(zip(loaders, trainer.num_val_batches, strict=False)):
            for number, raw_batch in enumerate(loader):
                if number >= limit:
                    break
                raw_batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(raw_batch))
                batch = Batch.of(raw_batch)
                logits = _ask(teacher, batch, loader_number)
                if logits is None:
                    continue
                answered = logits.shape[1]
                count = counter.count(loader, number, len(batch.target), loader_number)
                count_up(answers, logits[:count], batch.target[:count])
                if any(run.was_fast or run.is_rough(batch.image.device) for run in runs):
                    with ExitStack() as stack:
                        for run in runs:
                            stack.enter_context(run.plainly())
                        if isinstance(teacher, TeacherCache):  # which has other answers
                            plain_logits = teacher.ask(batch).logits
                        else:
                            plain_logits = _ask(teacher, batch, loader_number)
                    if plain_logits is not None:
                        count_up(plain, plain_logits[:count], batch.target[:count])
    answers, plain = (trainer.strategy.reduce(counts, reduce_op="sum") for counts in (answers, plain))
    has_plain = int(plain[-1]) == int(answers[-1]) > 0
    table, plain_table = (counts[:-2].view(side, side) for counts in (answers, plain))
    return _Counts(table, int(answers[-2]), plain_table if has_plain else None, int(plain[-2]), answered)


def _ask(teacher: nn.Module, batch: Batch, loader: int) -> Tensor | None:
    if not isinstance(teacher, Teacher):
        logits: Tensor = teacher(batch.image)
        return logits
    with teacher.evaluating(loader):
        return teacher(batch).logits


def _num_classes(teacher: nn.Module) -> int | None:
    classes = getattr(teacher, "num_classes", None)
    return classes if isinstance(classes, int) else None


def _advice_to_reorder(teacher: nn.Module, places: list[int]) -> str:
    own_advice = getattr(teacher, "advice_to_reorder", None)
    return str(own_advice(places)) if callable(own_advice) else f"give the teacher classes={[[k] for k in places]}"


def _advice(teacher: nn.Module) -> str:
    card = getattr(getattr(teacher, "model", None), "card", None)
    trained = card.get("trained") if isinstance(card, dict) else None
    if trained and trained.get("epochs"):  # it brings its own statistics and size
        return (
            f"it was trained for {counted(trained['epochs'], 'epoch')}: train it longer (--teacher_epochs of distill), "
            "from pretrained weights or on more images, or take another teacher"
        )
    groups = "" if getattr(teacher, "groups", None) is None else ", each with the right numbers of the teacher's"
    return f"check the teacher's weights, its mean, std and input_size, and that its classes are the data's{groups}"
