"""The entry point of the command line: which command runs, what an error prints, and the exit code."""

from collections.abc import Sequence
from importlib import import_module
import io
import logging
import os
import re
import sys
import warnings

from lit_distill.cli.arguments import one_trust
from lit_distill.cli.errors import one_line
from lit_distill.cli.signals import end_with_parent, in_stage, stop_signals
from lit_distill.processes import leave_at_exit

# The modules of commands with parsers of their own; "distil" is how the British write it.
_MODULES = {"distill": "distill", "distil": "distill", "export": "export", "cache": "cache"}
_MODULES |= {"study": "study", "audit": "audit"}
_RESUMABLE = ("distill", "study")  # the commands that go on where they were stopped
_IGNORED_WARNINGS = (
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # lightning 2.6 with torch >= 2.15
    "Starting from v1.9.0, `tensorboardX` has been removed",  # the CSV logger is meant to serve without it
    "Be aware that when using `ckpt_path`, callbacks used to create",  # retrospection has no part in a test
    "The dirpath has changed",  # to the new folder of a resumed run; BestCheckpoint carries the best over
    "Checkpoint directory .* exists and is not empty",  # no run replaces another's files
    ".*does not have many workers",  # small data is fastest in the process itself
    "You're resuming from a checkpoint that ended before the epoch ended",  # KeyedSampler continues where it was
    "`ModelCheckpoint.monitor=.*could not find the monitored key",  # without validation there is no best epoch
    "GPU available but not used",  # said by whoever chose the accelerator
    "The number of training batches .* is smaller than the logging interval",  # epoch means are logged anyway
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and a non-zero exit."""
    args = list(sys.argv[1:] if args is None else args)
    leave_at_exit()
    with stop_signals:
        try:
            end_with_parent()
            _tidy_output()
            _run(one_trust(args))
        except SystemExit as end:
            sys.exit(end.code if stop_signals.received is None else _stopped(stop_signals.received, args))
        except Exception as error:
            # A signal to the whole group also ends the workers of a loader, which torch makes an error of.
            if stop_signals.received is not None and re.search("DataLoader worker.* (killed|exited)", str(error)):
                sys.exit(_stopped(stop_signals.received, args))
            if "--debug" in args:
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(1)


def _run(args: list[str]) -> None:
    if os.getcwd() not in sys.path:  # Python does not put the current folder there for an installed command
        sys.path.append(os.getcwd())
    command, first = [*args, "", ""][:2]
    module = "photos" if command == "predict" and re.match("[^-]", first) else _MODULES.get(command)
    # Lightning takes seconds to import, and not all commands need it. A stop meanwhile needs no words.
    stop_signals.told = True
    run = import_module(f"lit_distill.cli.{module or 'app'}").run
    stop_signals.told = False
    _tidy_logs()
    run(args[1:] if module else args)


def _stopped(signum: int, args: list[str]) -> int:
    """Say what is next, unless it is said, and return the exit code that a shell gives: 128 plus the signal."""
    # Lightning and torchrun start the other ranks with one of the first two, srun all of them with the last.
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if any(rank != "0" for rank in ranks):
        return 0  # if another rank ended first with another code, Lightning would kill the first before it has printed
    if not stop_signals.told and not in_stage():
        again = "goes on from here" if _MODULES.get([*args, ""][0]) in _RESUMABLE else "starts again"
        print(f"\nStopped. The same command {again}.", flush=True)
    return 128 + signum


def _tidy_output() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # not where in which library
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _tidy_logs() -> None:
    """Send Lightning's progress reports to standard output: they are no errors."""
    for handler in logging.getLogger("lightning.pytorch").handlers + logging.getLogger("lightning.fabric").handlers:
        handler.addFilter(lambda record: not re.search("Tip:|^Loading `train_dataloader`", record.getMessage()))
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stdout)
