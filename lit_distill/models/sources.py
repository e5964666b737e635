"""Networks by name: timm's, torchvision's, yours by a dotted path, and those of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

import timm
from torch import Tensor, nn
import torchvision.models

from lit_distill.models.pixels import as_pair
from lit_distill.models.saved import load_student
from lit_distill.models.timm_net import nearest, timm_net
from lit_distill.models.trust import file_that_names, module_named
from lit_distill.models.weights import load_strictly, pick, read_state_dict


class Network(NamedTuple):
    """A network with the statistics and the size of its training data, as far as its source tells them.

    ``channels`` are those of the images where it was made for others than its training data's.
    """

    model: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: Sequence[int] | None = None
    channels: int | None = None


def source_of(name: str, weights: str | Path | None = None) -> Literal["file", "torchvision", "dotted path", "timm"]:
    """Tell where a network of that name comes from.

    Example:
        >>> source_of("resnet18.a1_in1k"), source_of("torchvision.models.resnet18"), source_of("logs/last.ckpt")
        ('timm', 'torchvision', 'file')
    """
    path = Path(name)
    if path.suffix in (".ckpt", ".safetensors", ".pt", ".pth") or path.exists() or len(path.parts) > 1:
        return "file"
    if name.startswith("torchvision.") or (weights is not None and "_Weights." in str(weights)):
        return "torchvision"
    known = timm.is_model(name) or timm.is_model(name.partition(".")[0])
    return "dotted path" if not known and ("." in name or ":" in name) else "timm"


def named_network(
    name: str,
    weights: str | Path | None,
    num_classes: int | None,
    input_size: int | Sequence[int] | None,
    args: dict[str, Any],
) -> Network:
    """Make the network that the arguments of `FrozenTeacher` name.

    Raises:
        ValueError: If there is none of that name, or the weights do not fit it.
    """
    source = source_of(name, weights)
    if source == "file":
        path = Path(name)
        if weights is not None or args:
            raise ValueError(f"weights and model_args go with the name of a model, got them with the file {name}")
        student = load_student(path)
        shape = student.card.get("image_shape") or ()  # type: ignore[operator,union-attr]
        return Network(student, input_size=shape[1:] or None, channels=shape[0] if shape else None)
    size = None if input_size is None else as_pair(input_size, "input_size")
    if source == "torchvision":
        return _torchvision(name.rpartition(".")[2], weights, num_classes, args)
    if source == "dotted path":
        return Network(_dotted(name, weights, num_classes, args))
    return _timm(name, weights, num_classes, size, args)


def _timm(
    name: str, weights: str | Path | None, num_classes: int | None, size: tuple[int, int] | None, args: dict[str, Any]
) -> Network:
    if size is None and args.get("img_size") is not None:
        size = as_pair(args["img_size"], "img_size")
    if weights is None:
        _refuse_download(name)
    model = timm_net(name, num_classes, weights is None, weights, size, args)
    config = getattr(model, "pretrained_cfg", {})
    # Nobody knows the size that a file's weights were trained at; an architecture that takes one only leaves no choice.
    if size is None and (weights is None or config.get("fixed_input_size")):
        size = config.get("input_size", ())[1:] or None
    return Network(model, config.get("mean"), config.get("std"), size, args.get("in_chans"))


def _torchvision(name: str, weights: str | Path | None, num_classes: int | None, args: dict[str, Any]) -> Network:
    if name not in torchvision.models.list_models():
        near = ", ".join(nearest(name, torchvision.models.list_models()))
        raise ValueError(f"torchvision has no model {name!r}; near it: {near}")
    choices = torchvision.models.get_model_weights(name)
    chosen = _torchvision_weights(name, choices, weights)
    state = read_state_dict(weights) if chosen is None else _download(name, chosen)  # type: ignore[arg-type]
    if chosen is not None and name in ("googlenet", "inception_v3"):  # as torchvision does with its weights
        args = {"transform_input": True, "init_weights": False, **args}
    plain = torchvision.models.get_model(name, weights=None)
    state = pick(state, next(iter(plain.state_dict())))
    # The last layer's rows tell the class count; a head of another size would have to be made up.
    head = [key for key, module in plain.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    rows = len(state[f"{head}.weight"]) if f"{head}.weight" in state else num_classes
    model = torchvision.models.get_model(name, weights=None, **({} if rows is None else {"num_classes": rows}), **args)
    load_strictly(model, state, str(weights if chosen is None else chosen))
    config = chosen or next(iter(choices), None)
    if config is None:
        return Network(model)
    trained = config.transforms()
    return Network(model, trained.mean, trained.std, None if chosen is None else trained.crop_size * 2)


def _torchvision_weights(name: str, choices: Any, weights: str | Path | None) -> Any:
    """Return torchvision's own weights of that name, or None for a file."""
    family, _, chosen = (
        str(weights or f"{choices.__name__}.DEFAULT").removeprefix("torchvision.models.").rpartition(".")
    )
    if chosen in choices.__members__ and family in ("", choices.__name__):
        return choices[chosen]
    if "_Weights." in str(weights):
        has = ", ".join(f"{choices.__name__}.{choice}" for choice in choices.__members__)
        raise ValueError(f"torchvision has no weights {weights} for {name}; it has {has}")
    return None


def _refuse_download(name: str) -> None:
    file = file_that_names()
    if file is not None:
        raise ValueError(f"refused {file}: it asks for {name}'s pretrained weights, and a file may not download any")


def _download(name: str, weights: Any) -> dict[str, Tensor]:
    _refuse_download(name)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # hub, network and cache errors have no common base
        reason = str(error).split("\n")[0]
        said = f"could not get torchvision's weights {weights} of {name}; give a local file as weights: {reason}"
        raise ValueError(said) from error
    return state


def _dotted(name: str, weights: str | Path | None, num_classes: int | None, args: dict[str, Any]) -> nn.Module:
    file = file_that_names()
    try:
        make = resolve_name(name) if file is None else module_named(name, file)
    except (ImportError, AttributeError, ValueError) as error:
        if file is not None:
            raise
        raise ValueError(f"{name!r} is no model of timm and cannot be imported: {error}") from error
    if num_classes is not None:
        args = {"num_classes": num_classes, **args}
    try:
        model = make(**args)
    except TypeError as error:
        raise ValueError(f"cannot make {name} with {args or 'no arguments'}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} makes a {type(model).__name__}, expected a torch.nn.Module")
    if weights is not None:
        load_strictly(model, pick(read_state_dict(weights), next(iter(model.state_dict()), "")), weights)
    return model
