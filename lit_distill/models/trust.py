"""What a file may name, so that a checkpoint, an export or its card cannot run code. SECURITY.md is about this rule.

- A file may name modules of this package and of ``torch.nn``, and models of timm's and torchvision's registries.
- Other packages need the user's word: `trusting`, ``trust=`` of a call, or ``--trust`` of the command line.
- What is named is checked before anything of it is imported, and must be what its place expects.
- A run that this user has written on this machine is known by its signature; its configuration is the user's own word.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
import re
import sys
from typing import Any

from torch import nn

_BUILT_IN = ("lit_distill", "torch.nn")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
# What starts a network from other files or downloads. A saved student brings its own weights.
_STARTS: dict[str, Any] = {"weights": None, "pretrained": False, "checkpoint_path": ""}
_STARTS |= {"pretrained_cfg": None, "pretrained_cfg_overlay": None, "cache_dir": None}

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())
_built_from: ContextVar[str | None] = ContextVar("built_from", default=None)


@contextmanager
def trusting(packages: str | Iterable[str] = ()) -> Iterator[None]:
    """Let files name ``torch.nn.Module`` classes of these packages too, while the context lasts.

    Raises:
        ValueError: If there is no such package, or a file's description asks for it.

    Example:
        >>> with trusting("timm"):
        ...     build({"class_path": "timm.layers.SwiGLU", "init_args": {"in_features": 4}}, "a file").fc1_g.in_features
        4
    """
    names = (packages,) if isinstance(packages, str) else tuple(packages)
    file = _built_from.get()
    if names and file is not None:
        raise ValueError(f"refused {file}: it asks to trust {', '.join(map(str, names))}, which only you can say")
    for name in names:
        if not _is_installed(name):
            raise ValueError(f"cannot trust {name!r}: there is no such package, neither installed nor in {Path.cwd()}")
    token = _trusted.set((*_trusted.get(), *names))
    try:
        yield
    finally:
        _trusted.reset(token)


def build(config: Any, path: str | Path) -> Any:
    """Make the modules that ``{"class_path": ..., "init_args": ...}`` describes; anything else is returned.

    Weights that a description starts from are left out: what is saved brings its own.

    Args:
        config: The description, as a file has it.
        path: The file, for messages.

    Raises:
        ValueError: If a class is not one that a file may name, is missing, or refuses its arguments.
    """
    if isinstance(config, Mapping) and "class_path" in config:
        kind = module_named(config["class_path"], path)
        described = without_weights(config)
        arguments = {**(described.get("init_args") or {}), **(described.get("dict_kwargs") or {})}
        try:
            with described_by(path):
                return kind(**{key: build(value, path) for key, value in arguments.items()})
        except TypeError as error:
            raise ValueError(f"cannot make the {kind.__name__} that {path} describes: {error}") from error
    if isinstance(config, Mapping):
        return {key: build(value, path) for key, value in config.items()}
    return [build(value, path) for value in config] if isinstance(config, (list, tuple)) else config


def module_named(name: Any, path: str | Path) -> type[nn.Module]:
    """Return the module class that a file names, if the file may name it.

    Raises:
        ValueError: As `class_named`, or if it is no ``torch.nn.Module``.
    """
    kind = class_named(name, path)
    if not issubclass(kind, nn.Module):
        raise ValueError(f"refused {path}: it names {name}, which is no torch.nn.Module")
    return kind


def class_named(name: Any, path: str | Path, packages: tuple[str, ...] = _BUILT_IN) -> type[Any]:
    """Return the class that a file names, if the file may name it; nothing else is imported.

    Args:
        name: Its dotted path.
        path: The file, for messages.
        packages: Where classes may come from, beside the packages that the user trusts.

    Raises:
        ValueError: If it is elsewhere, is missing, or is no class of these packages.
    """
    packages = (*packages, *_trusted.get())
    if not (isinstance(name, str) and _DOTTED.fullmatch(name) and _is_in(name, packages)):
        root = str(name).partition(".")[0]
        word = ""
        if _DOTTED.fullmatch(str(name)) and root not in sys.stdlib_module_names:
            word = f"; if that package is yours, or you trust it, add trust=[{root!r}] to the call, or --trust {root}"
        raise ValueError(f"refused {path}: it names {name}, and a file may only name {_known(packages)}{word}")
    try:
        kind = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} needs {name}, which cannot be imported: {error}") from error
    # A built-in package has other people's classes within reach, as ``lit_distill.module.torch.utils...``.
    fine = _is_in(getattr(kind, "__module__", ""), packages) or name in packages or _is_in(name, _trusted.get())
    if not (isinstance(kind, type) and fine):
        raise ValueError(f"refused {path}: it names {name}, which is none of the {_known(packages)}")
    return kind


@contextmanager
def described_by(path: str | Path | None) -> Iterator[None]:
    """Take all that is built in the context for described by a file, which may name less than the user; None: as is."""
    token = _built_from.set(_built_from.get() if path is None else str(path))
    try:
        yield
    finally:
        _built_from.reset(token)


def file_that_names() -> str | None:
    """Return the file whose description is being built, or None where names are the user's own."""
    return _built_from.get()


def without_weights(config: Any) -> Any:
    """Return a description of a network without the files and downloads that it started from, at any depth."""
    if isinstance(config, Mapping):
        return {key: _STARTS[key] if key in _STARTS else without_weights(value) for key, value in config.items()}
    return [without_weights(value) for value in config] if isinstance(config, (list, tuple)) else config


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, AttributeError, ValueError):
        return False


def _known(packages: Iterable[str]) -> str:
    *most, last = dict.fromkeys(package for package in packages if not package.startswith("lightning."))
    return f"classes of {', '.join(most)} and {last}"
