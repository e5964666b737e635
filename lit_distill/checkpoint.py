"""Checkpoints that are whole or not there, and found out when damaged."""

from collections.abc import Callable, Iterator
import contextlib
from contextlib import contextmanager
import errno
import os
from pathlib import Path
import socket
import time
from typing import Any
import zipfile

from lightning.fabric.plugins import TorchCheckpointIO
import torch
from typing_extensions import override


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their place and moved there when they are on the disk.

    Lightning's own way writes to the system's temporary folder; from there to another file system a move is a copy,
    which a crash cuts off in the middle of the file that was to be replaced. Nor is the file held in memory here.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders: set[Path] = set()  # where this run has saved checkpoints

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(Path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        self._folders.add(Path(path).parent.resolve())

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint that lies where this run saves its own; what a resumed file names elsewhere stays."""
        file = Path(path)
        if file.suffix == ".ckpt" and file.is_file() and file.parent.resolve() in self._folders:
            file.unlink()

    @override
    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = lambda storage, loc: storage, *args: Any, **kw: Any
    ) -> dict[str, Any]:
        check_archive(path)
        sweep(Path(path).parent)
        try:
            return super().load_checkpoint(path, map_location, *args, **kw)
        except (RuntimeError, OSError, LookupError, EOFError) as error:
            if not os.path.isfile(path):
                raise
            raise _damaged(path, str(error).split("\n")[0]) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to, and move what is written there to ``path`` at the end.

    ``path`` so has its old content or all of the new. The name is this process's own. Parts that other processes have
    left behind when they were killed are removed.

    Raises:
        DiskFullError: If the disk is full; says what was not written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        full = _disk_full(error)
        if full is None:
            raise
        message = (
            f"{os.strerror(full.errno or 0)}: {path} was not written, no other file was changed: make room, then go on"
        )
        raise DiskFullError(full.errno, message) from error


class DiskFullError(OSError):
    """A file could not be written for want of space; as text its message alone."""

    def __str__(self) -> str:
        return str(self.strerror)


def sweep(folder: Path) -> None:
    """Remove the parts of files that processes have left in the folder which are there no more.

    Those of other machines are removed when they have not been written to for an hour.
    """
    for part in folder.glob(".*.part"):
        _, _, owner = part.name.removesuffix(".part").rpartition(".")
        host = part.name.removesuffix(f".{owner}.part")
        with contextlib.suppress(OSError):
            if not owner.isdecimal():  # of a version of this package without an owner in the name
                gone = part.name.endswith(".ckpt.part")
            elif host.endswith(f".{socket.gethostname()}"):
                gone = not alive(int(owner))
            else:
                gone = time.time() - part.stat().st_mtime > 3600
            if gone:
                part.unlink()


def alive(process: int) -> bool:
    """Tell whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user, or no number of a process
        return True
    return True


def _disk_full(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk or an exhausted quota that led to this one; torch hides it behind its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None


def check_archive(path: str | Path) -> None:
    """Compare every record of a file of ``torch.save`` with its checksum, which ``torch.load`` does not.

    A path that is no file is left to whoever loads it.

    Raises:
        ValueError: If the file is truncated or a bit of it has changed.
    """
    if not os.path.isfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # Marks that torch never sets, but would follow: a record read as a folder has no content.
            odd = [entry.filename for entry in archive.infolist() if _marked(entry)]
            broken = odd[0] if odd else archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # whatever a changed bit leads zipfile and zlib to
        broken = str(error) or type(error).__name__
    if broken is not None:
        raise _damaged(path, broken)


def _marked(entry: zipfile.ZipInfo) -> bool:
    return bool(entry.external_attr or entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED)


def _damaged(path: Any, why: str) -> ValueError:
    return ValueError(f"the checkpoint {path} is damaged ({why}): resume from another one, nothing was changed")
