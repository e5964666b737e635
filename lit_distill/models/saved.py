"""A trained student as files, and back."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
import json
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import timm
from torch import Tensor, nn

from lit_distill.models.pixels import as_pair
from lit_distill.models.serving import predict
from lit_distill.models.trust import build, trusting
from lit_distill.models.weights import load_safely, load_strictly, plain_names, read_state_dict

# What a checkpoint says beside its weights: class names and the shape of the images it was trained on.
ABOUT = "lit_distill_about"


def load_student(path: str | Path, student: nn.Module | None = None, *, trust: str | Iterable[str] = ()) -> nn.Module:
    """Bring a trained student back, without Lightning and without its teacher.

    The file says how to make the network, and may only name modules of this package and of ``torch.nn``, and models of
    timm and torchvision. For a network of your own, say which package it is from, with ``trust``.

    Args:
        path: The folder of an export, or a checkpoint of `LitDistiller`.
        student: The network that the weights are for, where the file does not say how to make it: a checkpoint of
            Python code, not of the command line.
        trust: Packages whose ``torch.nn.Module`` classes the file may name too.

    Returns:
        The student in eval mode, with what its card says as ``student.card``, a dict, and the method
        ``student.predict(photos)``, which is `predict`.

    Raises:
        ValueError: If there is no such file, it is damaged, no student's, names what it may not name, or would run
            code.

    Example:
        >>> load_student("no/such/folder")
        Traceback (most recent call last):
        ValueError: no checkpoint file at no/such/folder
    """
    path = Path(path)
    if (path / "student.json").is_file():
        card = _read_card(path / "student.json")
        weights, described = path / "student.safetensors", card.get("student")
        state = read_state_dict(weights)
    elif path.is_dir():
        raise ValueError(f"{path} is a directory without student.json: no export of a student")
    else:
        checkpoint = load_safely(path, "checkpoint")
        card, state = card_of(checkpoint, path), student_state(checkpoint["state_dict"])
        weights, described = path, card["student"]
    if student is None:
        if not (isinstance(described, Mapping) and "class_path" in described):
            raise ValueError(f"{path} was saved by Python code and does not say how to make its student: give student=")
        with trusting(trust):
            student = build(described, path)
    load_strictly(student, state, weights)
    student.eval().card = card
    student.predict = partial(predict, student)  # of the object, as any class may be a student; pickle can copy it
    return student


def card_of(checkpoint: Any, path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint says of its student, as plain containers.

    Raises:
        ValueError: If it is no checkpoint of a `LitDistiller`.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not any(str(key).startswith("student.") for key in state):
        raise ValueError(f"{path} is no checkpoint of a LitDistiller: it has no student")
    arguments, config = (_mapping(checkpoint.get(key)) for key in ("hyper_parameters", "lit_distill_config"))
    about = {key: value for key, value in _mapping(checkpoint.get(ABOUT)).items() if key != "signature"}
    if "trained_heads" not in about and _without_distillation(config.get("model", arguments)):
        about["head"] = "class"  # earlier versions named a head that nothing had trained
    summary = (checkpoint.get("callbacks") or {}).get("RunSummary") or {}
    return {
        "student": arguments.get("student"),
        **about,
        "metrics": summary.get("last") or {},
        "trained": {
            "epochs": checkpoint.get("epoch", -1) + 1,
            "steps": checkpoint.get("global_step"),
            "lightning": checkpoint.get("pytorch-lightning_version"),
            "config": config or {key: value for key, value in arguments.items() if not key.startswith("_")},
        },
    }


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


class Origin(NamedTuple):
    """What the student of a checkpoint or an export learned from, as far as the file tells.

    ``mean`` and ``std`` are per channel and in 0..1 units, None for images taken as they come; ``input_size`` is
    ``(height, width)`` in pixels; ``attention_scale`` as in `DistillableViT`.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None
    input_size: Sequence[int] | None
    class_names: Sequence[str] | None
    attention_scale: str = "dim_head"


def origin_of(path: str | Path) -> Origin | None:
    """Return what the weights in a file were trained on; None unless it is of this project and says how it was made.

    Nothing that the file names is imported. A file that cannot be read says nothing here; whoever loads its weights
    tells what is wrong with it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     card = {"student": {"class_path": "Net", "init_args": {"mean": [0.3], "std": [0.4]}}}
        ...     _ = Path(folder, "student.json").write_text(json.dumps({**card, "image_shape": [1, 8, 8]}))
        ...     origin_of(folder)
        Origin(mean=[0.3], std=[0.4], input_size=(8, 8), class_names=None, attention_scale='dim_head')
    """
    path = Path(path)
    folder = path.parent if path.name == "student.safetensors" else path
    if (folder / "student.json").is_file():
        with warnings.catch_warnings(action="ignore"):  # about photos, which is nothing to its weights
            card = _read_card(folder / "student.json")
    elif path.suffix == ".safetensors":
        return None
    else:
        try:
            loaded = load_safely(path, mmap=True)
        except ValueError:
            return None
        if not isinstance(loaded, Mapping) or not isinstance(loaded.get("hyper_parameters"), Mapping):
            return None
        card = {"student": loaded["hyper_parameters"].get("student"), **(loaded.get(ABOUT) or {})}
    described = card.get("student")
    if not (isinstance(described, Mapping) and "class_path" in described):
        return None
    arguments = described.get("init_args") or {}
    mean, std = arguments.get("mean"), arguments.get("std")
    size = arguments.get("img_size") or arguments.get("image_size")
    if str(described["class_path"]).endswith("TimmStudent"):  # which has from timm what it is not given
        config: Any = timm.get_pretrained_cfg(str(arguments.get("name")), allow_unregistered=True)
        if config is not None:
            mean, std = (config.mean, config.std) if mean is None and std is None else (mean, std)
            size = size or config.input_size[1:]
    size = size or (card.get("image_shape") or ())[1:] or None
    size = None if size is None else as_pair(size, "image_size")
    return Origin(mean, std, size, card.get("class_names"), arguments.get("attention_scale", "dim_head"))


def student_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the student's part of a `LitDistiller`'s state dict."""
    student = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return plain_names(student)


def _without_distillation(model: Any) -> bool:
    return isinstance(model, Mapping) and "distillation" in model and model["distillation"] is None


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path} is no card of a student")
    if "preprocessing" not in card:
        warnings.warn(
            f"{path.parent} was exported by an earlier version: its card does not say how a photo becomes the "
            "student's input; export it again from its checkpoint",
            stacklevel=3,
        )
        config = (card.get("trained") or {}).get("config") or {}
        if "trained_heads" not in card and _without_distillation(config.get("model", config)):
            card["head"] = "class"
    return card
