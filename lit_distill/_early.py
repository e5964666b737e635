"""End quietly on Ctrl-C while the command line is still importing, instead of with a traceback."""

import os
from pathlib import Path
import signal
import sys


def is_command_line() -> bool:
    """Tell whether Python runs ``lit-distill`` or ``python -m lit_distill.cli``, not another program."""
    as_module = sys.argv[:1] == ["-m"] and "lit_distill.cli" in sys.orig_argv
    return as_module or Path(sys.argv[0] if sys.argv else "").stem == "lit-distill"


def quiet_interrupt() -> None:
    """End at once on Ctrl-C, until ``main`` handles it. Nothing can be lost before."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


if is_command_line():
    quiet_interrupt()
