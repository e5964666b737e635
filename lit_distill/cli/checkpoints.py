"""The two checkpoint callbacks of a run: the best validation, and the last epoch."""

from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from typing_extensions import override


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
    """``last.ckpt``; a class of its own, so that its state is told from that of another plain ``ModelCheckpoint``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(filename="last", enable_version_counter=False, **kwargs)
