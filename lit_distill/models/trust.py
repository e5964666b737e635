"""What a file may name, so that a checkpoint, an export or its card cannot run code. SECURITY.md explains this rule.

- A file may name modules of this package and of ``torch.nn``, and models in the registries of timm and torchvision.
- Other packages need the user's word: `trusting`, ``trust=`` of a call, or ``--trust`` of the command line.
- Each name is checked before Python imports anything for it, and must be what its place expects.
- A signature marks the runs of this user on this machine; the configuration of such a run is the user's own word.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
import re
import sys
from typing import Any, TypeGuard, TypeVar, cast

from torch import nn

_BUILT_IN = ("lit_distill", "torch.nn")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
# Arguments that start a network from other files or downloads. A saved student brings its own weights.
_STARTS: dict[str, object] = {"weights": None, "pretrained": False, "checkpoint_path": ""}
_STARTS |= {"pretrained_cfg": None, "pretrained_cfg_overlay": None, "cache_dir": None}

Description = Mapping[str, Any]  # of a module: its "class_path", and what to call the class with
T = TypeVar("T")

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())
_describing_file: ContextVar[str | None] = ContextVar("describing_file", default=None)


def refuse_unless(fine: object, path: str | Path | None, reason: str) -> None:
    """Raise ``ValueError`` with the file and the reason, unless all is fine."""
    if not fine:
        raise ValueError(f"refused {path}: {reason}")


@contextmanager
def trusting(packages: str | Iterable[str] = ()) -> Iterator[None]:
    """Let files name ``torch.nn.Module`` classes of these packages too, inside the context.

    Raises:
        ValueError: If there is no such package, or a file's description asks for it.

    Example:
        >>> with trusting("timm"):
        ...     build({"class_path": "timm.layers.SwiGLU", "init_args": {"in_features": 4}}, "a file").fc1_g.in_features
        4
    """
    names = (packages,) if isinstance(packages, str) else tuple(packages)
    file = file_that_names()
    asked = ", ".join(map(str, names))
    refuse_unless(file is None or not names, file, f"it asks to trust {asked}, which only you can say")
    missing = next((name for name in names if not _is_installed(name)), None)
    if missing is not None:
        raise ValueError(f"cannot trust {missing!r}: there is no such package, neither installed nor in {Path.cwd()}")
    with _holding(_trusted, (*_trusted.get(), *names)):
        yield


def build(description: Description, path: str | Path) -> nn.Module:
    """Make the module that ``{"class_path": ..., "init_args": ...}`` describes, and those that its arguments describe.

    The weights that a description starts from are left out: a saved student brings its own. Messages name the file at
    ``path``.

    Raises:
        ValueError: If a file may not name the class, or the class is missing or refuses its arguments.
    """
    kind = module_named(description["class_path"], path)
    plain = without_weights(description)
    arguments = {**(plain.get("init_args") or {}), **(plain.get("dict_kwargs") or {})}
    try:
        with described_by(path):
            return kind(**{name: _build_parts(value, path) for name, value in arguments.items()})
    except TypeError as error:
        raise ValueError(f"cannot make the {kind.__name__} that {path} describes: {error}") from error


def is_description(value: object) -> TypeGuard[Description]:
    """Tell whether a value has the form that `build` reads."""
    return isinstance(value, Mapping) and "class_path" in value


def _build_parts(value: object, path: str | Path) -> object:
    if is_description(value):
        return build(value, path)
    return _each_part(value, lambda part: _build_parts(part, path))


def module_named(name: object, path: str | Path) -> type[nn.Module]:
    """Return the module class that a file names, if the file may name it.

    Raises:
        ValueError: As `class_named`, or if it is no ``torch.nn.Module``.
    """
    kind = class_named(name, path)
    refuse_unless(issubclass(kind, nn.Module), path, f"it names {name}, which is no torch.nn.Module")
    return kind


def class_named(name: object, path: str | Path, packages: tuple[str, ...] = _BUILT_IN) -> type:
    """Return the class that a file names, if it is of these packages or of those that the user trusts.

    Nothing else is imported. Messages name the file at ``path``.

    Raises:
        ValueError: If it is elsewhere, is missing, or is no class of these packages.
    """
    packages = (*packages, *_trusted.get())
    text, is_dotted = str(name), isinstance(name, str) and _DOTTED.fullmatch(name)
    allowed = is_dotted and _is_in(text, packages)
    refuse_unless(allowed, path, f"it names {name}, and a file may only name {_kinds(packages)}{_how_to_trust(text)}")
    try:
        kind = resolve_name(text)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} needs {name}, which cannot be imported: {error}") from error
    # A built-in package has other people's classes within reach, as ``lit_distill.module.torch.utils...``.
    is_trusted = _is_in(getattr(kind, "__module__", ""), packages) or name in packages or _is_in(text, _trusted.get())
    refuse_unless(
        isinstance(kind, type) and is_trusted, path, f"it names {name}, which is none of the {_kinds(packages)}"
    )
    return cast(type, kind)


@contextmanager
def described_by(path: str | Path | None) -> Iterator[None]:
    """Treat all that is built inside the context as described by a file, which may name less than the user.

    None changes nothing.
    """
    with _holding(_describing_file, file_that_names() if path is None else str(path)):
        yield


def file_that_names() -> str | None:
    """Return the file whose description is being built, or None where names are the user's own."""
    return _describing_file.get()


def without_weights(description: T) -> T:
    """Return a description of a network without the files and downloads that it started from, at any depth."""
    plain = _each_part(description, without_weights)
    if isinstance(plain, dict):
        plain |= {key: _STARTS[key] for key in plain if key in _STARTS}
    return cast(T, plain)


def _each_part(value: object, change: Callable[[object], object]) -> object:
    """Return a container with each part changed; anything else as it is."""
    if isinstance(value, Mapping):
        return {key: change(part) for key, part in value.items()}
    return [change(part) for part in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def _holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, AttributeError, ValueError):
        return False


def _kinds(packages: Iterable[str]) -> str:
    *most, last = dict.fromkeys(package for package in packages if not package.startswith("lightning."))
    return f"classes of {', '.join(most)} and {last}"


def _how_to_trust(name: str) -> str:
    package = name.partition(".")[0]
    if not _DOTTED.fullmatch(name) or package in sys.stdlib_module_names:
        return ""
    return f"; if that package is yours, or you trust it, add trust=[{package!r}] to the call, or --trust {package}"
