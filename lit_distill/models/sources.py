"""Networks by name: timm's, torchvision's, yours by a dotted path, and those of a checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal, NamedTuple

import timm
from torch import Tensor, nn
import torchvision.models
from torchvision.models import WeightsEnum

from lit_distill.checks import did_you_mean, reason_of
from lit_distill.models.card import card_on
from lit_distill.models.output import Head
from lit_distill.models.packaged import packaged_bytes
from lit_distill.models.pixels import PixelInput
from lit_distill.models.saved import load_student, origin_of
from lit_distill.models.timm_net import Arguments, timm_net
from lit_distill.models.trust import file_that_names, module_named, refuse_unless
from lit_distill.models.weights import load_picked, load_strictly, pick, read_state_dict

Source = Literal["file", "torchvision", "dotted path", "timm"]


class Network(NamedTuple):
    """A network and what its weights were trained on, as far as their source tells.

    ``channels`` are those of the images if the network was made for others than its training data had.
    """

    model: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: int | Sequence[int] | None = None
    channels: int | None = None
    class_names: Sequence[str] = ()
    head: Head = "mean_logits"


class _Request(NamedTuple):
    """What the arguments of `FrozenTeacher` say of its network."""

    name: str
    weights: str | Path | None
    num_classes: int | None
    input_size: int | Sequence[int] | None
    args: Arguments


def source_of(name: str, weights: str | Path | None = None) -> Source:
    """Tell where a network of that name comes from.

    Example:
        >>> source_of("resnet18.a1_in1k"), source_of("torchvision.models.resnet18"), source_of("logs/last.ckpt")
        ('timm', 'torchvision', 'file')
    """
    path = Path(name)
    if path.suffix in (".ckpt", ".safetensors", ".pt", ".pth") or path.exists() or len(path.parts) > 1:
        return "file"
    if name.startswith("torchvision.") or "_Weights." in str(weights):
        return "torchvision"
    return "dotted path" if set(".:") & set(name) and not timm.is_model(name) else "timm"


def find_network(
    model: str | nn.Module,
    weights: str | Path | None,
    num_classes: int | None,
    input_size: int | Sequence[int] | None,
    args: Arguments,
) -> Network:
    """Make the network that the arguments of `FrozenTeacher` ask for, or load the weights into the one they give.

    Raises:
        ValueError: If there is none of that name, or the weights do not fit it.
    """
    origin = origin_of(weights)
    if isinstance(model, str):
        network = _SOURCES[source_of(model, weights)](_Request(model, weights, num_classes, input_size, args))
    elif args:
        raise ValueError("model_args go with the name of a model, got them with a module")
    else:
        network = Network(model if weights is None else load_picked(model, weights))
    if origin is None:
        card = card_on(network.model)
        return network._replace(class_names=card.get("class_names") or (), head=card.get("head", network.head))
    if any(isinstance(part, PixelInput) and part.mean is not None for part in network.model.modules()):
        origin = origin._replace(mean=None, std=None)  # it normalises images itself
    names = origin.class_names or ()
    return network._replace(mean=origin.mean, std=origin.std, input_size=origin.input_size, class_names=names)


def _from_file(request: _Request) -> Network:
    if request.weights is not None or request.args:
        raise ValueError(f"weights and model_args go with the name of a model, got them with the file {request.name}")
    student = load_student(request.name)
    channels, *size = card_on(student).get("image_shape") or (None,)
    return Network(student, input_size=size or None, channels=channels)


def _from_timm(request: _Request) -> Network:
    name, weights, num_classes, size, args = request
    size = size or args.get("img_size")
    if weights is None and packaged_bytes(name) is None:
        _refuse_download(name)
    model = timm_net(name, num_classes, weights is None, weights, size, args)
    config = getattr(model, "pretrained_cfg", {})
    # Weight files do not record their training size; use the architecture's if it is fixed.
    if size is None and (weights is None or config.get("fixed_input_size")):
        size = config["input_size"][1:]
    return Network(model, config.get("mean"), config.get("std"), size, args.get("in_chans"))


def _from_torchvision(request: _Request) -> Network:
    name = request.name.rpartition(".")[2]
    models = torchvision.models.list_models()
    if name not in models:
        raise ValueError(f"torchvision has no model {name!r}: {did_you_mean(name, models, count=3, cutoff=0.0)}")
    choices = torchvision.models.get_model_weights(name)
    own_weights = _weights_of_torchvision(choices, request.weights)
    args = dict(request.args)
    if own_weights is None:
        state = read_state_dict(str(request.weights))
    else:
        state = _download(name, own_weights)
        if name in ("googlenet", "inception_v3"):  # as torchvision does with its weights
            args = {"transform_input": True, "init_weights": False, **args}
    plain = torchvision.models.get_model(name, weights=None)
    state = pick(state, next(iter(plain.state_dict())))
    # The rows of the last layer tell the class count; a head of another size would be random.
    head = [key for key, module in plain.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    classes = len(state[f"{head}.weight"]) if f"{head}.weight" in state else request.num_classes
    args |= {} if classes is None else {"num_classes": classes}
    model = torchvision.models.get_model(name, weights=None, **args)
    load_strictly(model, state, str(own_weights or request.weights))
    transforms = (own_weights or next(iter(choices))).transforms()
    return Network(model, transforms.mean, transforms.std, transforms.crop_size * 2 if own_weights else None)


def _weights_of_torchvision(choices: type[WeightsEnum], weights: str | Path | None) -> WeightsEnum | None:
    """Return torchvision's own weights of that name, or None for a file."""
    name = str(weights or "DEFAULT").removeprefix("torchvision.models.").removeprefix(f"{choices.__name__}.")
    if name in choices.__members__:
        return choices[name]
    if "_Weights." in str(weights):
        names = ", ".join(f"{choices.__name__}.{member}" for member in choices.__members__)
        raise ValueError(f"torchvision has no weights {weights} for this model; it has {names}")
    return None


def _download(name: str, weights: WeightsEnum) -> dict[str, Tensor]:
    _refuse_download(name)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # hub, network and cache errors have no common base
        raise ValueError(
            f"could not get torchvision's weights {weights} of {name}; give a local file as weights: {reason_of(error)}"
        ) from error
    return state


def _refuse_download(name: str) -> None:
    file = file_that_names()
    refuse_unless(file is None, file, f"it asks for {name}'s pretrained weights, and a file may not download any")


def _from_dotted_path(request: _Request) -> Network:
    name, weights, num_classes, _, args = request
    args = {**args} if num_classes is None else {"num_classes": num_classes, **args}
    make = _named_callable(name)
    try:
        model = make(**args)
    except TypeError as error:
        raise ValueError(f"cannot make {name} with {args or 'no arguments'}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} makes a {type(model).__name__}, expected a torch.nn.Module")
    return Network(model if weights is None else load_picked(model, weights))


def _named_callable(name: str) -> Callable[..., object]:
    file = file_that_names()
    if file is not None:
        return module_named(name, file)
    try:
        make: Callable[..., object] = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} is no model of timm and cannot be imported: {error}") from error
    return make


_SOURCES: dict[Source, Callable[[_Request], Network]] = {
    "file": _from_file,
    "torchvision": _from_torchvision,
    "dotted path": _from_dotted_path,
    "timm": _from_timm,
}
