"""How far a fit has come."""

from typing import TypeVar, cast

from lightning.pytorch import Callback, Trainer

from lit_distill.datamodules.resuming import progress_of

C = TypeVar("C", bound=Callback)


def all_callbacks(trainer: Trainer) -> list[Callback]:
    """Return the trainer's own list of callbacks."""
    return cast(list[Callback], vars(trainer)["callbacks"])  # Lightning sets it from outside of the class


def callbacks_of(trainer: Trainer, kind: type[C]) -> list[C]:
    """Return the callbacks of a class."""
    return [callback for callback in all_callbacks(trainer) if isinstance(callback, kind)]


def is_dry_run(trainer: Trainer) -> bool:
    """Tell whether ``fast_dev_run`` is on."""
    return bool(vars(trainer)["fast_dev_run"])  # set from outside of the class, too


def ends_window(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether the optimizer has taken its step after this batch."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_finished(trainer: Trainer) -> bool:
    """Tell whether a fit is over: it has all its epochs, or a callback such as ``EarlyStopping`` has ended it."""
    epochs, steps = progress_of(trainer)[0], trainer.global_step
    if trainer.should_stop and epochs >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0):
        return True
    return steps >= trainer.max_steps > 0 if trainer.max_epochs in (None, -1) else epochs >= trainer.max_epochs
