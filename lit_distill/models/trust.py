"""What a file may name, so that a checkpoint, an export or its card cannot run code. SECURITY.md is about this rule.

- A file may name modules of this package and of ``torch.nn``, and models of timm's and torchvision's registries.
- Other packages need the user's word: `trusting`, ``trust=`` of a call, or ``--trust`` of the command line.
- What is named is checked before anything of it is imported, and must be what its place expects.
- A run that this user has written on this machine is known by its signature; its configuration is the user's own word.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
import hashlib
import hmac
from importlib.util import find_spec
import json
import os
from pathlib import Path
from pkgutil import resolve_name
import re
import secrets
import sys
from typing import Any

from torch import nn
import torchvision.models
import yaml

_BUILT_IN = ("lit_distill", "torch.nn")
# A run's configuration describes its optimizer, callbacks and loggers too.
_OF_A_RUN = (*_BUILT_IN, "torch.optim", "lightning.pytorch")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_IMPORTABLE = re.compile(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+")
# What starts a network from other files or downloads. A saved student brings its own weights.
_STARTS: dict[str, Any] = {"weights": None, "pretrained": False, "checkpoint_path": ""}

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
        token = _built_from.set(str(path))
        try:
            return kind(**{key: build(value, path) for key, value in arguments.items()})
        except TypeError as error:
            raise ValueError(f"cannot make the {kind.__name__} that {path} describes: {error}") from error
        finally:
            _built_from.reset(token)
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
    if not (isinstance(kind, type) and (_is_in(kind.__module__, packages) or _is_in(name, _trusted.get()))):
        raise ValueError(f"refused {path}: it names {name}, which is no class of {_known(packages)}")
    return kind


def file_that_names() -> str | None:
    """Return the file whose description is being built, or None where names are the user's own."""
    return _built_from.get()


def without_weights(config: Any) -> Any:
    """Return a description of a network without the files and downloads that it started from, at any depth."""
    if isinstance(config, Mapping):
        return {
            key: _STARTS[key] if key in _STARTS and isinstance(value, (str, bool, Path)) else without_weights(value)
            for key, value in config.items()
        }
    return [without_weights(value) for value in config] if isinstance(config, (list, tuple)) else config


def check_run(config: Any, path: str | Path) -> None:
    """Check what the configuration of somebody else's run names, before a parser imports it.

    Args:
        config: The configuration, of plain containers.
        path: The file that it is from, for messages.

    Raises:
        ValueError: If it names anything but classes of this package, of ``torch.nn``, ``torch.optim`` and
            ``lightning.pytorch``, of packages that the user trusts, and models of the registries.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key in ("class_path", "_class_path") and "." in str(value):
                class_named(value, path, _OF_A_RUN)
            elif key == "trust" and value:
                raise ValueError(f"refused {path}: it asks to trust {value}, which only you can say")
            elif key != "_instantiator":  # which Lightning compares with its own
                check_run(value, path)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_run(value, path)
    elif isinstance(config, str):
        _check_text(config, path)


def _check_text(text: str, path: str | Path) -> None:
    """Check a string as a parser would read it: a name to import, YAML, or a file with YAML."""
    if text.removeprefix("torchvision.models.") in torchvision.models.list_models():
        return
    if _IMPORTABLE.fullmatch(text) and _is_installed(re.split("[.:]", text)[0]):
        class_named(text, path, _OF_A_RUN)
    for content in (text, _content(text)):
        try:
            parsed = yaml.safe_load(content)
        except yaml.YAMLError:
            continue
        if isinstance(parsed, (Mapping, list)):
            check_run(parsed, path)


def _content(name: str) -> str:
    try:
        file = Path(name)
        return file.read_text() if file.is_file() else ""
    except (OSError, ValueError):  # no name of a file, or no text
        return ""


def sign(content: Any) -> str:
    """Return what shows that this user has written ``content`` on this machine; empty without a place for the key.

    The key lies in ``$XDG_STATE_HOME/lit_distill``, by default ``~/.local/state/lit_distill``, readable for the user
    alone.

    Args:
        content: Plain containers.
    """
    key = _key()
    text = json.dumps(_keyed(content), sort_keys=True, default=str)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def is_own(content: Any, signature: Any) -> bool:
    """Tell whether ``signature`` is this user's of ``content``."""
    own = sign(content)
    return bool(own) and isinstance(signature, str) and hmac.compare_digest(own.encode(), signature.encode())


def _keyed(content: Any) -> Any:
    # JSON sorts keys of one type only.
    if isinstance(content, Mapping):
        return {str(key): _keyed(value) for key, value in content.items()}
    return [_keyed(value) for value in content] if isinstance(content, (list, tuple)) else content


def _key() -> bytes:
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lit_distill"
        path = folder / "key"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = folder / f".key.{os.getpid()}.{secrets.token_hex(4)}"
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(part, path)  # unlike a rename, keeps the key that another process has made meanwhile
            except FileExistsError:
                pass
            finally:
                part.unlink()
        return path.read_bytes()
    except (OSError, RuntimeError):  # no home, or not writable
        return b""


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, AttributeError, ValueError):
        return False


def _known(packages: Iterable[str]) -> str:
    *most, last = dict.fromkeys(packages)
    return f"classes of {', '.join(most)} and {last}"
