"""The two checkpoint callbacks of a run: the best validation, and the last epoch."""

from contextlib import ExitStack
from datetime import timedelta
from itertools import chain, count
from pathlib import Path
import tempfile
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from typing_extensions import override

from lit_distill.cli.lock import Lock
from lit_distill.cli.progress import callbacks_of, ends_window, is_dry_run, is_finished
from lit_distill.datamodules.resuming import batches_in_open_window, progress_of

# The key of a checkpoint that tells whether the run that wrote it was over.
FINISHED = "lit_distill_finished"
# What Lightning counts of the batches of an epoch.
_BATCH_COUNTS = ("ready", "started", "processed", "completed")


class BestCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` whose file holds the weights that its metric was measured on.

    A new value of the metric is compared, and saved, while the weights are those it was measured on. After a validation
    within an epoch that is at once. After a validation that ends an epoch it is at the epoch's end, from which a run
    resumes whole. An epoch without validation saves nothing, and neither does a value that is NaN. After a resume into
    a new folder the best of the run before still counts.

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
        self._has_validated = False
        self._by_validation = False  # whether validation measures the metric, not training
        self._is_due = False  # whether there is a value that nothing was saved for yet

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None:
            super().on_validation_end(trainer, pl_module)
            return
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # `callback_metrics` keeps old values; only the loop's results tell what this validation has measured.
        measured = trainer.fit_loop.epoch_loop.val_loop._results.metrics(on_step=False)["callback"]
        self._has_validated = True
        self._by_validation = self._is_due = self.monitor in measured
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self._is_due and (not ends_epoch or _averages_at_epoch_end(trainer)):
            self._save_best(trainer, pl_module, at_epoch_end=False)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None:
            super().on_train_epoch_end(trainer, pl_module)
        elif self._is_due or not self._by_validation:
            self._save_best(trainer, pl_module, at_epoch_end=True)

    def _save_best(self, trainer: Trainer, pl_module: LightningModule, at_epoch_end: bool) -> None:
        self._is_due = False
        value = trainer.callback_metrics.get(str(self.monitor))
        if value is None and trainer.enable_validation and not self._has_validated:
            return
        if value is not None and value.isnan():
            return
        # Lightning saves in one of its two hooks, by an argument of the constructor that has no public attribute.
        self._save_on_train_epoch_end = at_epoch_end
        hook = super().on_train_epoch_end if at_epoch_end else super().on_validation_end
        hook(trainer, pl_module)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        dirpath, self.dirpath = self.dirpath, state_dict.get("dirpath", self.dirpath)
        super().load_state_dict(state_dict)
        self.dirpath = dirpath


def _averages_at_epoch_end(trainer: Trainer) -> bool:
    """Tell whether averaged weights, which are what is validated and saved, change before ``on_train_epoch_end``."""
    return any(
        average.should_update(epoch_idx=trainer.current_epoch) for average in callbacks_of(trainer, WeightAveraging)
    )


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt``, from which a run continues to the bits of one that was never cut off.

    It is written after every epoch, when a stop is asked for, and after the steps or the time given. Within an epoch
    that is at the end of a gradient accumulation window: gradients that wait for the optimizer's step are in no
    checkpoint.

    A run keeps to its own file: if the folder has another run's ``last.ckpt``, it writes ``last-v1.ckpt``.

    Args:
        dirpath: The folder; by default the logger's.
        resumed_from: The checkpoint that the run continues from, which it may replace.
        **within: ``every_n_train_steps`` or ``train_time_interval``.

    Attributes:
        written: Whether this run has written its checkpoint.
        step: The step that it was written at; 0 before.
        epochs: Epochs that are complete in it.
    """

    def __init__(self, dirpath: str | Path | None = None, resumed_from: str | None = None, **within: Any) -> None:
        super().__init__(dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=True, **within)
        self.best_model_path = resumed_from if resumed_from is not None and Path(resumed_from).is_file() else ""
        self.written = False
        self.step = self.epochs = 0
        self._claims = ExitStack()

    @property
    def path(self) -> Path:
        """The file of this run."""
        return Path(str(self.dirpath), f"{self.filename}{self.FILE_EXTENSION}")

    @property
    @override
    def state_key(self) -> str:
        return type(self).__name__  # whatever its arguments: it has no state that another run needs

    @override
    def state_dict(self) -> dict[str, object]:
        return {}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Do nothing: the constructor was given the path."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first step whether checkpoints can be written, and under which name."""
        if trainer.is_global_zero and not is_dry_run(trainer):
            for callback in callbacks_of(trainer, ModelCheckpoint):
                Path(str(callback.dirpath)).mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=callback.dirpath).close()
            self.filename = self._claim()
        self.filename = trainer.strategy.broadcast(self.filename)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        if ends_window(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_dry_run(trainer):
            # Even if it was written after the epoch's last step: that checkpoint does not know of the validation.
            self._save_checkpoint(trainer, str(self.path))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            # Lightning raises this between two steps, in all processes. After another error some may not come here.
            is_new = trainer.global_step != self.step and not is_dry_run(trainer)
            if isinstance(exception, SIGTERMException) and is_new:
                self._save_checkpoint(trainer, str(self.path))
        finally:
            self.teardown(trainer, pl_module, "fit")  # Lightning calls it only when a run ends by itself

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the counts of every checkpoint of the run to what its weights have seen."""
        checkpoint[FINISHED] = is_finished(trainer)
        loop = checkpoint["loops"]["fit_loop"]
        waiting = batches_in_open_window(trainer)
        is_cut = progress_of(trainer)[0] < loop["epoch_progress"]["current"]["processed"]
        for scope in ("total", "current"):
            batches, epochs = loop["epoch_loop.batch_progress"][scope], loop["epoch_progress"][scope]
            # The gradients of waiting batches are in no checkpoint: a run that resumes from it trains them again.
            batches |= {name: batches[name] - waiting for name in _BATCH_COUNTS}
            if is_cut:
                # Lightning counts an epoch that max_steps or a callback cuts off as done, and would not finish it.
                epochs["completed"] -= epochs["completed"] == epochs["processed"]
                epochs["processed"] -= 1

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._claims.close()

    # Lightning has no public way to choose the file of a checkpoint, or to hear that it was written.
    @override
    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._save_checkpoint(trainer, str(self.path))

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.best_model_path, self.written = filepath, True
        self.step, self.epochs = trainer.global_step, progress_of(trainer)[0]

    def _claim(self) -> str:
        """Return the first name whose file is free, or is this run's own."""
        resumed_file = Path(self.best_model_path).resolve()
        names = chain(["last"], map("last-v{}".format, count(self.STARTING_VERSION)))
        while True:
            name = next(names)
            path = self.path.with_stem(name)
            lock = Lock(path.with_name(f".{path.name}.lock"))
            if lock.acquire():
                if path.resolve() == resumed_file or not path.exists():
                    self._claims.callback(lock.release)
                    return name
                lock.release()
