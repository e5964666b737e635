"""Where training ends when it is asked to, and the line that says how to go on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
import os
from pathlib import Path
import shlex
import shutil
import signal
import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lit_distill.callbacks import RunSummary
from lit_distill.callbacks.summary import short_path
from lit_distill.cli.checkpoints import LastCheckpoint, ends_window, finished
from lit_distill.cli.signals import LAUNCHER, in_stage, is_orphan, say_at_once, stop_signals
from lit_distill.datamodules.resuming import progress_of

_CAUSES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopping(Callback):
    """End training on a signal, or when its time is up, at the end of a gradient accumulation window.

    The epoch is not counted as done then, nor validated. All processes end at the same step, whichever was asked.

    Args:
        max_time: Time that this process may train, as Lightning's ``Timer`` takes it. Lightning's own limit counts the
            time of the runs before a resume, and gives up the rest of the epoch.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        super().__init__()
        self.timer = None if max_time is None else Timer(max_time, verbose=False)
        self.out_of_time = False

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.take()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.take()
        stop_signals.check()
        stop_signals.listen(_announce if trainer.is_global_zero else lambda number: None)
        if self.timer is not None:
            self.timer.on_train_start(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The last step of all is followed by the end of the run, which nothing is left to be cut off from.
        if ends_window(trainer, batch_idx) and not (trainer.is_last_batch and _in_last_epoch(trainer)):
            self._stop_if_asked(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not finished(trainer):
            self._stop_if_asked(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.listen(None)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        remaining = None if self.timer is None else self.timer.time_remaining()
        self.out_of_time |= remaining is not None and remaining <= 0
        asked = self.out_of_time or stop_signals.received is not None
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            # Lightning then ends as on its own SIGTERM: after this step with its validation, or after the epoch.
            trainer._signal_connector.received_sigterm = True


def _announce(number: int) -> None:
    if not in_stage():
        say_at_once("Stopping at the end of this step (or validation). Once more stops at once.")


def _in_last_epoch(trainer: Trainer) -> bool:
    return trainer.current_epoch + 1 == trainer.max_epochs


@contextmanager
def resumable(trainer: Trainer, arguments: Sequence[str]) -> Iterator[None]:
    """Run ``fit`` within; if it ends before all epochs are done, say where it stands and how to go on.

    Args:
        trainer: Has a `Stopping` callback.
        arguments: Those of the command line, which begin again where no checkpoint has been written.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    except BaseException as error:
        stop_signals.listen(None)
        by_time = isinstance(error, SIGTERMException) and stop_signals.received is None
        last = _last_checkpoint(trainer)
        if isinstance(error, (SystemExit, KeyboardInterrupt)) or stop_signals.received or (last and last.written):
            _say(trainer, arguments, "max_time" if by_time else _cause(error))
        if not by_time:
            raise
    else:
        if 0 < trainer.max_steps <= trainer.global_step and not trainer.fast_dev_run and not finished(trainer):  # type: ignore[attr-defined]
            _say(trainer, arguments, "max_steps")
    finally:
        os.environ.pop(LAUNCHER, None)


def _cause(error: BaseException) -> str:
    if is_orphan():
        return "the end of the command that it is a part of"
    if stop_signals.received is not None:
        return _CAUSES.get(stop_signals.received, "a closed terminal")
    return "Ctrl-C" if isinstance(error.__context__, KeyboardInterrupt) else "an error"


def _last_checkpoint(trainer: Trainer) -> LastCheckpoint | None:
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)), None)


def _say(trainer: Trainer, arguments: Sequence[str], cause: str) -> None:
    stop_signals.told = True
    if not trainer.is_global_zero:
        return
    if cause == "max_time":  # Lightning shows it only at the end of all
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunSummary):
                callback.on_fit_end(trainer, trainer.lightning_module)
    last = _last_checkpoint(trainer)
    epochs = last.epochs if last is not None and last.written else progress_of(trainer)[0]
    of_all = f" of {trainer.max_epochs}" if trainer.max_epochs != -1 else ""
    print(f"\nStopped by {cause} with {epochs}{of_all} epochs done.", end="\n" if in_stage() else "", flush=True)
    if in_stage():
        if is_orphan():  # else the command says it
            print("The same command goes on from here.", flush=True)
        return
    if last is not None and last.written:
        arguments = ["fit", "--ckpt_path", short_path(str(last.path))]
        # The limit that ended this run would end the next one before its first step, or all too soon.
        arguments += {"max_time": ["--trainer.max_time=null"], "max_steps": ["--trainer.max_steps=-1"]}.get(cause, [])
        print(f" Resume with\n  {command(arguments)}", flush=True)
    elif any(argument.startswith("--ckpt_path") for argument in arguments):
        print(f" No new checkpoint is written yet. Resume with\n  {command(arguments)}", flush=True)
    else:
        print(" There is no checkpoint yet: nothing to resume from.", flush=True)


def command(arguments: Sequence[str]) -> str:
    """Return the line for a shell that runs this program with other arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = Path(sys.argv[0])
    if spec is not None and spec.name.startswith("lit_distill."):
        program = [_python(), "-m", spec.name.removesuffix(".__main__")]
    elif script.suffix == ".py":
        program = [_python(), str(script)]
    else:
        found = shutil.which("lit-distill")
        program = [str(script) if script.stem == "lit-distill" and script.exists() else "lit-distill"]
        if found is not None and script.exists() and Path(found).samefile(script):
            program = ["lit-distill"]
    return shlex.join([*program, *arguments])


def _python() -> str:
    """Return ``python`` where that is the interpreter that runs this, else its path."""
    found = shutil.which("python")
    return "python" if found is not None and os.path.samefile(found, sys.executable) else sys.executable
