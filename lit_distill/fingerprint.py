"""Digests of objects: of what they are made of, the same in every process."""

from collections.abc import Mapping
from functools import partial
import hashlib
import re
from types import FunctionType, MethodType, ModuleType

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
    return _digest(thing, {}).hex()[:16]


# Of each object met so far, its digest; it is kept alive, so that no other one gets its id.
_Memo = dict[int, tuple[object, bytes]]


def _add(sha: "hashlib._Hash", thing: object, memo: _Memo) -> None:
    sha.update(_digest(thing, memo))


def _digest(thing: object, memo: _Memo) -> bytes:
    if id(thing) not in memo:
        memo[id(thing)] = thing, b"itself"  # while it is computed: the object holds itself
        sha = hashlib.sha256(f"{type(thing).__module__}.{type(thing).__qualname__}".encode())
        _add_content(sha, thing, memo)
        memo[id(thing)] = thing, sha.digest()
    return memo[id(thing)][1]


def _add_content(sha: "hashlib._Hash", thing: object, memo: _Memo) -> None:
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
                _add(sha, part.data, memo)
        for name, module in thing.named_modules():
            settings = {key: value for key, value in vars(module).items() if _is_setting(key, value)}
            _add(sha, {name: settings}, memo)
    elif isinstance(thing, FunctionType):
        sha.update(f"{thing.__module__}.{thing.__qualname__}".encode() + thing.__code__.co_code)
        _add(sha, [thing.__code__.co_names, [c for c in thing.__code__.co_consts if isinstance(c, _PLAIN)]], memo)
        _add(sha, [cell.cell_contents for cell in thing.__closure__ or ()], memo)
    elif isinstance(thing, Mapping):
        for name, value in sorted(thing.items(), key=lambda item: str(item[0])):
            sha.update(str(name).encode())
            _add(sha, value, memo)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            _add(sha, value, memo)
    elif isinstance(thing, ModuleType):
        sha.update(thing.__name__.encode())
    elif isinstance(thing, (set, frozenset)):
        sha.update(",".join(sorted(map(digest_of, thing))).encode())
    elif isinstance(thing, partial):
        _add(sha, [thing.func, thing.args, thing.keywords], memo)
    elif isinstance(thing, MethodType):
        _add(sha, [thing.__func__, thing.__self__], memo)
    else:
        sha.update(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}".encode())
        _add(sha, {} if isinstance(thing, type) else dict(getattr(thing, "__dict__", {})), memo)


def _is_setting(name: str, value: object) -> bool:
    """Tell whether an attribute of a network says what it computes; names with an underscore are its own business."""
    return name != "training" and not name.startswith("_") and isinstance(value, (*_PLAIN, list, tuple))
