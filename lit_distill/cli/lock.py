"""A lock that names its holder, and ends with it."""

import json
import os
from pathlib import Path
import socket
import time
from typing import IO, NamedTuple

from lit_distill.files import lock_file


class Holder(NamedTuple):
    """A process that holds a lock."""

    process: int
    host: str
    since: str


class Lock:
    """A file that one process holds at a time, together with the children that it passes `fileno` to.

    The operating system releases it when the last of them ends, in whatever way. On a file system without locks every
    process gets it.

    Args:
        path: The file, which is removed when the lock is released.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Take the lock and write down who holds it. Return False if another process holds it."""
        while self._file is None:
            # Follow no link: the file that it leads to would be emptied.
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600), "r+")
            try:
                lock_file(file, wait=False)
            except BlockingIOError:
                file.close()
                return False
            except OSError:  # a file system without locks
                pass
            if not _is_at(file, self.path):  # the last holder has just removed it
                file.close()
                continue
            file.truncate(0)
            holder = Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
            file.write(json.dumps(holder._asdict()))
            file.flush()
            self._file = file
        return True

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def fileno(self) -> int:
        """Return the file descriptor, for ``pass_fds`` of a child that is to hold the lock too."""
        if self._file is None:
            raise ValueError(f"{self.path} is not held")
        return self._file.fileno()

    def holder(self) -> Holder | None:
        """Return who holds the lock, or None if nobody has written that down yet."""
        try:
            return Holder(**json.loads(self.path.read_text()))
        except (OSError, ValueError):
            return None


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
