"""Requests to stop, and processes that must not outlive their parent."""

from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from lit_distill.cli import signals
from lit_distill.cli.signals import Stopped, stop_signals


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


PARENT = """
import os, subprocess, sys
code = "from lit_distill.cli.signals import *; end_with_parent(); import pathlib, time, os;"
code += "pathlib.Path('child').write_text(str(os.getpid())); time.sleep(600)"
subprocess.run([sys.executable, "-c", code], env={**os.environ, "LIT_DISTILL_STAGE": str(os.getpid())})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_run_does_not_outlive_a_command_that_is_killed(tmp_path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path)
    until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())
    parent.kill()
    parent.wait()

    def ended() -> bool:
        return not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]

    until(ended)
    assert ended()


def test_a_run_whose_command_is_gone_already_ends(monkeypatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setenv(signals.STAGE, str(gone.pid))
    with pytest.raises(Stopped):
        signals.end_with_parent()


def test_without_a_listener_a_signal_ends_the_program_and_with_one_only_the_second(monkeypatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals:
        with pytest.raises(Stopped) as end:
            signal.raise_signal(signal.SIGTERM)
        assert end.value.code == 128 + signal.SIGTERM
        with pytest.raises(Stopped):
            stop_signals.check()
    numbers: list[int] = []
    with stop_signals:
        stop_signals.listen(numbers.append)
        signal.raise_signal(signal.SIGTERM)
        assert numbers == [signal.SIGTERM]
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert stop_signals.received is None
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_request_may_come_as_several_signals() -> None:
    numbers: list[int] = []
    with stop_signals:
        stop_signals.listen(numbers.append)
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert numbers == [signal.SIGTERM]
