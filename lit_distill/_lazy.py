"""Packages whose names are imported when they are first used, so that a part of them costs only its own imports."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
import sys


def attach(
    package: str, exports: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package that imports its names on first use (PEP 562).

    The package repeats the imports under ``TYPE_CHECKING``, for type checkers and editors.

    Args:
        package: Its ``__name__``.
        exports: For each submodule the names that the package exports from it.
    """
    homes = {name: f"{package}.{module}" for module, names in exports.items() for name in names}

    def load(name: str) -> object:
        if name in homes:
            value: object = getattr(import_module(homes[name]), name)
        elif name in exports:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # Python finds it there from now on
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *exports})

    return load, list_names


def import_all(*packages: str) -> None:
    """Import all public names of these packages: jsonargparse knows a class by its bare name once it is imported."""
    for module in map(import_module, packages):
        for name in module.__all__:
            getattr(module, name)
