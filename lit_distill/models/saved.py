"""A trained student as files, and back."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import timm
from torch import Tensor, nn

from lit_distill.models.card import ABOUT, Card, card_of, read_card
from lit_distill.models.pixels import as_pair, first_given
from lit_distill.models.serving import predict
from lit_distill.models.trust import build, is_description, trusting
from lit_distill.models.weights import load_safely, load_strictly, plain_names, read_state_dict


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
        card = read_card(path)
        weights, described = path / "student.safetensors", card.get("student")
        state = read_state_dict(weights)
    elif path.is_dir():
        below = [*path.glob("*/student.json"), *path.glob("*/*/student.json")]
        mend = f"; there is one in {min(below).parent}" if below else ", and no checkpoint"
        raise ValueError(f"{path} is a directory without student.json: no export of a student{mend}")
    else:
        checkpoint = load_safely(path, "checkpoint")
        card, state = card_of(checkpoint, path), student_state(checkpoint["state_dict"])
        weights, described = path, card["student"]
    if student is None:
        if not is_description(described):
            raise ValueError(f"{path} was saved by Python code and does not say how to make its student: give student=")
        with trusting(trust):
            student = build(described, path)
    load_strictly(student, state, weights)
    loaded: Any = student.eval()  # any class may be a student, and none declares these two
    loaded.card, loaded.predict = card, partial(predict, student)  # which pickle can copy
    return student


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


def origin_of(path: str | Path | None) -> Origin | None:
    """Return what the weights in a file were trained on; None unless it is of this project and says how it was made.

    Nothing that the file names is imported. A file that cannot be read says nothing here; whoever loads its weights
    tells what is wrong with it.
    """
    card = {} if path is None else _card_at(Path(path))
    description = card.get("student")
    if not is_description(description):
        return None
    arguments = description.get("init_args") or {}
    mean, std = arguments.get("mean"), arguments.get("std")
    size = arguments.get("img_size") or arguments.get("image_size")
    if str(description["class_path"]).endswith("TimmStudent"):  # which takes from timm what it is not given
        trained = timm.get_pretrained_cfg(str(arguments.get("name")), allow_unregistered=True)
        if trained is not None:
            size = size or trained.input_size[1:]
            mean, std = first_given((mean, std), (trained.mean, trained.std))
    size = size or (card.get("image_shape") or ())[1:]
    size = as_pair(size, "image_size") if size else None
    return Origin(mean, std, size, card.get("class_names"), arguments.get("attention_scale", "dim_head"))


def _card_at(path: Path) -> Card:
    """Return the card of an export, of its weights or of a checkpoint; empty where there is none."""
    folder = path.parent if path.name == "student.safetensors" else path
    if (folder / "student.json").is_file():
        with warnings.catch_warnings(action="ignore"):  # about photos, which do not matter for the weights
            return read_card(folder)
    if path.suffix == ".safetensors":  # it has weights alone
        return {}
    try:
        content = load_safely(path, mmap=True)
        return {"student": content["hyper_parameters"].get("student"), **(content.get(ABOUT) or {})}
    except (ValueError, LookupError, TypeError, AttributeError):  # weights alone, or not even that
        return {}


def student_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the student's part of a `LitDistiller`'s state dict."""
    student = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    return plain_names(student)
