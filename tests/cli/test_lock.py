import os
from pathlib import Path
import subprocess
import sys

import pytest

from lit_distill.cli.lock import Lock

pytest.importorskip("fcntl")


def test_one_holds_it_and_is_named(tmp_path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert second.holder().process == os.getpid()
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert second.acquire()
    second.release()


def test_a_child_that_it_was_passed_to_holds_it_too(tmp_path) -> None:
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    os.close(os.dup(lock.fileno()))
    lock._file.close()  # type: ignore[union-attr]  # as when this process is killed
    assert not other.acquire()
    child.communicate(b"\n")
    assert other.acquire()
    other.release()


def test_a_file_without_a_holder_is_no_lock(tmp_path) -> None:
    Path(tmp_path, "lock").write_text("{")
    lock = Lock(tmp_path / "lock")
    assert lock.holder() is None
    assert lock.acquire()
    lock.release()
