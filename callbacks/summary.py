"""The short table at the end of a run."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lit_distill.checks import check_choice

_TWO_HEADS = {
    "teacher_accuracy": "teacher accuracy",
    "accuracy_class": "student accuracy, class head",
    "accuracy_distill": "student accuracy, distillation head",
    "accuracy_mean_logits": "student accuracy, mean of logits",
    "accuracy_mean_probs": "student accuracy, mean of softmaxes",
    "agreement": "agreement with the teacher",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error",
}
_ONE_HEAD = {
    "teacher_accuracy": "teacher accuracy",
    "accuracy_class": "student accuracy",
    "agreement": "agreement with the teacher",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error",
}


class RunSummary(Callback):
    """Print the validation metrics of the last and of the best epoch when training ends, and where the files are.

    Args:
        monitor: The metric that tells the best epoch; the first epoch to reach the best value counts.
        mode: ``"max"`` or ``"min"``.

    Example:
        >>> trainer = Trainer(callbacks=RunSummary(), logger=False)
    """

    def __init__(self, monitor: str = "val/accuracy_mean_probs", mode: str = "max") -> None:
        super().__init__()
        check_choice(("max", "min"), mode=mode)
        self.monitor = monitor
        self.mode = mode
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self._has_trained = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_trained = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._has_trained = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.last = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.last |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
        sign = 1 if self.mode == "max" else -1
        worst = -sign * float("inf")
        if sign * self.last.get(self.monitor, worst) > sign * self.best.get(self.monitor, worst):
            self.best = self.last

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = []
        if self.last:
            predicts = getattr(pl_module, "predicts", None) if getattr(pl_module, "trains_both_heads", False) else None
            parts.append(self._table(predicts))
            if self.last["step"] != trainer.global_step:
                parts.append(
                    f"note: the last validation was at step {self.last['step']:.0f} of {trainer.global_step}: the "
                    "column 'last epoch' is of that moment, and the last checkpoint was not validated"
                )
        if trainer.ckpt_path and not self._has_trained and trainer.max_epochs == trainer.current_epoch:
            parts.append(
                f"note: nothing was trained, since {short_path(str(trainer.ckpt_path))} has all {trainer.max_epochs} "
                "epochs: a larger max_epochs goes on"
            )
        places = checkpoint_paths(trainer)
        if trainer.log_dir:
            places["logs"] = short_path(trainer.log_dir)
        parts.append("\n".join(f"{name:<17}{path}" for name, path in places.items()))
        rank_zero_only(print)("\n" + "\n\n".join(parts), flush=True)

    @override
    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"last": self.last, "best": self.best}

    @override
    def load_state_dict(self, state_dict: dict[str, dict[str, float]]) -> None:
        self.last, self.best = state_dict["last"], state_dict["best"]

    def _table(self, predicts: str | None) -> str:
        """Return the table as text, one line a metric, the head that ``predicts`` marked; None has one head alone."""
        head = f"{'validation':<38}{'last epoch':>12}{'best epoch':>12}"
        lines = [head, "-" * len(head)]
        lines.append(f"{'epoch, counted from 0':<38}{self.last['epoch']:>12.0f}{self.best.get('epoch', 0):>12.0f}")
        for name, label in (_ONE_HEAD if predicts is None else _TWO_HEADS).items():
            key = f"val/{name}"
            if key in self.last:
                style = "12.4f" if name in ("nll", "ece") else "12.2%"
                mark = "  predicts" if name == f"accuracy_{predicts}" else ""
                lines.append(f"{label:<38}{self.last[key]:>{style}}{self.best.get(key, float('nan')):>{style}}{mark}")
        return "\n".join(lines)


def checkpoint_paths(trainer: Trainer) -> dict[str, str]:
    """Return the paths of the run's best and last checkpoints, as far as there are any."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return {
        "last checkpoint" if callback.monitor is None else "best checkpoint": short_path(callback.best_model_path)
        for callback in callbacks
        if callback.best_model_path
    }


def short_path(path: str) -> str:
    """Return the path from the current folder, where it is below that."""
    resolved, here = Path(path).resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else path
