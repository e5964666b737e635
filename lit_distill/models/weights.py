"""Reading weights without running anything that comes with them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
import pickle
import re
from typing import Any
import warnings

from safetensors import SafetensorError
from safetensors.torch import load_file
import torch
from torch import Tensor, nn

from lit_distill.checks import reason_of, some_of


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a PyTorch file with ``weights_only=True``.

    Finds the state dict inside a checkpoint under one of the usual names, such as ``model`` or ``state_dict``. Weights
    that were averaged over the training, such as ``model_ema``, go before others.

    Args:
        path: The file, or the folder of an exported student. A name without ``.safetensors`` means a PyTorch file.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        ValueError: If there is no such file, it is truncated, holds anything but tensors by name, or would run code.

    Example:
        >>> read_state_dict("no/such.pt")
        Traceback (most recent call last):
        ValueError: no weights file at no/such.pt
    """
    exported = Path(path) / "student.safetensors"
    loaded = load_safely(exported if exported.is_file() else path)
    state = _nested(loaded)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"expected a state dict (name to tensor) in {path}, got {_contents(loaded)}")
    return state


def plain_name(name: str) -> str:
    """Return a parameter's name without the part that `torch.compile` adds."""
    return name.replace("_orig_mod.", "")


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict under the names that it would have without `torch.compile`."""
    return {plain_name(name): value for name, value in state.items()}


def save_under_plain_names(module: nn.Module) -> None:
    """Make the module save its parameters under their `plain_names`, and load them from either kind of name.

    Example:
        >>> module = nn.ModuleDict({"_orig_mod": nn.Linear(1, 1)})
        >>> save_under_plain_names(module)
        >>> list(module.state_dict())
        ['weight', 'bias']
    """
    module.register_state_dict_post_hook(_to_plain_names)  # type: ignore[no-untyped-call]  # torch's has no types
    module.register_load_state_dict_pre_hook(_to_own_names)  # type: ignore[no-untyped-call]  # torch's has no types


def _to_plain_names(module: nn.Module, state: dict[str, object], prefix: str, metadata: object) -> None:
    _rename(state, prefix, plain_name)


def _to_own_names(module: nn.Module, state: dict[str, object], prefix: str, *_: object) -> None:
    tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    own_names = {plain_name(name): name for name, _ in tensors}
    _rename(state, prefix, lambda name: own_names.get(plain_name(name), name))


def _rename(state: dict[str, object], prefix: str, name_of: Callable[[str], str]) -> None:
    """Rename the entries under the prefix in place, and keep their order."""
    for name in list(state):
        value = state.pop(name)
        state[prefix + name_of(name.removeprefix(prefix)) if name.startswith(prefix) else name] = value


def pick(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the part of ``state`` that belongs to a network, under the network's own names.

    Args:
        state: The state dict of the network, or of a module with the network inside: DDP, an average, a
            `LightningModule` with a criterion.
        name: Any parameter of the network.

    Example:
        >>> pick({"module.fc.weight": torch.zeros(1), "n_averaged": torch.ones(1)}, "fc.weight")
        {'fc.weight': tensor([0.])}
    """
    state, name = plain_names(state), plain_name(name)
    prefixes = sorted((key.removesuffix(name) for key in state if key == name or key.endswith(f".{name}")), key=len)
    prefix = next((prefix for prefix in prefixes if "teacher" not in prefix), "")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_safely(path: str | Path, what: str = "weights", mmap: bool = False) -> Any:
    """Load a safetensors file, or a PyTorch file with ``weights_only=True``, to the CPU.

    Args:
        path: The file. A name without ``.safetensors`` means a PyTorch file.
        what: What the file is called in errors.
        mmap: Map a PyTorch file into memory instead of reading all of it.

    Raises:
        ValueError: If there is no such file, it is a directory, it is truncated, or it would run code.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, expected a {what} file")
    if not path.is_file():
        raise ValueError(f"no {what} file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols that the next line refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"refused {path}: it is a pickle that would run code, or no {what} file; a state dict of torch.save, and "
            "safetensors, run none"
        ) from error
    except (EOFError, LookupError, OSError, RuntimeError, SafetensorError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read {path}, truncated or not a {what} file: {reason_of(error)}") from error


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load every key of ``state`` into ``model``, or say in one line how the two differ.

    Raises:
        ValueError: If a key is missing or unexpected or has another shape; names the first three of each, and tells if
            they are those of blocks that one of the two has more of.
    """
    own_names = {plain_name(name): name for name in model.state_dict()}
    state, expected = plain_names(state), plain_names(model.state_dict())
    differences = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if state.get(key, value).shape != value.shape
        ],
    }
    parts = [f"{len(keys)} {what} ({some_of(keys)})" for what, keys in differences.items() if keys]
    if parts:
        depths = other_depth(differences["missing"], differences["unexpected"])
        raise ValueError(f"the weights in {path} do not fit {type(model).__name__}: {depths}keys {'; '.join(parts)}")
    model.load_state_dict({own_names[name]: value for name, value in state.items()})


def load_picked(model: nn.Module, path: str | Path) -> nn.Module:
    """Load what a file has for the model by `read_state_dict`, `pick` and `load_strictly`, and return the model."""
    load_strictly(model, pick(read_state_dict(path), next(iter(model.state_dict()), "")), path)
    return model


def other_depth(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Say how many blocks the weights have and how many the network, or nothing if that is not what differs."""
    keys = missing or unexpected
    numbered = [found for key in keys if (found := re.match(r"(.*?)\.(\d+)\.", key))]
    if not numbered or len(numbered) < len(keys) or (missing and unexpected):  # another network
        return ""
    name = numbered[0][1]
    numbers = {int(found[2]) for found in numbered if found[1] == name}
    few, many = min(numbers), max(numbers) + 1
    if few == 0 or len(numbers) < many - few:  # not the last ones, without a gap
        return ""
    in_weights, in_network = (few, many) if missing else (many, few)
    return f"{name} has {in_weights} blocks in the weights, {in_network} in the network; "


def other_depth_in(message: str) -> str:
    """Return `other_depth` of the keys that torch's own message names as missing and unexpected.

    Example:
        >>> other_depth_in('Missing key(s) in state_dict: "net.blocks.2.weight". ')
        'net.blocks has 2 blocks in the weights, 3 in the network; '
    """
    lines = dict(re.findall(r"(Missing|Unexpected) key\(s\) in state_dict: (.*)", message))
    return other_depth(*(re.findall(r'"([^"]+)"', lines.get(kind, "")) for kind in ("Missing", "Unexpected")))


# Where checkpoints of timm, DeiT, Lightning, torchvision and others' scripts have the weights, averaged ones first.
_NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
)


def _nested(loaded: object) -> object:
    """Return the innermost state dict of a checkpoint, or what there is instead."""
    if not isinstance(loaded, dict) or all(isinstance(value, Tensor) for value in loaded.values()):
        return loaded
    inner = (loaded[name] for name in _NESTS if isinstance(loaded.get(name), dict) and loaded[name])
    return _nested(next(inner, {})) or loaded


def _contents(loaded: object) -> str:
    if not isinstance(loaded, dict):
        return type(loaded).__name__
    return f"a dict with {some_of(f'{key}: {type(value).__name__}' for key, value in loaded.items())}"
