"""Reading weights without running anything that comes with them."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a PyTorch file with ``weights_only=True``.

    Args:
        path: The file. Anything but ``.safetensors`` is taken for a PyTorch file.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        ValueError: If there is no such file, it is truncated, holds anything but tensors by name, or would run code.

    Example:
        >>> read_state_dict("no/such.pt")
        Traceback (most recent call last):
        ValueError: no weights file at no/such.pt
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, expected a weights file (.safetensors, .pt or .pth)")
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except (EOFError, OSError, RuntimeError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).split("\n")[0].split(". This")[0]
        raise ValueError(f"cannot read the weights in {path}, truncated or not a weights file: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"expected a state dict (name to tensor) in {path}, got {_contents(state)}")
    return state


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load every key of ``state`` into ``model``, or say in one line how the two differ.

    Raises:
        ValueError: If a key is missing or unexpected or has another shape; names the first three of each.
    """
    own = model.state_dict()
    differences = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(differences.values()):
        said = [f"{len(keys)} {what} ({_first(keys)})" for what, keys in differences.items() if keys]
        raise ValueError(f"the weights in {path} do not fit {type(model).__name__}: keys {'; '.join(said)}")
    model.load_state_dict(state)


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


def _refusal(path: Path, error: str) -> str:
    # torch's message names the global that the pickle asked for, as "GLOBAL os.system was not an allowed global".
    words = error.replace("`", " ").split()
    named = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"), None)
    if named is None:
        return f"cannot read the weights in {path}, truncated or not a weights file"
    return f"refused {path}: it is a pickle that would run {named}; save the weights as a state dict or as safetensors"


def _contents(state: object) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    return f"a dict with {_first([f'{key}: {type(value).__name__}' for key, value in state.items()])}"
