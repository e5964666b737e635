"""What the teacher knows, before anybody learns from it."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch
from torch import Tensor
from typing_extensions import override

from lit_distill.padding import SampleCounter

# Of more classes the table of who was taken for whom would not be small.
_MOST_CLASSES = 2000


class TeacherCheck(Callback):
    """Measure the teacher's accuracy on the validation set before the first step, and say so.

    A teacher that is right on less than ``chance + 0.25 (1 - chance)`` of the images is called out with a warning, and
    one whose answers become right when its classes change places is told in which order they are. Needs a module with
    ``pl_module.teacher(image)`` that returns logits ``(B, K)``, and batches that begin with image and target.

    Raises:
        ValueError: Before the first step, if the teacher's logits are not finite.

    Example:
        >>> trainer = Trainer(callbacks=TeacherCheck(), logger=False)
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        teacher: Any = getattr(pl_module, "teacher", None)
        loaders = trainer.val_dataloaders
        if teacher is None or loaders is None or trainer.global_step > 0:
            return
        # What a data module does to training batches, such as mixing, is not to be done to these.
        stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
        try:
            loaders = list(loaders.values()) if isinstance(loaders, dict) else loaders
            answers, broken = self._ask(trainer, teacher, loaders if isinstance(loaders, list) else [loaders])
        finally:
            trainer.state.stage = stage
        images, classes = int(answers.sum()), teacher.num_classes or len(answers)
        if not images:
            return
        if broken:
            raise ValueError(
                f"the teacher's outputs are NaN or infinite on {broken} of {images} images of the validation set: "
                "check its weights, its mean and std, and its precision"
            )
        accuracy, chance = float(answers.diagonal().sum() / images), 1 / classes
        least = chance + 0.25 * (1 - chance)
        rank_zero_info(f"teacher: accuracy {accuracy:.2%} on {images} images of the validation set")
        if accuracy >= least:
            return
        said = f"the teacher is right on {accuracy:.1%} of the validation set, where chance is {chance:.1%}: "
        taken_for = answers.argmax(dim=1)
        in_place = float(answers.gather(1, taken_for[:, None]).sum() / images)
        if len(answers) == classes == len(set(taken_for.tolist())) and in_place >= least:
            places = taken_for.tolist()
            order = getattr(teacher, "others", _as_groups)(places)
            rank_zero_warn(
                f"{said}its classes look permuted, in another order it would be right on {in_place:.1%}; {order}"
            )
        else:
            rank_zero_warn(f"{said}a student will learn little from it; {_advice(teacher)}")

    def _ask(self, trainer: Trainer, teacher: Any, loaders: list[Any]) -> tuple[Tensor, int]:
        """Return how many images of each class (row) the teacher takes for each class (column), over all ranks.

        And on how many its logits are not finite.

        Of many classes, only how many it takes for what they are (place 0, 0) and for another class (place 0, 1).
        """
        few = teacher.num_classes is not None and teacher.num_classes <= _MOST_CLASSES
        side, counter = teacher.num_classes if few else 2, SampleCounter()
        answers = torch.zeros(side, side, dtype=torch.int64, device=trainer.strategy.root_device)
        broken = answers.new_zeros(())
        # Loaders draw from torch's generator: the run is to be the same with and without this callback.
        with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.precision_plugin.forward_context():
            for which, (loader, limit) in enumerate(zip(loaders, trainer.num_val_batches, strict=False)):
                for number, batch in enumerate(loader):
                    if number >= limit:
                        break
                    batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                    image, target = batch[0], batch[1]
                    count = counter.count(loader, number, len(target), which)
                    logits, target = teacher(image)[:count], target[:count]
                    answer = logits.argmax(dim=1)
                    broken += (~logits.isfinite().all(dim=1)).sum()
                    labels = target.long() if target.dim() == 1 else target.argmax(dim=1)
                    place = labels * len(answers) + answer if few else (labels != answer).long()
                    answers += torch.bincount(place, minlength=answers.numel()).view_as(answers)
        sums = (trainer.strategy.reduce(counts, reduce_op="sum") for counts in (answers, broken))
        return next(sums), int(next(sums))


def _as_groups(places: list[int]) -> str:
    return f"give the teacher classes={[[place] for place in places]}"


def _advice(teacher: Any) -> str:
    card = getattr(getattr(teacher, "model", None), "card", None)
    epochs = ((card or {}).get("trained") or {}).get("epochs")
    if epochs:  # it brings its own statistics and size
        return (
            f"it was trained for {epochs} epochs: train it longer (--teacher_epochs of distill), from pretrained "
            "weights or on more images, or take another teacher"
        )
    groups = "" if getattr(teacher, "groups", None) is None else ", each with the right numbers of the teacher's"
    return f"check the teacher's weights, its mean, std and input_size, and that its classes are the data's{groups}"
