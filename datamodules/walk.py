"""Which files of a folder are photos: the one walk of all who read folders."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import os
from pathlib import Path
import re
import stat
from typing import Literal

from lit_distill.checks import did_you_mean
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
_WHY: Mapping[Why, str] = {
    "heif": f"HEIC, which is read after {READS_HEIF}",
    "other": "no image by its name",
    "link": "broken link",
    "pipe": "pipe, socket or device",
    "again": "link to what is read already",
    "folder": "folder without an image, taken for no class",
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

    def told(self) -> str:
        """Return what was left out as one line, empty if nothing was."""
        parts = [f"{what}: {_counted([*self.left_out[why]])}" for why, what in _WHY.items() if why in self.left_out]
        return f"left out: {'; '.join(parts)}" if parts else ""

    def after(self, message: str) -> str:
        """Return a message, followed by what was left out."""
        return f"{message} ({self.told()})".removesuffix(" ()")


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
        ['a.png', 'b.jpg'] left out: no image by its name: README.txt
    """
    found, identities = Found(), {*_above(os.path.abspath(folder)), *_above(os.path.realpath(root))}
    places, links = deque([(str(folder), os.path.relpath(folder, root))]), deque[tuple[str, str]]()
    while places or links:  # links last, so that a file is found by its own name
        path, name = (places or links).popleft()
        try:
            status = os.stat(path)
        except OSError:
            found.leave_out("link", name)
            continue
        if _identity(status) in identities:
            found.leave_out("again", name)
        elif stat.S_ISDIR(status.st_mode):
            identities.update([_identity(status), *_above(os.path.realpath(path))])
            for entry in _entries(path):
                entry_place = entry.path, os.path.normpath(os.path.join(name, entry.name))
                (links if entry.is_symlink() else places).append(entry_place)
        elif not stat.S_ISREG(status.st_mode):
            found.leave_out("pipe", name)
        elif why := _no_photo(path):
            found.leave_out(why, name)
        else:
            identities.add(_identity(status))
            found.names.append(name)
    found.names.sort(key=_order)
    return found


def check_folder(root: Path, expected: str) -> None:
    """Raise ``ValueError`` unless ``root`` is a folder; the message says what is expected, and what may be meant."""
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        hint = did_you_mean(root.name, (folder.name for folder in root.parent.glob("*/")))
        raise ValueError(f"{root} {kind}: {expected}; {hint}".removesuffix("; "))


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, and links to folders, in the order of their names.

    Raises:
        ValueError: If the folder cannot be read.
    """
    return [folder / entry.name for entry in _entries(folder) if os.path.isdir(entry.path)]


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


def _counted(names: Sequence[str]) -> str:
    return printable(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _no_photo(path: str) -> Why | None:
    """Return why a file is no photo, or None if it is one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in photo_suffixes() or (not suffix and begins_like_an_image(path)):
        return None
    return "heif" if suffix in HEIF_SUFFIXES else "other"


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _JUNK]
    except OSError as error:
        raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def _identity(about: os.stat_result) -> tuple[int, int]:
    """Return what a file or folder has in common with links to it."""
    return about.st_dev, about.st_ino


def _above(path: str) -> set[tuple[int, int]]:
    return {_identity(parent.stat()) for parent in Path(path).parents}


def _order(name: str) -> list[tuple[bool, str]]:
    *folders, file = name.split(os.sep)
    return [*((True, folder) for folder in folders), (False, file)]
