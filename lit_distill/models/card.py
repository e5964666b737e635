"""The card of a student: what a checkpoint or an export says of it beside its weights."""

from collections.abc import Mapping
import json
from pathlib import Path
import re
from typing import Any
import warnings

from torch import nn

# What a checkpoint says beside its weights: class names and the shape of the images it was trained on.
ABOUT = "lit_distill_about"

# Arguments that are files or folders, by the words of their names; and text that can be nothing else.
_PLACE_KEYS = re.compile(r"(^|_)(root|dir|dirpath|folder|path|file|filename)$")
_PLACES = re.compile(r".*[/\\].*|~.*|.*\.(ckpt|pt|pth|safetensors|zip|ya?ml)", re.DOTALL)


Card = dict[str, Any]  # plain containers; an export of another version may lack any of its entries


def card_of(checkpoint: object, path: str | Path) -> Card:
    """Return what a checkpoint says of its student, as plain containers.

    Raises:
        ValueError: If it is no checkpoint of a `LitDistiller`.
    """
    content = _mapping(checkpoint)
    if not any(str(key).startswith("student.") for key in _mapping(content.get("state_dict"))):
        raise ValueError(f"{path} is no checkpoint of a LitDistiller: it has no student")
    arguments, config = _mapping(content.get("hyper_parameters")), _mapping(content.get("lit_distill_config"))
    about = _mapping(content.get(ABOUT))
    about.pop("signature", None)
    summary = _mapping(_mapping(content.get("callbacks")).get("RunSummary"))
    card = {
        "student": arguments.get("student"),
        **about,
        "metrics": _mapping(summary.get("last")),
        "trained": {
            "epochs": content.get("epoch", -1) + 1,
            "steps": content.get("global_step"),
            "lightning": content.get("pytorch-lightning_version"),
            "config": config or {key: value for key, value in arguments.items() if not key.startswith("_")},
        },
    }
    return _with_trained_head(card)


def card_on(student: nn.Module) -> Card:
    """Return the card that `load_student` puts on a student; empty on other networks."""
    return getattr(student, "card", None) or {}


def read_card(folder: Path) -> Card:
    """Read the card of an export, and warn if it is of a version that did not write how a photo is prepared.

    Raises:
        ValueError: If it cannot be read or is no card.
    """
    path = folder / "student.json"
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path} is no card of a student")
    if "preprocessing" not in card:
        warnings.warn(
            f"{folder} was exported by an earlier version: its card does not say how a photo becomes the student's "
            "input; export it again from its checkpoint",
            stacklevel=3,
        )
    return _with_trained_head(card)


def without_places(about: object, key: str = "") -> object:
    """Return what a card says under ``key``, without the names of local files and folders: nobody else's business.

    Example:
        >>> without_places({"data": {"root": "photos", "seed": 1}, "logs": ["/home/me/logs"], "model": "resnet18"})
        {'data': {'seed': 1}, 'logs': [], 'model': 'resnet18'}
    """
    if isinstance(about, Mapping):
        parts = {str(name): value for name, value in about.items() if not _is_place(value, str(name))}
        return {name: without_places(value, name) for name, value in parts.items()}
    if isinstance(about, (list, tuple)):
        return [without_places(value, key) for value in about if not _is_place(value, key)]
    return about


def _is_place(value: object, key: str) -> bool:
    if isinstance(value, str) and key != "class_path":
        return bool(_PLACE_KEYS.search(key) or _PLACES.fullmatch(value))
    return isinstance(value, Path)


def _with_trained_head(card: Card) -> Card:
    """Correct the head that earlier versions named without a distillation loss, which had not trained it."""
    config = _mapping(_mapping(card.get("trained")).get("config"))
    model = _mapping(config.get("model", config))
    return card if "trained_heads" in card or model.get("distillation", "") is not None else {**card, "head": "class"}


def _mapping(value: object) -> Card:
    return dict(value) if isinstance(value, Mapping) else {}
