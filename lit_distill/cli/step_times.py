"""Measure how long a step takes, for a dry run."""

from statistics import median
import time

from lightning.pytorch import Callback, LightningModule, Trainer
import torch
from typing_extensions import override

from lit_distill.callbacks import TeacherCaching, TeacherCheck
from lit_distill.cli.progress import all_callbacks
from lit_distill.models.teacher_cache import TeacherCache


class StepTimes(Callback):
    """Measure the seconds of a training step and of a validation step, and keep them in the checkpoint.

    The first step of each kind is left out: loaders, kernels and memory are made in it. Of a run with a teacher's cache
    the seconds of asking the teacher are kept too.

    Args:
        check_teacher: Leave the `TeacherCheck` in: a teacher of a few steps is not worth a warning.
    """

    def __init__(self, check_teacher: bool = True) -> None:
        self.check_teacher = check_teacher
        self._began = {"train": 0.0, "val": 0.0}
        self._steps = {"train": 0, "val": 0}
        self._seconds = {"train": 0.0, "val": 0.0}
        self._batches = {"train": 0.0, "val": 0.0}
        self._cache: TeacherCache | None = None
        self._views = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.check_teacher:  # another list, since Lightning goes through this one now
            vars(trainer)["callbacks"] = [each for each in all_callbacks(trainer) if not isinstance(each, TeacherCheck)]
        caching = next((each for each in all_callbacks(trainer) if isinstance(each, TeacherCaching)), None)
        teacher = getattr(pl_module, "teacher", None)
        if caching is not None and isinstance(teacher, TeacherCache):
            self._cache, self._views = teacher, caching.views

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        self._batches = {"train": trainer.num_training_batches, "val": sum(trainer.num_val_batches)}
        self._count("train")

    @override
    def on_validation_batch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        if trainer.sanity_checking:
            self._count("val")

    def _count(self, kind: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        if self._steps[kind]:
            self._seconds[kind] = (now - self._began[kind]) / self._steps[kind]
        else:
            self._began[kind] = now
        self._steps[kind] += 1

    @override
    def state_dict(self) -> dict[str, float]:
        """Return the seconds and steps of an epoch, those in which it asks a teacher with a cache, and its views."""
        seconds = sum(self._batches[kind] * self._seconds[kind] for kind in self._batches)
        asks = [] if self._cache is None else self._cache.asks
        asking = median(answered - asked for asked, answered in asks[1:] or asks) if asks else 0.0
        return {
            "seconds": seconds,
            "steps": self._batches["train"],
            "asking": asking * self._batches["train"],
            "views": self._views,
        }
