"""Where training stops when it is asked to, and the line that says how to continue."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
import os
from pathlib import Path
import shlex
import shutil
import signal
import sys

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lit_distill.callbacks import RunSummary
from lit_distill.callbacks.summary import short_path
from lit_distill.cli.arguments import take
from lit_distill.cli.checkpoints import LastCheckpoint
from lit_distill.cli.progress import callbacks_of, ends_window, is_dry_run, is_finished
from lit_distill.cli.signals import LAUNCHER, in_stage, is_orphan, say_at_once, stop_signals
from lit_distill.datamodules.resuming import progress_of

_CAUSES: dict[int | None, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", None: "an error"}
# The limit that ended a run would end the next one before its first step, or all too soon.
_LIFTED = {"max_time": ["--trainer.max_time=null"], "max_steps": ["--trainer.max_steps=-1"]}


class Stopping(Callback):
    """End training on a signal, or when its time is up, at the end of a gradient accumulation window.

    The epoch then neither counts as done nor is validated. All processes end at the same step, whichever was asked.

    Args:
        max_time: Time that this process may train, as Lightning's ``Timer`` takes it. Lightning's own limit counts the
            time of the runs before a resume, and gives up the rest of the epoch.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        super().__init__()
        self.timer = Timer(max_time, verbose=False)  # None: without a limit

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.take()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.take()
        stop_signals.check()
        stop_signals.listen(_announce if trainer.is_global_zero else lambda number: None)
        self.timer.on_train_start(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        is_last_of_all = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if ends_window(trainer, batch_idx) and not is_last_of_all:
            self._stop_if_asked(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_finished(trainer):
            self._stop_if_asked(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.listen(None)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            print(flush=True)  # the bar leaves its line open, and what is wrong stands on a line of its own

    def _stop_if_asked(self, trainer: Trainer) -> None:
        remaining = self.timer.time_remaining()
        is_asked = stop_signals.received is not None or (remaining is not None and remaining <= 0)
        if trainer.strategy.reduce_boolean_decision(is_asked, all=False):
            # Lightning then ends as it does on SIGTERM: after this step with its validation, or after the epoch. Its
            # public flag, `should_stop`, gives up the rest of the epoch instead.
            trainer._signal_connector.received_sigterm = True


def _announce(number: int) -> None:
    if not in_stage():
        say_at_once("Stopping at the end of this step (or validation). Once more stops at once.")


@contextmanager
def resumable(trainer: Trainer, arguments: Sequence[str]) -> Iterator[None]:
    """Run ``fit`` within; if it ends before all epochs are done, say where it stands and how to continue.

    Args:
        trainer: Has a `Stopping` callback.
        arguments: Those of the command line, which start again if no checkpoint has been written.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    except BaseException as error:
        stop_signals.listen(None)
        is_stop = stop_signals.received is not None
        if isinstance(error, SIGTERMException) and not is_stop:
            _say_where_it_stands(trainer, arguments, "max_time")
            return
        if is_stop or _last_checkpoint(trainer) is not None:
            _say_where_it_stands(trainer, arguments, _cause())
        raise
    else:
        is_at_limit = 0 < trainer.max_steps <= trainer.global_step
        if is_at_limit and not is_dry_run(trainer) and not is_finished(trainer):
            _say_where_it_stands(trainer, arguments, "max_steps")
    finally:
        del os.environ[LAUNCHER]


def _cause() -> str:
    if is_orphan():
        return "the end of the command that it is a part of"
    return _CAUSES.get(stop_signals.received, "a closed terminal")


def _last_checkpoint(trainer: Trainer) -> LastCheckpoint | None:
    """Return the callback that has written this run's last checkpoint, if one is written."""
    return next((callback for callback in callbacks_of(trainer, LastCheckpoint) if callback.written), None)


def _say_where_it_stands(trainer: Trainer, arguments: Sequence[str], cause: str) -> None:
    stop_signals.told = True
    if not trainer.is_global_zero:
        return
    if cause == "max_time":  # Lightning ends such a run without its last hook
        for summary in callbacks_of(trainer, RunSummary):
            summary.on_fit_end(trainer, trainer.lightning_module)
    last = _last_checkpoint(trainer)
    epochs = progress_of(trainer)[0] if last is None else last.epochs
    of_all = f" of {trainer.max_epochs}" if trainer.max_epochs != -1 else ""
    print(
        f"\nStopped by {cause} with {epochs}{of_all} epochs done.{_how_to_continue(last, arguments, cause)}", flush=True
    )


def _how_to_continue(last: LastCheckpoint | None, arguments: Sequence[str], cause: str) -> str:
    if in_stage():  # the command says it, unless it is gone
        return "\nThe same command goes on from here." if is_orphan() else ""
    if last is not None:
        resume = ["fit", "--ckpt_path", short_path(str(last.path)), *_LIFTED.get(cause, [])]
        return f" Resume with\n  {command(resume)}"
    if take(arguments, "--ckpt_path")[0].ckpt_path:
        return f" No new checkpoint is written yet. Resume with\n  {command(arguments)}"
    return " There is no checkpoint yet: nothing to resume from."


def command(arguments: Sequence[str]) -> str:
    """Return the line for a shell that runs this program with other arguments."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    name = Path(program[-1]).name
    if shutil.which(name) == program[-1]:  # installed where a shell finds it
        program = [name]
    return shlex.join([*program, *arguments])
