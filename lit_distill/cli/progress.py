"""How far a fit has come."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from lit_distill.datamodules.resuming import progress_of


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return all callbacks of a trainer."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set from outside of the class
    return callbacks


def is_dry_run(trainer: Trainer) -> bool:
    """Tell whether ``fast_dev_run`` is on."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set from outside of the class


def ends_window(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether the optimizer has taken its step after this batch."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_finished(trainer: Trainer) -> bool:
    """Tell whether a fit is over: it has all its epochs, or a callback such as ``EarlyStopping`` has ended it."""
    epochs, steps = progress_of(trainer)[0], trainer.global_step
    if trainer.should_stop and epochs >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0):
        seconds = [callback.time_remaining() for callback in callbacks_of(trainer) if isinstance(callback, Timer)]
        return not any(left is not None and left <= 0 for left in seconds)
    return steps >= trainer.max_steps > 0 if trainer.max_epochs in (None, -1) else epochs >= trainer.max_epochs
