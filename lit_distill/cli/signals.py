"""Requests to stop: Ctrl-C, SIGTERM, or SIGHUP of a closed terminal."""

from collections.abc import Callable
import contextlib
import ctypes
import os
import signal
import stat
import sys
import time
from types import FrameType
from typing import Self

from lit_distill.files import process_exists

# Seconds within which signals are one request. A terminal and a parent process may both send it, or Slurm and srun.
_SAME_REQUEST = 0.5
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_Handler = Callable[[int, FrameType | None], object] | int | None  # what ``signal.getsignal`` returns
# Environment variables with the process id of a parent that a child must not outlive.
STAGE = "LIT_DISTILL_STAGE"  # a `distill` command, of one of its runs
LAUNCHER = "LIT_DISTILL_LAUNCHER"  # rank 0, of the other ranks that Lightning starts


class Stopped(SystemExit):
    """The program ends because of a signal, with the exit code that a shell gives: 128 plus its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class StopSignals:
    """Handle the signals that ask to stop, within a ``with`` statement.

    Without a listener, a signal raises `Stopped` wherever the program is. With a listener the program continues, to end
    where nothing is lost. A second request then raises `Stopped`, unless the listener hears all.

    Attributes:
        received: The first signal, or None.
        listener: Called with the signal's number.
        hears_all: Whether the listener is told of every request.
        told: Whether the user has been told how to go on.
    """

    def __init__(self) -> None:
        self._process = 0
        self._before: dict[int, _Handler] = {}
        self._reset()

    def _reset(self) -> None:
        self.received: int | None = None
        self.listener: Callable[[int], None] | None = None
        self.hears_all = False
        self.told = False
        self._time = 0.0

    def __enter__(self) -> Self:
        self._process = os.getpid()
        # An ignored signal stays ignored: nohup, and shells that start a job in the background, rely on it.
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reset()  # another command line may follow in the same process

    def take(self) -> None:
        """Handle the signals again: Lightning registers its own handlers when a trainer starts."""
        for number in self._before:
            signal.signal(number, self._handle)

    def listen(self, listener: Callable[[int], None] | None, hears_all: bool = False) -> None:
        """Call the listener from now on. With None, a signal raises `Stopped` again."""
        self.listener, self.hears_all = listener, hears_all

    def check(self) -> None:
        """Raise `Stopped` if a signal came: the code that it interrupted may have caught the exception."""
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker of a loader or pool, which its parent ends
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received is not None and now - self._time < _SAME_REQUEST:
            return
        first = self.received is None
        self.received, self._time = self.received or number, now
        if number not in (signal.SIGINT, signal.SIGTERM):
            _leave_terminal()
        if self.listener is None or not (first or self.hears_all):
            raise Stopped(self.received)
        self.listener(number)


stop_signals = StopSignals()


def say_at_once(line: str) -> None:
    """Write a line to standard output from a signal handler, where `print` could interrupt itself."""
    with contextlib.suppress(OSError):
        os.write(1, f"\n{line}\n".encode())


def end_with_parent() -> None:
    """Ask the system to stop this process when the process that started it has ended, in whatever way.

    Linux only: on other systems a run outlives a parent that was killed with SIGKILL.

    Raises:
        Stopped: If the parent is gone already.
    """
    for variable, end in ((STAGE, signal.SIGTERM), (LAUNCHER, getattr(signal, "SIGKILL", signal.SIGTERM))):
        parent = _parent(variable)
        if os.getppid() == parent and sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, int(end), 0, 0, 0)  # PR_SET_PDEATHSIG
        if not process_exists(parent):
            raise Stopped(signal.SIGTERM)


def in_stage() -> bool:
    """Tell whether this process is a run of ``distill``, which itself says how to continue."""
    return os.getppid() == _parent(STAGE) or is_orphan()


def is_orphan() -> bool:
    """Tell whether the ``distill`` command that started this run is gone."""
    return not process_exists(_parent(STAGE))


def _parent(variable: str) -> int:
    """Return the process that this one must not outlive, itself if there is none."""
    return int(os.environ.get(variable, os.getpid()))


def _leave_terminal() -> None:
    """Send the output nowhere if it went to a terminal that is gone: every line would be an error."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
