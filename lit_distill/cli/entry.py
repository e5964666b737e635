"""The entry point of the command line: which command runs, what an error prints, and the exit code."""

from collections.abc import Sequence
import logging
import os
import re
import sys
import warnings

from lit_distill.cli import distill, export, photos
from lit_distill.cli.app import DistillCLI
from lit_distill.cli.errors import one_line
from lit_distill.cli.run_config import one_trust


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error and a non-zero exit."""
    args = one_trust(sys.argv[1:] if args is None else args)
    _tidy_output()
    if os.getcwd() not in sys.path:  # an installed command does not look for your modules beside you by itself
        sys.path.append(os.getcwd())
    try:
        if args[:1] == ["export"]:
            export.run(args[1:])
        elif args[:1] == ["distill"]:
            distill.run(args[1:])
        elif args[:1] == ["predict"] and args[1:] and not args[1].startswith("-"):
            photos.run(args[1:])
        else:
            DistillCLI(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        # Lightning turns Ctrl-C into an exit with code 1; to a shell it is 130.
        sys.exit(130 if isinstance(end.__context__, KeyboardInterrupt) else end.code)
    except Exception as error:
        if "--debug" in args:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _tidy_output() -> None:
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
        "Using `DistributedSampler` with the dataloaders",  # which repeats samples; LitDistiller counts each once
        ".*does not have many workers",  # small data is fastest in the process itself
        "You're resuming from a checkpoint that ended before the epoch ended",  # KeyedSampler goes on where it was
        "`ModelCheckpoint.monitor=.*could not find the monitored key",  # without validation there is no best epoch
        "GPU available but not used",  # said by whoever chose the accelerator
        "The number of training batches .* is smaller than the logging interval",  # epoch means are logged anyway
    ):
        warnings.filterwarnings("ignore", message)
