"""Which files of a folder are photos: the one walk of all who read folders."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
import re
from typing import Literal

from lit_distill.photos import HEIF_SUFFIXES, READS_HEIF, begins_like_an_image, photo_suffixes

# Beside names that begin with a dot: what file managers, network storage and archives put between photos.
_JUNK = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("__macosx", "$recycle.bin", "system volume information", "lost+found"),
    )
)

Why = Literal["other", "heif", "link", "pipe", "again", "folder"]
_WHY: Mapping[Why, tuple[str, str]] = {
    "heif": (
        f"HEIC photo, which is read after {READS_HEIF}",
        f"HEIC photos, which are read after {READS_HEIF}",
    ),
    "other": ("file that is no image by its name", "files that are no images by their names"),
    "link": ("broken link", "broken links"),
    "pipe": ("pipe, socket or device", "pipes, sockets or devices"),
    "again": ("link to what is read already", "links to what is read already"),
    "folder": ("folder without an image, taken for no class", "folders without an image, taken for no classes"),
}


@dataclass
class Found:
    """What a walk has found.

    Attributes:
        names: The photos, as paths in the root: a folder's files before its folders, each in the order of their names.
        left_out: What is no photo, by why.
    """

    names: list[str] = field(default_factory=list)
    left_out: dict[Why, dict[str, None]] = field(default_factory=dict)  # a set that keeps its order

    def leave_out(self, why: Why, *names: str) -> None:
        """Note what is no photo."""
        self.left_out.setdefault(why, {}).update(dict.fromkeys(names))

    def add_left_out(self, other: "Found") -> None:
        """Note what another walk has left out."""
        for why, names in other.left_out.items():
            self.leave_out(why, *names)

    def told(self) -> str | None:
        """Return what was left out as one line, or None if nothing was."""
        parts = [_told(why, [*self.left_out[why]]) for why in _WHY if why in self.left_out]
        return f"left out: {'; '.join(parts)}" if parts else None


def photos_in(folder: str | Path, root: str | Path) -> Found:
    """Return the photos in a folder, at any depth.

    A file is a photo if Pillow reads files with such a suffix, or if it has no suffix and begins like an image. Links
    are followed, but no folder is entered and no file taken twice, and no link that leads back to the folder, to the
    root or to what they are in. Hidden files, and what file managers and archives put between photos, are no photos.

    Args:
        folder: The folder.
        root: A folder that it is in, or the same: names are paths in it.

    Raises:
        ValueError: If a folder cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.jpg", "a.png", "README.txt", ".hidden.png"):
        ...         Path(folder, name).touch()
        ...     found = photos_in(folder, folder)
        >>> print(found.names, found.told())
        ['a.png', 'b.jpg'] left out: 1 file that is no image by its name, README.txt
    """
    found, taken, entered = Found(), set[tuple[int, int]](), set(_above(root))
    if Path(folder) != Path(root):
        entered.add(os.path.realpath(root))
    start = str(folder), os.path.relpath(folder, root)
    places, links = deque([start]), deque[tuple[str, str]]()
    while places or links:  # links last, so that a file is found by its own name
        linked = not places
        path, name = links.popleft() if linked else places.pop()
        kind = _kind(path)
        if kind == "file":
            _take(path, name, found, taken)
        elif kind != "folder":
            found.leave_out(kind, name)
        elif (real := os.path.realpath(path)) in entered:
            found.leave_out("again", name)
        else:
            entered.add(real)
            if linked or (path, name) == start:
                entered.update(_above(real))
            for entry in _entries(path):
                inside = entry.path, entry.name if name == os.curdir else os.path.join(name, entry.name)
                if entry.is_symlink():
                    links.append(inside)
                elif entry.is_dir():
                    places.append(inside)
                elif entry.is_file():
                    _take(*inside, found, taken)
                else:
                    found.leave_out("pipe", inside[1])
    found.names.sort(key=_order)
    return found


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, and links to folders, in the order of their names.

    Raises:
        ValueError: If the folder cannot be read.
    """
    return [folder / entry.name for entry in _entries(folder) if _kind(entry.path) == "folder"]


def is_empty(folder: Path) -> bool:
    """Tell whether a folder has nothing in it, but for what is hidden.

    Raises:
        ValueError: If the folder cannot be read.
    """
    return not _entries(folder)


def printable(name: str) -> str:
    r"""Return a file's name as text that any terminal, CSV file or JSON file takes.

    A byte that is no UTF-8, and a control character, becomes ``\x`` and its two hexadecimal digits.

    Example:
        >>> print(printable(os.fsdecode(b"caf\xe9.jpg")), printable("café.jpg"), printable("two\nlines"))
        caf\xe9.jpg café.jpg two\x0alines
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _told(why: Why, names: list[str]) -> str:
    one, several = _WHY[why]
    return (
        f"1 {one}, {printable(names[0])}"
        if len(names) == 1
        else f"{len(names)} {several}, such as {printable(names[0])}"
    )


def _take(path: str, name: str, found: Found, taken: set[tuple[int, int]]) -> None:
    """Note a file as a photo, or as what it is instead."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in photo_suffixes() and (suffix or not begins_like_an_image(path)):
        found.leave_out("heif" if suffix in HEIF_SUFFIXES else "other", name)
        return
    about = os.stat(path)
    if (about.st_dev, about.st_ino) in taken:
        found.leave_out("again", name)
        return
    taken.add((about.st_dev, about.st_ino))
    found.names.append(name)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _JUNK]
    except OSError as error:
        raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def _kind(path: str) -> Literal["folder", "file", "pipe", "link"]:
    """Tell what is there, or at the end of a link."""
    if os.path.isdir(path):
        return "folder"
    return "file" if os.path.isfile(path) else "pipe" if os.path.exists(path) else "link"


def _above(folder: str | Path) -> Iterable[str]:
    return map(str, Path(os.path.realpath(folder)).parents)


def _order(name: str) -> list[tuple[bool, str]]:
    *folders, file = name.split(os.sep)
    return [*((True, folder) for folder in folders), (False, file)]
