"""What the card of a student says."""

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

# Arguments that are files or folders, by the words of their names; and text that can be nothing else.
_KEYS = re.compile(r"(^|_)(root|dir|dirpath|folder|path|file|filename)$")
_TEXTS = re.compile(r".*[/\\].*|~.*|.*\.(ckpt|pt|pth|safetensors|zip|ya?ml)", re.DOTALL)
_PLACE = object()  # in place of what is left out


def without_places(about: Any) -> Any:
    """Return what a card says without the names of local files and folders, which are nobody else's business.

    Example:
        >>> without_places({"data": {"root": "photos", "seed": 1}, "logs": ["/home/me/logs"], "model": "resnet18"})
        {'data': {'seed': 1}, 'logs': [], 'model': 'resnet18'}
    """
    return _without_places(about, "")


def _without_places(about: Any, key: str) -> Any:
    if isinstance(about, Mapping):
        parts = {name: _without_places(value, str(name)) for name, value in about.items()}
        return {name: value for name, value in parts.items() if value is not _PLACE}
    if isinstance(about, (list, tuple)):
        return [value for value in (_without_places(value, key) for value in about) if value is not _PLACE]
    text = isinstance(about, str) and key != "class_path" and (_KEYS.search(key) or _TEXTS.fullmatch(about))
    return _PLACE if text or isinstance(about, Path) else about
