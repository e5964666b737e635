"""Files in a zip archive, read where they are; nobody's archive is trusted."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
import io
import os
from pathlib import Path, PureWindowsPath
import shutil
import stat
import tempfile
from typing import BinaryIO
import weakref
import zipfile
import zlib

from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Buffer, override

from lit_distill.datamodules.images import Files, content_key, size_and_crc
from lit_distill.files import write_atomically
from lit_distill.identity import identities

_MEMBER = 10**9  # bytes of a member, unpacked
_RATIO = 1000  # unpacked size / packed size of a member
_TOTAL = 200 * 10**9  # bytes of all members, unpacked
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER = 30  # bytes before a member's name


class ZipArchive:
    """A zip archive: a file, or a part of one.

    Reads carry their position, so any number of forked processes and threads share one open file. A pickled copy opens
    its own.

    Args:
        path: The file.
        start: Byte of the file at which the archive begins.
        length: Bytes of the archive; None for the rest of the file.

    Raises:
        ValueError: If the file is not there or cannot be read.
    """

    def __init__(self, path: str | Path, start: int = 0, length: int | None = None) -> None:
        self.path, self.start = Path(path), start
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise ValueError(f"cannot read the archive {path}: {error.strerror}") from error
        weakref.finalize(self, self._file.close)
        self.length = self.path.stat().st_size - start if length is None else length

    def __reduce__(self) -> tuple[type["ZipArchive"], tuple[Path, int, int]]:
        return ZipArchive, (self.path, self.start, self.length)

    def read(self, position: int, length: int) -> bytes:
        """Return the bytes from ``position``, fewer only where the archive ends."""
        return os.pread(self._file.fileno(), max(0, min(length, self.length - position)), self.start + position)

    def members(self, names: Iterable[str] | None = None) -> list[zipfile.ZipInfo]:
        """Return what the archive's directory says about its members, folders left out.

        Args:
            names: Members to have, in this order; by default all.

        Raises:
            ValueError: If the archive is damaged or lacks one of ``names``; a name is absolute, leads out of the
                archive or is there twice; a member is a link or encrypted; a member takes more than 1 GB or more than
                1000 times its packed size, or all of them more than 200 GB, or more than there is.
        """
        with self._open() as file:
            members = file.infolist()
        if problem := next(_problems(members, self.length), None):
            raise ValueError(f"{self.path} is not read: {problem}")
        by_name = {member.filename: member for member in members if not member.is_dir()}
        try:
            return [by_name[name] for name in (by_name if names is None else names)]
        except KeyError as error:
            raise ValueError(f"{self.path} has no member {error.args[0]}") from error

    def within(self, name: str) -> "ZipArchive":
        """Return the archive that is a member of this one.

        A stored member is read in place. A compressed one is unpacked once, to a file of its name beside this archive,
        or to a temporary file if that place cannot be written.

        Raises:
            ValueError: If there is no such member, it is damaged, or another file of its name lies there.
        """
        (member,) = self.members([name])
        if member.compress_type == zipfile.ZIP_STORED:
            return ZipArchive(self.path, self.start + self.data_of(member.header_offset), member.file_size)
        unpacked = self.path.with_name(Path(name).name)
        if not unpacked.exists():
            return self._unpack(member)
        if size_and_crc(unpacked) != (member.file_size, member.CRC):
            raise ValueError(f"{unpacked} is not the {name} that is in {self.path}: move one of them away")
        return ZipArchive(unpacked)

    def data_of(self, position: int) -> int:
        """Return where the bytes of a member begin, from its header at ``position``."""
        header = self.read(position, _HEADER)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        return position + _HEADER + name + extra

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(io.BufferedReader(_View(self)))
        except Exception as error:  # a damaged directory brings many kinds out of zipfile
            raise ValueError(f"{self.path} is no zip archive, damaged or cut off: {error}") from error

    def _unpack(self, member: zipfile.ZipInfo) -> "ZipArchive":
        rank_zero_info(f"{member.filename} is compressed within {self.path}: unpacking it once")
        folder = self.path.parent
        is_writable = os.access(folder, os.W_OK)
        if not is_writable:
            folder = Path(tempfile.mkdtemp(prefix="lit_distill_"))
        unpacked = folder / Path(member.filename).name
        try:
            with (
                write_atomically(unpacked) as part,
                part.open("wb") as target,
                self._open() as archive,
                archive.open(member) as packed,
                tqdm.wrapattr(packed, "read", member.file_size, desc=f"unpacking {unpacked.name}") as source,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise ValueError(f"cannot unpack {member.filename} in {self.path}: {error}") from error
        inner = ZipArchive(unpacked)
        if not is_writable:
            weakref.finalize(inner, _remove, folder, os.getpid())
        return inner


class ZipFiles(Files):
    """Members of a zip archive, read straight from it.

    Reading never unpacks more of a member than the archive announces; one of another length or checksum is damaged.

    Args:
        archive: The archive, or its path.
        names: Members to have; by default all.

    Raises:
        ValueError: If the archive is damaged, not to be trusted or without such a member, see `ZipArchive.members`.

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
        members = self.archive.members(names)
        super().__init__(self.archive.path, [member.filename for member in members])
        table = [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in members]
        self._table = torch.tensor(table, dtype=torch.int64).reshape(-1, 5)

    @override
    def open(self, index: int) -> BinaryIO:
        offset, packed, size, crc, method = self._table[index].tolist()
        data = self.archive.read(self.archive.data_of(offset), packed)
        if method == zipfile.ZIP_DEFLATED:
            with suppress(zlib.error):  # the checksum shows that it failed
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if len(data) != size or zlib.crc32(data) != crc:
            raise OSError("its length or checksum is not what the archive says")
        return io.BytesIO(data)

    @override
    def stamp(self, index: int) -> str:
        size, crc = self._table[index, 2:4].tolist()
        return f"{size} {crc:08x}"

    @override
    def identities(self) -> Tensor:
        _, _, sizes, checksums, _ = self._table.unbind(dim=1)
        return identities(self, content_key(sizes, checksums))


class _View(io.RawIOBase):
    """An archive as the file that `zipfile` wants."""

    def __init__(self, archive: ZipArchive) -> None:
        self.archive, self.position = archive, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.archive.length)[whence])
        return self.position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        data = self.archive.read(self.position, len(view))
        view[: len(data)] = data
        self.position += len(data)
        return len(data)


def _problems(members: Sequence[zipfile.ZipInfo], length: int) -> Iterator[str]:
    """Yield what is wrong with an archive, from what it says about its members."""
    copies = Counter(member.filename for member in members)
    for member in members:
        name = PureWindowsPath(member.orig_filename)  # knows both kinds of slashes
        checks = {
            "has no proper name": "\0" in member.orig_filename or not member.orig_filename,
            "has an absolute name": bool(name.anchor),
            "leads out of the archive": ".." in name.parts,
            "is there twice": copies[member.filename] > 1,
            "is a link or a device": stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR),
            "is encrypted": bool(member.flag_bits & 1),
            "is not compressed by deflate": member.compress_type not in _METHODS,
            # An inner archive is never unpacked into memory.
            "takes more than 1 GB": member.file_size > _MEMBER and name.suffix.lower() != ".zip",
            f"takes more than {_RATIO} times its packed size": member.file_size > _RATIO * max(1, member.compress_size),
        }
        yield from (f"its member {member.orig_filename[:80]!r} {what}" for what, holds in checks.items() if holds)
    total = sum(member.file_size for member in members)
    if total > _TOTAL:
        yield f"unpacked it is {total / 1e9:.0f} GB, more than 200 GB"
    if sum(member.compress_size for member in members) > length:
        yield "its members overlap, or it was cut off"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a worker that was forked
        shutil.rmtree(folder, ignore_errors=True)
