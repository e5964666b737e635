"""What a run is made of, and how two runs differ, in words."""

from collections.abc import Iterator, Mapping
import hashlib
import os
import re
from typing import Any

from lit_distill.cli.changes import Change, changes, map_leaves
from lit_distill.datamodules.walk import printable

# The flags of the command, where the configuration has other names.
_FLAGS = {"student": {"seed_everything": "seed"}}
_FLAGS["teacher"] = {**_FLAGS["student"], "epochs": "teacher_epochs", "model.student.name": "teacher_net"}
_SHOWN = 5


def identified(config: object) -> object:
    """Replace each file or folder in a configuration by its real path, and add a digest of each file.

    So ``photos``, ``photos/`` and its absolute path are one folder, and a file with other content is another file.

    Example:
        >>> identified({"root": "."}) == identified({"root": os.getcwd() + "/"}), identified(["resnet18", 3])
        (True, ['resnet18', 3])
    """
    return map_leaves(config, _identified)


def _identified(value: object) -> object:
    if not isinstance(value, (str, os.PathLike)):
        return value
    flag, path = re.findall(r"\A(--[^=]*=)?(.*)", os.fspath(value), re.DOTALL)[0]
    if not os.path.exists(path):
        return value
    path = os.path.realpath(path)
    if os.path.isfile(path):
        with open(path, "rb") as file:
            path += f" ({hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"
    return f"{flag}{path}"


def differences_in_words(now: Mapping[str, Any], then: Mapping[str, Any], name: str) -> list[str]:
    """Say how two runs differ.

    Args:
        now: What a run is made of, as `Stage` stores it: ``config``, ``epochs``, ``flags``, ``version``, and of the
            inputs ``photos``, digests by split and name, and ``teacher``.
        then: The same of the other run.
        name: ``"teacher"`` or ``"student"``.

    Example:
        >>> now = {"epochs": 40, "photos": {"train": {"a.jpg": "1", "b.jpg": "2"}}}
        >>> differences_in_words(now, {"epochs": 50, "photos": {"train": {"a.jpg": "1"}}}, "student")
        ['1 photo is new (b.jpg)', '--epochs is 40 instead of 50']
    """
    lines = list(_photos(now.get("photos", {}), then.get("photos", {})))
    if now.get("teacher") != then.get("teacher"):
        lines.append("the teacher is another")
    changed: dict[str, Change] = {}  # a flag may set what the configuration has too
    for change in changes(_choices(then), _choices(now)):
        changed.setdefault(_FLAGS[name].get(change.flag, change.flag), change)
    for flag, change in changed.items():
        lines.append(f"--{flag} is {_shown(change.new)} instead of {_shown(change.old)}")
    if now.get("version") != then.get("version"):
        lines.append(f"lit-distill is {now.get('version')} instead of {then.get('version')}")
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"and {more} more"] if more > 0 else lines


def _choices(made_of: Mapping[str, Any]) -> dict[str, object]:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in made_of.get("flags", ()))
    return {"epochs": made_of.get("epochs"), **made_of.get("config", {}), **flags}


def _photos(now: Mapping[str, Mapping[str, str]], then: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    contents_now, splits_now = _by_name(now)
    contents_then, splits_then = _by_name(then)
    kinds = {
        "new": contents_now.keys() - contents_then.keys(),
        "gone": contents_then.keys() - contents_now.keys(),
        "changed": _differing(contents_now, contents_then),
        "on the other side of the split": _differing(splits_now, splits_then),
    }
    for kind, names in kinds.items():
        if names:
            count, such_as = ("1 photo is", "") if len(names) == 1 else (f"{len(names)} photos are", "such as ")
            yield f"{count} {kind} ({such_as}{printable(min(names))})"


def _by_name(photos: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Return each photo's content and its split."""
    contents: dict[str, str] = {}
    splits: dict[str, str] = {}
    for split, digests in photos.items():
        contents |= digests
        splits |= dict.fromkeys(digests, split)
    return contents, splits


def _differing(now: Mapping[str, str], then: Mapping[str, str]) -> set[str]:
    return {name for name in now.keys() & then.keys() if now[name] != then[name]}


def _shown(value: object) -> str:
    return "not given" if value is None else printable(str(value))
