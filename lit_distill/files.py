"""Files that are whole or not there."""

from collections.abc import Iterator
import contextlib
from contextlib import contextmanager
import errno
import os
from pathlib import Path
import socket
import time
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


def lock_file(file: int | IO[str] | IO[bytes], wait: bool = True) -> None:
    """Lock an open file against other processes, until it is closed; nothing where the system has no such locks.

    Raises:
        OSError: If another process has it, and ``wait`` is False.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to, and move what was written there to ``path`` at the end.

    So ``path`` has its old content or all of the new one, also after a crash: the content is on the disk before the
    move. The name belongs to this process. Parts that killed processes left in the folder are removed.

    Raises:
        DiskFullError: If the disk is full; names the file that was not written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with write_atomically(Path(folder, "a.txt")) as part:
        ...         _ = part.write_text("all of it")
        ...     Path(folder, "a.txt").read_text()
        'all of it'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_parts(path.parent)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        cause = _disk_full_error(error)
        if cause is None:
            raise
        reason = os.strerror(cause.errno or 0)
        message = f"{reason}: {path} was not written, no other file was changed: make room, then go on"
        raise DiskFullError(cause.errno, message) from error


class DiskFullError(OSError):
    """A file could not be written because the disk or a quota is full. Its text is the message alone."""

    def __str__(self) -> str:
        return str(self.strerror)


def remove_abandoned_parts(folder: Path) -> None:
    """Remove the parts that processes left in ``folder`` when they were killed.

    Parts of other machines are removed once nobody has written to them for an hour.
    """
    for part in folder.glob(".*.part"):
        _, _, owner = part.name.removesuffix(".part").rpartition(".")
        host = part.name.removesuffix(f".{owner}.part")
        with contextlib.suppress(OSError):
            if not owner.isdecimal():  # written by an older version of this package, which named no owner
                abandoned = part.name.endswith(".ckpt.part")
            elif host.endswith(f".{socket.gethostname()}"):
                abandoned = not process_exists(int(owner))
            else:
                abandoned = time.time() - part.stat().st_mtime > 3600
            if abandoned:
                part.unlink()


def process_exists(process: int) -> bool:
    """Tell whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _disk_full_error(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk or quota among the causes of ``error``; torch hides it behind its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None
