"""What a run is made of: how two of them differ, in words."""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import os
from typing import Any

from lit_distill.cli.run_config import changes
from lit_distill.datamodules.walk import printable

# What the command calls its choices, where that is not what the configuration calls them.
_FLAGS = {"seed_everything": "seed"}
_TEACHERS = {**_FLAGS, "epochs": "teacher_epochs", "model.student.name": "teacher_net"}
_SHOWN = 5


def identified(value: Any) -> Any:
    """Return a configuration with the real path of each file and folder, and a digest of each file.

    So ``photos``, ``photos/`` and its absolute path are one, and a file with other content is another.

    Example:
        >>> identified({"root": "."}) == identified({"root": os.getcwd() + "/"}), identified(["resnet18", 3])
        (True, ['resnet18', 3])
    """
    if isinstance(value, Mapping):
        return {key: identified(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [identified(inner) for inner in value]
    if isinstance(value, str) and value.startswith("--"):
        flag, _, inner = value.partition("=")
        return f"{flag}={identified(inner)}"
    if not isinstance(value, (str, os.PathLike)) or not os.path.exists(value):
        return value
    path = os.path.realpath(value)
    if not os.path.isfile(path):
        return path
    with open(path, "rb") as file:
        return f"{path} ({hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"


def told_differences(now: Mapping[str, Any], then: Mapping[str, Any], name: str) -> list[str]:
    """Return how what a run is made of differs from what another was made of.

    Args:
        now: As `Stage` stores it: ``config``, ``epochs``, ``flags``, ``version``, and of the inputs ``photos``, digests
            by split and name, and ``teacher``.
        then: The same of the other run.
        name: ``"teacher"`` or ``"student"``.

    Example:
        >>> now = {"epochs": 40, "photos": {"train": {"a.jpg": "1", "b.jpg": "2"}}}
        >>> told_differences(now, {"epochs": 50, "photos": {"train": {"a.jpg": "1"}}}, "student")
        ['1 photo is new (b.jpg)', '--epochs is 40 instead of 50']
    """
    lines = list(_photos(now.get("photos") or {}, then.get("photos") or {}))
    if now.get("teacher") != then.get("teacher"):
        lines.append("the teacher is another")
    called = _TEACHERS if name == "teacher" else _FLAGS
    for _, flag, new, old in changes(_choices(then), _choices(now)):
        lines.append(f"--{called.get(flag, flag)} is {_shown(new)} instead of {_shown(old)}")
    if now.get("version") != then.get("version"):
        lines.append(f"lit-distill is {now.get('version')} instead of {then.get('version')}")
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"and {more} more"]


def _choices(made_of: Mapping[str, Any]) -> dict[str, Any]:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in made_of.get("flags") or ())
    return {"epochs": made_of.get("epochs"), **(made_of.get("config") or {}), **flags}


def _photos(now: Mapping[str, Mapping[str, str]], then: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    new, old = _by_name(now), _by_name(then)
    both = new.keys() & old.keys()
    kinds: dict[str, Sequence[str]] = {
        "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "changed": [name for name in new if name in both and new[name][1] != old[name][1]],
        "on the other side of the split": [name for name in new if name in both and new[name][0] != old[name][0]],
    }
    for how, names in kinds.items():
        if names:
            such = "" if len(names) == 1 else "such as "
            yield f"{len(names)} photo{' is' if len(names) == 1 else 's are'} {how} ({such}{printable(names[0])})"


def _by_name(photos: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    return {name: (split, content) for split, names in photos.items() for name, content in names.items()}


def _shown(value: Any) -> str:
    return "not given" if value is None else printable(str(value))
