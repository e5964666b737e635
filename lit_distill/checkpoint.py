"""Checkpoints that are whole or not there, and found out when damaged."""

import os
from pathlib import Path
from typing import Any, TypeAlias
import zipfile

from lightning.fabric.plugins import TorchCheckpointIO
import torch
from typing_extensions import override

from lit_distill.files import remove_abandoned_parts, write_atomically

PathLike: TypeAlias = str | Path


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
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: PathLike, storage_options: object | None = None
    ) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with write_atomically(Path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)
        self._folders.add(Path(path).parent.resolve())

    @override
    def remove_checkpoint(self, path: PathLike) -> None:
        """Remove a checkpoint that lies where this run saves its own; what a resumed file names elsewhere stays."""
        file = Path(path)
        if file.suffix == ".ckpt" and file.is_file() and file.parent.resolve() in self._folders:
            file.unlink()

    @override
    def load_checkpoint(self, path: PathLike, *args: Any, **options: Any) -> dict[str, Any]:
        check_archive(path)
        remove_abandoned_parts(Path(path).parent)
        try:
            return super().load_checkpoint(path, *args, **options)
        except (RuntimeError, LookupError, EOFError) as error:
            raise _damaged(path, str(error).split("\n")[0]) from error


def check_archive(path: PathLike) -> None:
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
            odd = (entry.filename for entry in archive.infolist() if _is_marked(entry))
            broken = next(odd, None) or archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # whatever a changed bit leads zipfile and zlib to
        broken = str(error) or type(error).__name__
    if broken is not None:
        raise _damaged(path, broken)


def _is_marked(entry: zipfile.ZipInfo) -> bool:
    return bool(entry.external_attr or entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED)


def _damaged(path: PathLike, why: str) -> ValueError:
    return ValueError(f"the checkpoint {path} is damaged ({why}): resume from another one, nothing was changed")
