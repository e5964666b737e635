"""A run of a study: its output goes to a file, and several may run at once."""

from collections.abc import Mapping, Sequence
import os
import re
import signal
import subprocess

from typing_extensions import override

from lit_distill.cli.lock import Holder
from lit_distill.cli.signals import STAGE, stop_signals
from lit_distill.cli.stage import Stage


class RunFailedError(ValueError):
    """A run of the study has failed; the others go on."""


class RunningProcesses:
    """The processes of the runs, which a signal to the study is passed on to."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def forward(self, number: int) -> None:
        """Send a signal to all of them."""
        for process in [*self._running]:
            if process.poll() is None:
                process.send_signal(number)

    def wait_for(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for a process that has just begun, and return its exit code."""
        self._running.add(process)
        if stop_signals.received is not None:  # while it was started
            process.send_signal(stop_signals.received)
        try:
            return process.wait()
        finally:
            self._running.discard(process)


class StudyStage(Stage):
    """A run of the study, whose output goes to ``log.txt`` in its folder.

    The configuration is checked for all seeds of a row at once, before any of them is made.
    """

    processes = RunningProcesses()
    gpu: int | None = None

    @property
    @override
    def done(self) -> bool:
        try:
            return super().done
        except ValueError:  # a done.json that a full disk or a crash of the machine has cut off
            return False

    @override
    def _check(self, config: Mapping[str, object]) -> None:
        pass

    @override
    def _difference(self) -> str:
        return ""

    @override
    def _awaited(self, holder: Holder) -> str:
        """Wait for another study, which makes the same run: its result is used."""
        return f"process {holder.process} on {holder.host}, which trains {self.name} since {holder.since}"

    @override
    def _say(self, line: str) -> None:
        with (self.folder / "log.txt").open("a") as log:
            log.write(f"{line}\n")

    @override
    def _train(self, command: Sequence[str], stdout: int | None = None) -> None:
        stop_signals.check()
        environment = {**os.environ, STAGE: str(os.getpid()), "OMP_NUM_THREADS": "1"}
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.gpu)
        log_path = self.folder / "log.txt"
        with log_path.open("ab") as log:
            # The run holds the lock too: if this process is killed, no other run starts beside it.
            process = subprocess.Popen(  # noqa: S603  # this command line, and the user's own flags
                command, env=environment, pass_fds=[self._lock.fileno()], stdout=log, stderr=subprocess.STDOUT
            )
            code = self.processes.wait_for(process)
        stop_signals.check()
        if code:
            errors = re.findall(r"^error: (.*)", log_path.read_text(errors="replace"), re.MULTILINE)
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise RunFailedError(f"{errors[-1] if errors and code > 0 else killed}; see {log_path}")
