"""The two checkpoint callbacks of a run: the best validation, and the last epoch."""

from datetime import timedelta
from itertools import chain, count
from pathlib import Path
import tempfile
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from typing_extensions import override

from lit_distill.cli.lock import Lock
from lit_distill.datamodules.resuming import batches_in_open_window, progress_of

# Whether the run that wrote the checkpoint had come to its end.
FINISHED = "lit_distill_finished"


class BestCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` whose file holds the weights that its metric was measured on.

    A new value of the metric is compared, and saved, while the weights are those it was measured on: where validation
    comes within an epoch, right after it; where it ends an epoch, at the epoch's end, from which a run resumes whole.
    An epoch without validation saves nothing, and neither does a value that is NaN. After a resume into a new folder
    the best of the run before still counts.

    Args:
        every_n_train_steps: Steps between checkpoints within an epoch, which are ``last.ckpt``: see `within`. Without a
            ``monitor`` they are this callback's own.
        train_time_interval: Time between them.
        **kwargs: Those of ``ModelCheckpoint``. ``filename`` is by default ``best-epoch=N-METRIC=VALUE``; with a
            ``monitor``, ``save_on_train_epoch_end`` changes nothing.

    Attributes:
        within: The arguments that are for ``last.ckpt``.
    """

    def __init__(
        self,
        *,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        within = {"every_n_train_steps": every_n_train_steps, "train_time_interval": train_time_interval}
        self.within: dict[str, Any] = {name: value for name, value in within.items() if value}
        monitor = kwargs.get("monitor")
        if monitor is not None and kwargs.get("filename") is None:
            name = monitor.rpartition("/")[2]
            kwargs |= {"filename": f"best-epoch={{epoch}}-{name}={{{monitor}:.4f}}", "auto_insert_metric_name": False}
        super().__init__(**kwargs, **(self.within if monitor is None else {}))
        self._by_validation = False  # whether validation measures the metric, not training
        self._due = False  # whether there is a value that nothing was saved for yet

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None:
            super().on_validation_end(trainer, pl_module)
            return
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        measured = trainer.fit_loop.epoch_loop.val_loop._results.metrics(on_step=False)["callback"]
        self._by_validation = self._due = self.monitor in measured
        epoch_ends = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self._due and not (epoch_ends and not _averages_at_the_epochs_end(trainer)):
            self._save_best(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None:
            super().on_train_epoch_end(trainer, pl_module)
        elif self._due or not self._by_validation:
            self._save_best(trainer)

    def _save_best(self, trainer: Trainer) -> None:
        self._due = False
        value = trainer.callback_metrics.get(str(self.monitor))
        to_come = value is None and trainer.enable_validation and not trainer.fit_loop.epoch_loop.val_loop._has_run
        if self._should_skip_saving_checkpoint(trainer) or to_come or (value is not None and value.isnan()):
            return
        if self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here, self.dirpath = self.dirpath, state_dict.get("dirpath", self.dirpath)
        super().load_state_dict(state_dict)
        self.dirpath = here


def _averages_at_the_epochs_end(trainer: Trainer) -> bool:
    """Tell whether averaged weights, which are what is validated and saved, change before ``on_train_epoch_end``."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    averages = (callback for callback in callbacks if isinstance(callback, WeightAveraging))
    return any(average.should_update(epoch_idx=trainer.current_epoch) for average in averages)


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt``, from which a run goes on to the bits of one that was never cut off.

    It is written after every epoch, when a stop is asked for, and after the steps or the time given. Within an epoch
    that is at the end of a gradient accumulation window: gradients that wait for the optimizer's step are in no
    checkpoint.

    A run keeps to its own file: where the folder has another run's ``last.ckpt``, it writes ``last-v1.ckpt``.

    Args:
        dirpath: The folder; by default the logger's.
        resumed_from: The checkpoint that the run goes on from, which it may replace.
        **within: ``every_n_train_steps`` or ``train_time_interval``.

    Attributes:
        written: Whether this run has written its checkpoint.
        epochs: Epochs that are complete in it.
    """

    def __init__(self, dirpath: str | Path | None = None, resumed_from: str | None = None, **within: Any) -> None:
        super().__init__(dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=True, **within)
        self.best_model_path = resumed_from if resumed_from is not None and Path(resumed_from).is_file() else ""
        self.written = False
        self.epochs = 0
        self._lock: Lock | None = None

    @property
    def path(self) -> Path:
        """The file of this run."""
        return Path(str(self.dirpath), f"{self.filename}{self.FILE_EXTENSION}")

    @property
    @override
    def state_key(self) -> str:
        return type(self).__name__  # whatever it is given: it has no state that another run needs

    @override
    def state_dict(self) -> dict[str, Any]:
        return {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the path was given."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first step whether checkpoints can be written, and under which name."""
        name = None
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for callback in trainer.checkpoint_callbacks:
                folder = getattr(callback, "dirpath", None)
                if folder is not None:
                    Path(folder).mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryFile(dir=folder):
                        pass
            name = self._claim()
        self.filename = trainer.strategy.broadcast(name) or self.filename

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_window(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # Also if it was written after the epoch's last step: that one knows nothing of the validation.
            self._save_checkpoint(trainer, str(self.path))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            # Lightning ends between two steps, and all processes come here. After another error they may not.
            if isinstance(exception, SIGTERMException) and not self._should_skip_saving_checkpoint(trainer):
                self._save_checkpoint(trainer, str(self.path))
        finally:
            self.teardown(trainer, pl_module, "fit")  # which Lightning calls only at a run's own end

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have every checkpoint of the run, not only ``last.ckpt``, count no more than what it has behind it."""
        checkpoint[FINISHED] = finished(trainer)
        loop = checkpoint["loops"]["fit_loop"]
        waiting = batches_in_open_window(trainer)
        for counts in (loop["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            # Their gradients are in no checkpoint: whoever resumes from it trains these batches again.
            counts.update({name: counts[name] - waiting for name in ("ready", "started", "processed", "completed")})
        if within_ended_epoch(trainer):
            # Lightning counts an epoch as done that max_steps or a callback has cut off, and would not go on with it.
            for counts in (loop["epoch_progress"][which] for which in ("total", "current")):
                counts["completed"] -= counts["completed"] == counts["processed"]
                counts["processed"] -= 1

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._lock is not None:
            self._lock.release()

    @override
    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._save_checkpoint(trainer, str(self.path))

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.best_model_path, self.written, self.epochs = filepath, True, progress_of(trainer)[0]

    def _claim(self) -> str:
        """Return the first name whose file is free, or is this run's own."""
        resumed_file = Path(self.best_model_path).resolve()
        names = chain(["last"], (f"last-v{number}" for number in count(self.STARTING_VERSION)))
        while True:
            name = next(names)
            path = Path(str(self.dirpath), f"{name}{self.FILE_EXTENSION}")
            lock = Lock(path.with_name(f".{path.name}.lock"))
            if lock.acquire():
                if path.resolve() == resumed_file or not path.exists():
                    self._lock = lock
                    return name
                lock.release()


def ends_window(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether the optimizer has taken its step after this batch."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def finished(trainer: Trainer) -> bool:
    """Tell whether a fit has come to its end: all its epochs, or a callback such as ``EarlyStopping`` has ended it."""
    epochs, steps = progress_of(trainer)[0], trainer.global_step
    if trainer.should_stop and epochs >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0):
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        return not any(isinstance(callback, Timer) and _is_up(callback) for callback in callbacks)
    return steps >= trainer.max_steps > 0 if trainer.max_epochs in (None, -1) else epochs >= trainer.max_epochs


def _is_up(timer: Timer) -> bool:
    remaining = timer.time_remaining()
    return remaining is not None and remaining <= 0


def within_ended_epoch(trainer: Trainer) -> bool:
    """Tell whether Lightning has ended an epoch before its last batch."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return epoch.ready <= epoch.processed and progress_of(trainer)[1] > 0
