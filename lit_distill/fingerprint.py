"""Digests of objects: of what they are made of, the same in every process."""

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from functools import partial
import hashlib
import re
import sys
from types import CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.jit import ScriptModule

_PLAIN = (str, int, float, complex, bool, type(None), torch.dtype, torch.device)
# Classes of these count with their names alone: their code and their version are no part of a digest.
_LIBRARIES = {"torch", "torchvision", "timm", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
_LIBRARIES |= {"numpy", "PIL", "lit_distill", *sys.stdlib_module_names}
# What every module has, and by which of two ways timm's attention computes the same.
_NO_SETTINGS = {*vars(nn.Module()), "_compiled_call_impl", "fused_attn"}
_OF_CLASS = (FunctionType, *_PLAIN, bytes, list, tuple, dict, set, frozenset, Tensor, np.ndarray)


def digest_of(thing: object, without: tuple[type, ...] = ()) -> str:
    """Return a digest of the value of ``thing`` and of all that is in it.

    Arrays and tensors count with every byte; a network with its parameters, its buffers, its ``repr`` and its
    attributes; a function with its name, code and defaults; any other object with what pickle would keep of it, or else
    with its attributes. Classes count with their code, those of torch, timm and other libraries with their names.

    Args:
        thing: Anything.
        without: Objects of these classes do not count where they are attributes of a network.

    Example:
        >>> digest_of({"a": torch.zeros(2)}) == digest_of({"a": torch.zeros(2)}), digest_of([1]) == digest_of([2])
        (True, False)
    """
    return _Digester(without, {}).digest(thing).hex()[:16]


# Of each object met so far, its digest; it is kept alive, so that no other one gets its id.
_Memo = MutableMapping[int, tuple[object, bytes]]


class _Digester:
    def __init__(self, without: tuple[type, ...], memo: _Memo) -> None:
        self.without = without
        self.memo = memo

    def digest(self, thing: object) -> bytes:
        if id(thing) not in self.memo:
            self.memo[id(thing)] = thing, b"itself"  # while it is computed: the object holds itself
            sha = hashlib.sha256(_name(type(thing)))
            self._add_content(sha, thing)
            self.memo[id(thing)] = thing, sha.digest()
        return self.memo[id(thing)][1]

    def _add(self, sha: "hashlib._Hash", *things: object) -> None:
        for thing in things:
            if isinstance(thing, _PLAIN):
                sha.update(f"{type(thing).__name__} {thing!r};".encode(errors="surrogatepass"))
            else:
                sha.update(self.digest(thing))

    def _add_content(self, sha: "hashlib._Hash", thing: object) -> None:
        if isinstance(thing, _PLAIN):
            self._add(sha, thing)
        elif isinstance(thing, (bytes, bytearray, memoryview)):
            sha.update(thing)
        elif isinstance(thing, Tensor):
            sha.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
            strided = thing.detach().cpu().to_dense().resolve_conj().resolve_neg()
            sha.update(strided.contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(thing, (np.ndarray, np.generic)):
            self._add_array(sha, np.asarray(thing))
        elif isinstance(thing, nn.Module):
            self._add_network(sha, thing)
        elif isinstance(thing, FunctionType):
            sha.update(f"{thing.__module__}.{thing.__qualname__}".encode())
            self._add(sha, thing.__code__, thing.__defaults__, thing.__kwdefaults__)
            for cell in thing.__closure__ or ():
                with suppress(ValueError):  # nothing is in it yet
                    self._add(sha, cell.cell_contents)
        elif isinstance(thing, CodeType):
            constants = [
                value for value in thing.co_consts if isinstance(value, (*_PLAIN, bytes, tuple, frozenset, CodeType))
            ]
            self._add(sha, thing.co_code, thing.co_names, constants)
        elif isinstance(thing, Mapping):
            named = [(_without_address(str(key)), value) for key, value in thing.items()]
            for name, value in sorted(named, key=lambda item: item[0]):
                self._add(sha, name, value)
        elif isinstance(thing, (list, tuple)):
            self._add(sha, *thing)
        elif isinstance(thing, ModuleType):
            sha.update(thing.__name__.encode())
        elif isinstance(thing, (set, frozenset)):
            sha.update(b"".join(sorted(map(self.digest, thing))))
        elif isinstance(thing, partial):
            self._add(sha, thing.func, thing.args, thing.keywords)
        elif isinstance(thing, MethodType):
            self._add(sha, thing.__func__, thing.__self__)
        elif isinstance(thing, type):
            self._add_class(sha, thing)
        else:
            self._add_object(sha, thing)

    def _add_array(self, sha: "hashlib._Hash", array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype.hasobject:
            self._add(sha, array.tolist())
        elif array.nbytes:
            sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _add_network(self, sha: "hashlib._Hash", network: nn.Module) -> None:
        sha.update(_without_address(repr(network)).encode())
        for parts in (network.named_parameters(), network.named_buffers()):
            for name, part in parts:
                self._add(sha, name, part.data)
        for name, module in network.named_modules():
            self._add(sha, name, type(module), self._settings(module))
            if isinstance(module, (GraphModule, ScriptModule)):
                self._add(sha, getattr(module, "code", None))

    def _settings(self, module: nn.Module) -> dict[str, object]:
        """Return the attributes of a network that say what it computes.

        Names with an underscore are the business of a library's class that may have set them, but for the
        hyper-parameters of Lightning; whole numbers of such names, and nothing, are taken for counts and marks of what
        the network has done.
        """
        is_of_library = _is_of_library(type(module))
        bases = [base for base in type(module).__mro__ if not base.__module__.startswith(("torch.nn.", "builtins"))]
        has_secrets = any(_is_of_library(base) and "__init__" in vars(base) for base in bases)
        return {
            key: value
            for key, value in vars(module).items()
            if key not in _NO_SETTINGS
            and not isinstance(value, self.without)
            and not (
                key.startswith("_") and (has_secrets or value is None or isinstance(value, int)) and key != "_hparams"
            )
            and (not is_of_library or isinstance(value, (*_PLAIN, bytes, list, tuple)))
        }

    def _add_class(self, sha: "hashlib._Hash", kind: type) -> None:
        for base in kind.__mro__:
            sha.update(_name(base))
            for key, value in () if _is_of_library(base) else vars(base).items():
                wrappers = ("__func__", "fget", "func", "__wrapped__")  # of methods, properties and cached ones
                code = next((getattr(value, name) for name in wrappers if hasattr(value, name)), value)
                is_made_by_python = key.startswith("__") and not isinstance(code, FunctionType)
                if not is_made_by_python and isinstance(code, _OF_CLASS):
                    self._add(sha, key, code)

    def _add_object(self, sha: "hashlib._Hash", thing: object) -> None:
        sha.update(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}".encode())
        attributes: dict[str, object] = getattr(thing, "__dict__", {})
        self._add(sha, type(thing))
        try:
            reduced = thing.__reduce_ex__(4)
        except Exception:  # whatever an object raises that cannot be pickled
            self._add(sha, attributes)
            return
        if isinstance(reduced, str):  # the name of a function or of the only object of its kind
            sha.update(reduced.encode())
            return
        _, arguments, state, *items = (*reduced, None, None, None)[:5]
        # What is made for the moment, such as the bytes of an image, is not kept alive.
        inner = self if state is attributes else _Digester(self.without, ChainMap({}, self.memo))
        inner._add(sha, arguments, state, *([*each] for each in items if each is not None))


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES
