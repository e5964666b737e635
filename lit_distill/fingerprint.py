"""Digests of objects: of what they are made of, the same in every process."""

from collections.abc import Mapping
from functools import partial
import hashlib
import re
from types import FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)


def digest_of(thing: object) -> str:
    """Return a digest of the value of ``thing`` and of all that is in it.

    Arrays and tensors count with every byte, a network with its parameters, its buffers and its ``repr``, a function
    with its name and code, any other object with its class and its attributes. What has none counts with its class.

    Example:
        >>> digest_of({"a": torch.zeros(2)}) == digest_of({"a": torch.zeros(2)}), digest_of([1]) == digest_of([2])
        (True, False)
    """
    sha = hashlib.sha256()
    _add(sha, thing, ())
    return sha.hexdigest()[:16]


def _add(sha: "hashlib._Hash", thing: object, inside: tuple[int, ...]) -> None:
    sha.update(f"{type(thing).__module__}.{type(thing).__qualname__}(".encode())
    if id(thing) in inside:  # it holds itself
        return
    inside = (*inside, id(thing))
    if isinstance(thing, _PLAIN):
        sha.update(repr(thing).encode())
    elif isinstance(thing, (Tensor, np.ndarray)):
        array = thing if isinstance(thing, Tensor) else torch.from_numpy(np.ascontiguousarray(thing))
        sha.update(f"{array.dtype}{tuple(array.shape)}".encode())
        sha.update(array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(thing, nn.Module):
        sha.update(re.sub(r" at 0x[0-9a-f]+", "", repr(thing)).encode())
        for parts in (thing.named_parameters(), thing.named_buffers()):
            for name, part in parts:
                sha.update(name.encode())
                _add(sha, part.data, inside)
        for name, module in thing.named_modules():
            _add(
                sha, {f"{name}.{key}": value for key, value in vars(module).items() if _is_setting(key, value)}, inside
            )
    elif isinstance(thing, FunctionType):
        sha.update(f"{thing.__module__}.{thing.__qualname__}".encode() + thing.__code__.co_code)
        _add(sha, [thing.__code__.co_names, [c for c in thing.__code__.co_consts if isinstance(c, _PLAIN)]], inside)
        _add(sha, [cell.cell_contents for cell in thing.__closure__ or ()], inside)
    elif isinstance(thing, Mapping):
        for name, value in sorted(thing.items(), key=lambda item: str(item[0])):
            sha.update(str(name).encode())
            _add(sha, value, inside)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            _add(sha, value, inside)
    elif isinstance(thing, (set, frozenset)):
        sha.update(",".join(sorted(map(digest_of, thing))).encode())
    elif isinstance(thing, partial):
        _add(sha, [thing.func, thing.args, thing.keywords], inside)
    elif isinstance(thing, MethodType):
        _add(sha, [thing.__func__, thing.__self__], inside)
    else:
        sha.update(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}".encode())
        _add(sha, {} if isinstance(thing, type) else dict(getattr(thing, "__dict__", {})), inside)
    sha.update(b")")


def _is_setting(name: str, value: object) -> bool:
    """Tell whether an attribute of a network says what it computes; names with an underscore are its own business."""
    return name != "training" and not name.startswith("_") and isinstance(value, (*_PLAIN, list, tuple))
