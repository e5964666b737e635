"""Files in a zip archive, read where they are; nobody's archive is trusted."""

from collections.abc import Callable, Iterable
import io
import os
from pathlib import Path
import re
import shutil
import stat
import struct
import tempfile
from typing import Any, BinaryIO
import weakref
import zipfile
import zlib

from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from lit_distill.datamodules.images import Files, content_key, size_and_crc
from lit_distill.identity import identities

_MEMBER = 10**9  # bytes of a member, unpacked
_RATIO = 1000  # of its sizes, unpacked to packed
_TOTAL = 200 * 10**9  # bytes of all members, unpacked
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 1 << 20


class ZipArchive:
    """A zip archive: a file, or a part of one.

    It is read without a position, so that any number of forked processes and threads share one open file; a process
    that is given a pickled copy opens its own.

    Args:
        path: The file.
        start: Byte of the file at which the archive begins.
        length: Bytes of it; None for the rest of the file.

    Raises:
        ValueError: If the file is not there or cannot be read.
    """

    def __init__(self, path: str | Path, start: int = 0, length: int | None = None) -> None:
        self.path, self.start = Path(path), start
        try:
            if self.path.is_dir():
                raise IsADirectoryError(None, "it is a folder")
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"cannot read the archive {path}: {error.strerror}") from error
        self._close = weakref.finalize(self, os.close, self._file)
        self.length = os.fstat(self._file).st_size - start if length is None else length

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipArchive, (self.path, self.start, self.length)

    def read(self, at: int, length: int) -> bytes:
        """Return the bytes from ``at``, fewer only where the archive ends."""
        length = max(0, min(length, self.length - at))
        parts = []
        while length:
            part = os.pread(self._file, length, self.start + at)
            if not part:
                break
            parts.append(part)
            at, length = at + len(part), length - len(part)
        return b"".join(parts)

    def members(self) -> list[zipfile.ZipInfo]:
        """Return what the archive says it holds, without folders.

        Raises:
            ValueError: If it is damaged; a name is absolute, leads out of the archive or is there twice; a member is a
                link or encrypted; a member takes more than 1 GB or more than 1000 times its packed size, or all of them
                more than 200 GB, or more than there is.
        """
        with self._opened() as file:
            members = file.infolist()
        seen: set[str] = set()
        for member in members:
            wrong = _wrong(member) or ("is there twice" if member.filename in seen else None)
            if wrong:
                raise ValueError(f"{self.path} is not read: its member {member.orig_filename[:80]!r} {wrong}")
            seen.add(member.filename)
        total, packed = (sum(getattr(m, size) for m in members) for size in ("file_size", "compress_size"))
        if total > _TOTAL:
            raise ValueError(f"{self.path} is not read: unpacked it is {total / 1e9:.0f} GB, more than 200 GB")
        if packed > self.length:
            raise ValueError(f"{self.path} is not read: its members overlap, or it was cut off")
        return [member for member in members if not member.is_dir()]

    def within(self, name: str) -> "ZipArchive":
        """Return the archive that is a member of this one.

        In place if it is stored as it is. One that is compressed is unpacked once, to a file of its name beside this
        one, or where that cannot be written to a temporary file.

        Raises:
            ValueError: If there is no such member, it is damaged, or another file of its name lies there.
        """
        member = next((m for m in self.members() if m.filename == name), None)
        if member is None:
            raise ValueError(f"{self.path} has no member {name}")
        if member.compress_type == zipfile.ZIP_STORED:
            try:
                start = self.data_of(member.header_offset)
            except OSError as error:
                raise ValueError(f"cannot read {name} in {self.path}: {error}") from error
            return ZipArchive(self.path, self.start + start, member.file_size)
        beside = self.path.with_name(Path(name).name)
        if beside.exists():
            if size_and_crc(beside) != (member.file_size, member.CRC):
                raise ValueError(f"{beside} is not the {name} that is in {self.path}: move one of them away")
            return ZipArchive(beside)
        rank_zero_info(f"{name} is compressed within {self.path}: unpacking it once")
        return self._unpack(member, beside)

    def data_of(self, at: int) -> int:
        """Return where the bytes of a member begin, of its header at ``at``.

        Raises:
            OSError: If there is no header.
        """
        header = self.read(at, 30)
        if len(header) < 30 or not header.startswith(b"PK\3\4"):
            raise OSError("the archive is damaged or cut off here")
        name, extra = struct.unpack("<HH", header[26:])
        return int(at + 30 + name + extra)

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(io.BufferedReader(_View(self)))
        except Exception as error:  # a damaged directory brings many kinds out of zipfile
            raise ValueError(f"{self.path} is no zip archive, damaged or cut off: {error}") from error

    def _unpack(self, member: zipfile.ZipInfo, beside: Path) -> "ZipArchive":
        partial = beside.with_name(f".{beside.name}.{os.getpid()}")
        temporary = False
        try:
            partial.touch()
        except OSError:
            handle, name = tempfile.mkstemp(prefix="lit_distill_", suffix=".zip")
            os.close(handle)
            partial, temporary = Path(name), True
        try:
            free = shutil.disk_usage(partial.parent).free
            if free < member.file_size:
                sizes = f"takes {member.file_size / 1e9:.1f} GB, and {partial.parent} has {free / 1e9:.1f} GB free"
                raise ValueError(f"{member.filename} in {self.path} must be unpacked: it {sizes}")
            bar = tqdm(total=member.file_size, desc=f"unpacking {beside.name}", unit="B", unit_scale=True, delay=1)
            with self._opened() as file, file.open(member) as source, partial.open("wb") as target, bar:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    bar.update(len(chunk))
            if not temporary:
                os.replace(partial, beside)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError)):
                raise ValueError(f"cannot unpack {member.filename} in {self.path}: {error}") from error
            raise
        archive = ZipArchive(partial if temporary else beside)
        if temporary:
            weakref.finalize(archive, _remove, partial, os.getpid())
        return archive


class ZipFiles(Files):
    """Members of a zip archive, read straight from it.

    Where each lies is packed like the names, so that the memory of a worker does not grow with the archive. No more is
    ever unpacked of a member than the archive says it has, and what has another length or checksum is damaged.

    Args:
        archive: The archive, or its path.
        names: Members to have; by default all.

    Raises:
        ValueError: If the archive is damaged or not to be trusted, see `ZipArchive`; if it has no such member, or the
            member is compressed by another method than deflate.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(f"{folder}/photos.zip", "w") as file:
        ...         file.writestr("cat/a.jpg", b"...")
        ...     files = ZipFiles(f"{folder}/photos.zip")
        ...     list(files), files.open(0).read()
        (['cat/a.jpg'], b'...')
    """

    def __init__(self, archive: str | Path | ZipArchive, names: Iterable[str] | None = None) -> None:
        self.archive = archive if isinstance(archive, ZipArchive) else ZipArchive(archive)
        members = {member.filename: member for member in self.archive.members()}
        names = list(members if names is None else names)
        unknown = next((name for name in names if name not in members), None)
        if unknown is not None:
            raise ValueError(f"{self.archive.path} has no member {unknown}")
        super().__init__(self.archive.path, names)
        chosen = [members[name] for name in names]
        odd = next((m for m in chosen if m.compress_type not in _METHODS), None)
        if odd is not None:
            raise ValueError(f"{self.archive.path} is not read: {odd.filename} is not compressed by deflate")
        table = [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in chosen]
        self._table = torch.tensor(table, dtype=torch.int64).reshape(-1, 5)

    @override
    def open(self, index: int) -> BinaryIO:
        """Return a member's bytes as an opened file.

        Raises:
            OSError: If it is damaged.
        """
        offset, packed, size, crc, method = self._table[index].tolist()
        data = self.archive.read(self.archive.data_of(offset), packed)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise OSError(str(error)) from error
        if len(data) != size or zlib.crc32(data) != crc:
            raise OSError("its length or checksum is not what the archive says")
        return io.BytesIO(data)

    @override
    def stamp(self, index: int) -> str:
        """Return size and checksum of a member."""
        _, _, size, crc, _ = self._table[index].tolist()
        return f"{size} {crc:08x}"

    @override
    def content(self, index: int) -> int:
        """Return what only another file with the same bytes has, from what the archive says of the member."""
        _, _, size, crc, _ = self._table[index].tolist()
        return content_key(size, crc)

    @override
    def identities(self) -> Tensor:
        """Return content and name of each row, ``(N, 2)`` int64."""
        return identities(self, torch.tensor([self.content(row) for row in range(len(self))], dtype=torch.int64))


class _View(io.RawIOBase):
    """An archive as the file that `zipfile` wants."""

    def __init__(self, archive: ZipArchive) -> None:
        self.archive, self.at = archive, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self.at, self.archive.length)[whence]
        if at < 0:
            raise OSError("before the beginning")
        self.at = at
        return at

    def readinto(self, buffer: Any) -> int:
        data = self.archive.read(self.at, len(buffer))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def _wrong(member: zipfile.ZipInfo) -> str | None:
    """Return what is wrong with a member, if anything is."""
    name = member.orig_filename.replace("\\", "/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    inner = name.lower().endswith(".zip")  # is never unpacked into memory
    checks: dict[str, Callable[[], Any]] = {
        "has no proper name": lambda: not name or "\0" in name,
        "has an absolute name": lambda: name.startswith("/") or re.match("[A-Za-z]:", name),
        "leads out of the archive": lambda: ".." in name.split("/"),
        "is a link or a device": lambda: kind not in (0, stat.S_IFREG, stat.S_IFDIR),
        "is encrypted": lambda: member.flag_bits & 1,
        "takes more than 1 GB": lambda: member.file_size > _MEMBER and not inner,
        f"takes more than {_RATIO} times its packed size": lambda: (
            member.file_size > _RATIO * max(1, member.compress_size)
        ),
    }
    return next((what for what, check in checks.items() if check()), None)


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a worker that was forked
        path.unlink(missing_ok=True)
