"""The entry point of the command line: which command runs, what an error prints, and the exit code."""

from collections.abc import Sequence
from difflib import get_close_matches
import io
import logging
import os
import re
import signal
import sys
from typing import Any
import warnings

from lightning.pytorch.utilities import rank_zero_only

from lit_distill.cli import distill, export, photos
from lit_distill.cli.app import OTHER_COMMANDS, DistillCLI
from lit_distill.cli.errors import one_line
from lit_distill.cli.run_config import one_trust
from lit_distill.cli.signals import Stopped, end_with_parent, in_stage, stop_signals
from lit_distill.processes import leave_at_exit


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and a non-zero exit."""
    args = one_trust(sys.argv[1:] if args is None else args)
    args = ["distill", *args[1:]] if args[:1] == ["distil"] else args  # as the British write it
    leave_at_exit()
    with stop_signals:
        try:
            end_with_parent()
            _run(args)
        except (KeyboardInterrupt, SystemExit) as end:
            sys.exit(_exit_code(end, args))
        except Exception as error:
            # A signal to the whole group also ends the workers of a loader, which torch makes an error of.
            if stop_signals.received is not None and re.search("DataLoader worker.* (killed|exited)", str(error)):
                sys.exit(_exit_code(Stopped(stop_signals.received), args))
            if "--debug" in args:
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(1)


def _run(args: list[str]) -> None:
    _tidy_output()
    if os.getcwd() not in sys.path:  # an installed command does not look for your modules beside you by itself
        sys.path.append(os.getcwd())
    if args[:1] == ["export"]:
        export.run(args[1:])
    elif args[:1] == ["distill"]:
        distill.run(args[1:])
    elif args[:1] == ["predict"] and args[1:] and not args[1].startswith("-"):
        photos.run(args[1:])
    elif args and not args[0].startswith("-") and args[0] not in DistillCLI.subcommands():
        commands = [*DistillCLI.subcommands(), *OTHER_COMMANDS]
        (near,) = get_close_matches(args[0], commands, n=1, cutoff=0.0)
        raise ValueError(f"there is no command {args[0]!r}; the nearest of {', '.join(commands)} is {near}")
    else:
        DistillCLI(args)


def _exit_code(end: BaseException, args: list[str]) -> Any:
    """Return 128 plus the number of the signal that ended the program, else its own exit code, and say how to go on."""
    received = stop_signals.received
    # Lightning turns a KeyboardInterrupt into an exit with code 1.
    if received is None and isinstance(end.__context__ or end, KeyboardInterrupt):
        received = signal.SIGINT
    if received is None:
        return end.code if isinstance(end, SystemExit) else 1
    first_rank = not getattr(rank_zero_only, "rank", 0)
    if first_rank and not stop_signals.told and not in_stage():
        again = "goes on from here" if args[:1] == ["distill"] else "starts again"
        print(f"\nStopped. The same command {again}.", flush=True)
    # Of a rank that ends first with another code than 0, Lightning would kill the first one, which still has to print.
    return 128 + received if first_rank else 0


def _tidy_output() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # not where in which library
    # Lightning's progress reports are no errors; standard error is for what is wrong.
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lambda record: not re.search("Tip:|^Loading `train_dataloader`", record.getMessage()))
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stdout)
    for message in (
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # lightning 2.6 with torch >= 2.15
        "Starting from v1.9.0, `tensorboardX` has been removed",  # the CSV logger is meant to serve without it
        "Be aware that when using `ckpt_path`, callbacks used to create",  # retrospection has no part in a test
        "The dirpath has changed",  # to the new folder of a resumed run; BestCheckpoint carries the best over
        "Checkpoint directory .* exists and is not empty",  # no run replaces another's files
        ".*does not have many workers",  # small data is fastest in the process itself
        "You're resuming from a checkpoint that ended before the epoch ended",  # KeyedSampler goes on where it was
        "`ModelCheckpoint.monitor=.*could not find the monitored key",  # without validation there is no best epoch
        "GPU available but not used",  # said by whoever chose the accelerator
        "The number of training batches .* is smaller than the logging interval",  # epoch means are logged anyway
    ):
        warnings.filterwarnings("ignore", message)
