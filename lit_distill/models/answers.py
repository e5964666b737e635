"""A teacher's answers on disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
import hashlib
import json
import os
from pathlib import Path
import re
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_distill.files import lock_file, write_atomically

MADE_OF = "made_of.json"
SHARD_BYTES = 1 << 20

_MAGIC = b"answers1"
_DIGEST = 16  # bytes

_Bytes = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.bool_]


class Answers:
    r"""Rows of bytes by ``(view, index)`` in a folder that is named after all that they depend on.

    A writer adds shards: rows in the order they came, each with its index. `merge` makes of them one file a view, of
    rows in the order of their index, which is read by memory mapping. Every file is written under another name and then
    moved, so it is whole or not there; every shard has a digest that is keyed with what the answers are made of, and
    the view. So a shard that is cut off, changed, of another cache or of another view reads as rows that are not there.
    Any number of processes may read, write and merge at once.

    A view takes ``num_rows * (stride + 1/8)`` bytes and 16 for each shard.

    Args:
        folder: Where the folder of these answers is or comes.
        kind: What its name begins with, such as ``"train"``.
        made_of: All that decides the answers: a name and a value, in words or as a digest, for each part.
        num_rows: Rows N >= 1.
        stride: Bytes of a row.
        wanted: ``(N,)`` bool on the host, the rows that are ever asked for; None for all.
        shard_rows: Rows of a shard; by default a megabyte of them.
        about: For people: whose answers these are, and to which images. Nothing depends on it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     answers = Answers(Path(folder), "train", {"seed": "1"}, num_rows=2, stride=1)
        ...     answers.write(0, torch.tensor([1, 0]), torch.tensor([[5], [4]], dtype=torch.uint8))
        ...     answers.merge(0)
        ...     print(answers.table(0).flatten(), answers.table(1))
        tensor([4, 5], dtype=torch.uint8) None
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        made_of: Mapping[str, str],
        num_rows: int,
        stride: int,
        wanted: Tensor | None = None,
        shard_rows: int | None = None,
        about: str = "",
    ) -> None:
        self.made_of = dict(made_of)
        self.about = about
        text = json.dumps({**self.made_of, "rows": f"{num_rows} of {stride} bytes"}, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).digest()
        self.folder = folder / f"{kind}-{self._key.hex()[:12]}"
        self.kind = kind
        self.num_rows = num_rows
        self.stride = stride
        self.wanted = np.ones(num_rows, dtype=bool) if wanted is None else wanted.numpy()
        self.shard_rows = shard_rows or max(256, SHARD_BYTES // stride)
        self.damaged = 0
        """Shards found so far that cannot be used."""
        self._read: dict[int, tuple[os.stat_result, _View]] = {}

    @classmethod
    def at(cls, folder: Path) -> "Answers":
        """Return the answers in a folder, whose file says what they are made of.

        Raises:
            ValueError: If the file is missing or damaged, or the folder has another name.
        """
        kind, _, _ = folder.name.partition("-")
        try:
            described = json.loads((folder / MADE_OF).read_text())
            answers = cls(folder.parent, kind, **described)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder} holds no answers of a teacher: {error}") from error
        if answers.folder != folder:
            raise ValueError(f"{folder} is not named after what {MADE_OF} in it says: remove it")
        return answers

    def describe(self) -> None:
        """Write down what the answers are made of, or note that they are used.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.folder / MADE_OF
        with suppress(ValueError):  # there is none, or it is damaged
            Answers.at(self.folder)
            os.utime(path)
            return
        described = {"made_of": self.made_of, "num_rows": self.num_rows, "stride": self.stride, "about": self.about}
        with write_atomically(path) as part:
            part.write_text(json.dumps(described, indent=1))

    def table(self, view: int) -> Tensor | None:
        """Return the rows of a view, ``uint8`` ``(N, stride)`` in mapped memory, if all that are wanted are there."""
        found = self._merged(view)
        return torch.from_numpy(found.rows) if found is not None and self._is_whole(found.known) else None

    def part(self, view: int) -> tuple[Tensor, Tensor] | None:
        """Return the rows of a view as `table` does, and which of them are there, ``(N,)`` bool; None if none is."""
        found = self._merged(view)
        if found is None or not found.known.any():
            return None
        return torch.from_numpy(found.rows), torch.from_numpy(found.known)

    def write(self, view: int, index: Tensor, rows: Tensor) -> None:
        """Add a shard.

        Args:
            view: The view of its rows.
            index: ``(n,)`` integers in 0..N-1, on the host.
            rows: ``uint8`` ``(n, stride)``, on the host.

        Raises:
            OSError: If it cannot be written, as a `DiskFullError` if the disk is full.
        """
        content = index.to(torch.int32).numpy().tobytes() + rows.numpy().tobytes()
        if not (self.folder / MADE_OF).exists():
            self.describe()
        with write_atomically(self.folder / f"{view:05}-{os.urandom(8).hex()}.shard") as part:
            part.write_bytes(_MAGIC + content + self._digest(view, b"shard", content))

    def merge(self, view: int) -> None:
        """Make one file of a view's shards and of what is sound of the file before.

        Raises:
            OSError: If it cannot be written.
        """
        if not self._shards(view):
            return
        with _locked(self.folder / ".lock"):
            shards, before = self._shards(view), self._merged(view)
            rows = np.zeros((self.num_rows, self.stride), dtype=np.uint8) if before is None else before.rows.copy()
            known = np.zeros(self.num_rows, dtype=bool) if before is None else before.known.copy()
            count = known.sum()
            for path in shards:
                index, added = self._shard(view, path)
                rows[index], known[index] = added, True
            if known.sum() > count:
                self._write_view(view, rows, known)
            for path in shards:
                path.unlink(missing_ok=True)

    def views(self) -> list[int]:
        """Return the views of which something is stored."""
        names = (re.match(r"(\d+)[-.]", path.name) for path in self.folder.glob("*"))
        return sorted({int(name[1]) for name in names if name})

    def share(self, view: int) -> float:
        """Return the share of the wanted rows of a view that are there, merged or not."""
        found = self._merged(view)
        known = np.zeros(self.num_rows, dtype=bool) if found is None else found.known.copy()
        for path in self._shards(view):
            known[self._shard(view, path)[0]] = True
        return float(known[self.wanted].mean()) if self.wanted.any() else 1.0

    def _is_whole(self, known: _Mask) -> bool:
        return bool(known[self.wanted].all())

    def _shards(self, view: int) -> list[Path]:
        return sorted(self.folder.glob(f"{view:05}-*.shard"))

    def _shard(self, view: int, path: Path) -> tuple[npt.NDArray[np.int32], _Bytes]:
        """Return the index and the rows of a shard; none if it is damaged, or if another process has merged it."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        content, digest = content[len(_MAGIC) : -_DIGEST], content[-_DIGEST:]
        count = len(content) // (self.stride + 4)
        if digest != self._digest(view, b"shard", content):
            self.damaged += path.exists()
            count, content = 0, b""
        index = np.frombuffer(content, dtype=np.int32, count=count)
        return index, np.frombuffer(content, dtype=np.uint8, offset=4 * count).reshape(count, self.stride)

    def _merged(self, view: int) -> "_View | None":
        """Return the merged file of a view with the rows that are known, checked unless it was before."""
        path = self._path(view)
        try:
            stamp = path.stat()
            if view not in self._read or _has_changed(self._read[view][0], stamp):
                self._read[view] = stamp, self._checked(view, path)
        except (OSError, ValueError):  # none, or not as long as its header
            self.damaged += path.exists()
            self._read.pop(view, None)
            return None
        return self._read[view][1]

    def _checked(self, view: int, path: Path) -> "_View":
        starts = range(0, self.num_rows, self.shard_rows)
        sizes = len(_MAGIC) + 4, -(-self.num_rows // 8), _DIGEST * len(starts)
        with path.open("rb") as file:
            head, digest = file.read(sum(sizes)), file.read(_DIGEST)
        if digest != self._digest(view, b"head", head) or head[: sizes[0]] != self._head():
            raise ValueError(f"{path} is damaged")
        known = np.unpackbits(np.frombuffer(head, np.uint8, sizes[1], sizes[0]), count=self.num_rows).astype(bool)
        digests = head[-sizes[2] :]
        offset, shape = sum(sizes) + _DIGEST, (self.num_rows, self.stride)
        rows: _Bytes
        if path.stat().st_size == offset + self.num_rows * self.stride:
            # Copy on write: torch wants memory that can be written to, and the file stays as it is.
            rows = np.memmap(path, np.uint8, mode="c", offset=offset, shape=shape)
        else:
            rows, left = (
                np.zeros(shape, dtype=np.uint8),
                np.fromfile(path, np.uint8, offset=offset)[: self.num_rows * self.stride],
            )
            rows.reshape(-1)[: len(left)] = left
        for number, start in enumerate(starts):
            part = slice(start, start + self.shard_rows)
            if self._digest(view, b"%d" % number, rows[part]) != digests[_DIGEST * number :][:_DIGEST]:
                self.damaged += 1
                known[part] = False
        return _View(rows, known)

    def _write_view(self, view: int, rows: _Bytes, known: _Mask) -> None:
        starts = range(0, self.num_rows, self.shard_rows)
        digests = [
            self._digest(view, b"%d" % n, rows[start : start + self.shard_rows]) for n, start in enumerate(starts)
        ]
        head = b"".join([self._head(), np.packbits(known).tobytes(), *digests])
        with write_atomically(self._path(view)) as part, part.open("wb") as file:
            file.write(head + self._digest(view, b"head", head))
            file.write(rows.data)

    def _head(self) -> bytes:
        return _MAGIC + struct.pack("<I", self.shard_rows)

    def _path(self, view: int) -> Path:
        return self.folder / f"{view:05}.answers"

    def _digest(self, view: int, purpose: bytes, content: "bytes | _Bytes") -> bytes:
        salt = struct.pack("<q", view)
        data = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
        return hashlib.blake2b(data, digest_size=_DIGEST, key=self._key, salt=salt, person=purpose[:16]).digest()


def caches_in(folder: Path, kind: str = "*") -> list[Answers]:
    """Return the answers in a folder of such folders, those used last first."""
    found = []
    for path in folder.glob(f"{kind}-*/{MADE_OF}"):
        with suppress(ValueError):
            found.append((path.stat().st_mtime, Answers.at(path.parent)))
    return [answers for _, answers in sorted(found, key=lambda each: -each[0])]


class _View(NamedTuple):
    """The rows of a view ``(N, stride)``, and which of them are known ``(N,)``."""

    rows: _Bytes
    known: _Mask


def _has_changed(before: os.stat_result, now: os.stat_result) -> bool:
    return any(getattr(before, name) != getattr(now, name) for name in ("st_ino", "st_size", "st_mtime_ns"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; the operating system ends it with this process."""
    with path.open("w") as file:
        with suppress(OSError):  # of a file system without locks
            lock_file(file)
        yield
