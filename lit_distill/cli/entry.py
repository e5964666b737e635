"""The entry point of the command line: which command runs, what an error prints, and the exit code."""

from collections.abc import Callable, Sequence
import io
import logging
import os
import re
import signal
import sys
import warnings

from lightning.pytorch.utilities import rank_zero_only

from lit_distill.checks import did_you_mean
from lit_distill.cli import distill, export, photos
from lit_distill.cli.app import OTHER_COMMANDS, DistillCLI
from lit_distill.cli.arguments import one_trust
from lit_distill.cli.errors import one_line
from lit_distill.cli.signals import Stopped, end_with_parent, in_stage, stop_signals
from lit_distill.processes import leave_at_exit

# Commands with parsers of their own; "distil" is how the British write it.
_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "distill": distill.run,
    "distil": distill.run,
    "export": export.run,
}
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
    if os.getcwd() not in sys.path:  # Python does not put the current folder there for an installed command
        sys.path.append(os.getcwd())
    command, first = [*args, "", ""][:2]
    if command in _COMMANDS:
        _COMMANDS[command](args[1:])
    elif command == "predict" and first and not first.startswith("-"):
        photos.run(args[1:])
    elif not command or command.startswith("-") or command in DistillCLI.subcommands():
        DistillCLI(args)
    else:
        commands = [*DistillCLI.subcommands(), *OTHER_COMMANDS]
        hint = did_you_mean(command, commands, cutoff=0.0)
        raise ValueError(f"there is no command {command!r} among {', '.join(commands)}: {hint}")


def _exit_code(end: BaseException, args: list[str]) -> str | int | None:
    """Return 128 plus the number of the signal that ended the program, else its own exit code, and say what is next."""
    received = stop_signals.received
    # Lightning turns a KeyboardInterrupt into an exit with code 1.
    if received is None and isinstance(end.__context__ or end, KeyboardInterrupt):
        received = signal.SIGINT
    if received is None:
        return end.code if isinstance(end, SystemExit) else 1
    is_first_rank = not getattr(rank_zero_only, "rank", 0)
    if is_first_rank and not stop_signals.told and not in_stage():
        again = "goes on from here" if args[:1] in (["distill"], ["distil"]) else "starts again"
        print(f"\nStopped. The same command {again}.", flush=True)
    # If another rank ended first with a code other than 0, Lightning would kill the first one before it has printed.
    return 128 + received if is_first_rank else 0


def _tidy_output() -> None:
    """Print what a user needs, and where it belongs."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # not where in which library
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    # Lightning's progress reports are no errors; standard error is for what is wrong.
    loggers = (logging.getLogger("lightning.pytorch"), logging.getLogger("lightning.fabric"))
    for handler in [handler for logger in loggers for handler in logger.handlers]:
        handler.addFilter(lambda record: not re.search("Tip:|^Loading `train_dataloader`", record.getMessage()))
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stdout)
