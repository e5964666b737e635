"""Checks the configuration of somebody else's run, before a parser reads it.

A parser imports what it finds where a class is expected: a dotted name, YAML in a string, or a file with YAML. So a
foreign configuration must have the form that this project writes: classes as ``{"class_path": ..., "init_args": ...}``
with their full names, and text only where a parameter takes text.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import inspect
from pathlib import Path
import re
from types import NoneType
from typing import Any, Literal, TypeGuard, cast, get_args, get_origin, get_type_hints

from lit_distill.models.sources import source_of
from lit_distill.models.teacher import FrozenTeacher
from lit_distill.models.trust import class_named, is_description, module_named, refuse_unless

_PACKAGES = (
    *("lit_distill", "torch.nn", "torch.optim"),
    *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.cli.ReduceLROnPlateau"),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("EarlyStopping", "LearningRateMonitor", "EMAWeightAveraging")),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("StochasticWeightAveraging", "GradientAccumulationScheduler")),
)
# Types for which a parser never builds a class.
_NO_CLASS = (int, float, bool, complex, bytes, NoneType, Path)
_DICTS = (dict, OrderedDict)
_VALUES = (NoneType, bool, int, float, str, list, tuple, *_DICTS)
ANYTHING = Any  # stands for the type of a parameter that has none
KEYWORDS = "**"  # stands for the names that no signature has
_WORDS = re.compile(r"[\w .,+/=-]*")  # text that no parser makes anything else of


def check_arguments(arguments: Mapping[str, object], kind: type, path: str | Path) -> None:
    """Check the arguments of the class ``kind``, in plain containers, as the foreign file at ``path`` gives them.

    Raises:
        ValueError: If an argument names code that a file may not name, or is not in the form that this project writes.
    """
    types = parameters_of(kind)
    for name, value in arguments.items():
        is_name = isinstance(name, str) and name.isidentifier()
        refuse_unless(is_name, path, f"{name!r} is no name of an argument of {kind.__name__}")
        refuse_unless(name in types or KEYWORDS in types, path, f"{kind.__name__} has no argument {name!r}")
        refuse_unless(name != "trust" or not value, path, f"it asks to trust {value}, which only you can say")
        if (kind, name) == (FrozenTeacher, "model") and isinstance(value, str) and source_of(value) == "dotted path":
            module_named(value, path)  # the only text that is imported
        check_value(value, types.get(name, ANYTHING), f"{kind.__name__}.{name}", path)


def check_value(value: object, annotation: object, where: str, path: str | Path) -> None:
    """Check a value for a parameter of this type, which messages call ``where``, as `check_arguments` does."""
    kind = type(value)
    refuse_unless(kind in _VALUES, path, f"{where} is a {kind.__name__}")
    if isinstance(value, str):
        fine = _takes_text(annotation, value)
        refuse_unless(fine, path, f"{where} is the text {value!r}, which could be read as a class")
    elif is_description(value):
        _check_class(value, where, path)
    elif isinstance(value, dict):
        _check_mapping(value, annotation, where, path)
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_value(part, annotation, where, path)


def _check_mapping(value: Mapping[str, object], annotation: object, where: str, path: str | Path) -> None:
    """Check the arguments of a dataclass, or a mapping of the user's such as class names."""
    leaves = _leaves(annotation)
    described = next((leaf for leaf in leaves if _is_described_by(leaf, value)), None)
    if described is not None:
        check_arguments(value, described, path)
        return
    takes_values = any(leaf in (*_NO_CLASS, str, ANYTHING) for leaf in leaves)
    refuse_unless(takes_values, path, f"{where} is a mapping without a class_path")
    for part in value.values():
        check_value(part, annotation, where, path)


def _check_class(value: Mapping[str, object], where: str, path: str | Path) -> None:
    odd = sorted(map(str, set(value) - {"class_path", "init_args", "dict_kwargs"}))
    refuse_unless(not odd, path, f"{where} has {next(iter(odd), None)!r} beside its class_path")
    kind = class_named(value["class_path"], path, _PACKAGES)
    for key in ("init_args", "dict_kwargs"):
        arguments = value.get(key) or {}
        fine = type(arguments) in _DICTS
        refuse_unless(fine, path, f"the {key} of {where} are a {type(arguments).__name__}")
        check_arguments(cast(Mapping[str, object], arguments), kind, path)


def _takes_text(annotation: object, text: str) -> bool:
    """Tell whether a parser cannot read the text as a class.

    The first type that is not in `_NO_CLASS` decides; if there is none, any text is safe.
    For `ANYTHING` plain words are.
    """
    first = next((leaf for leaf in _leaves(annotation) if leaf not in _NO_CLASS), str)
    return bool(_WORDS.fullmatch(text)) if first is ANYTHING else first is str or get_origin(first) is Literal


def _leaves(annotation: object) -> list[object]:
    """Return the types in an annotation, in order, without their containers."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (None, Literal):
        return [annotation]
    if origin in (Callable, type):
        return [Callable]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        parts = parts[-1:]
    return [leaf for part in parts if part is not Ellipsis for leaf in _leaves(part)]


def _is_described_by(leaf: object, arguments: Mapping[str, object]) -> TypeGuard[type]:
    return isinstance(leaf, type) and leaf not in (*_NO_CLASS, str) and set(arguments) <= set(parameters_of(leaf))


def parameters_of(kind: type) -> dict[str, object]:
    """Return the parameters of a class and their types, `KEYWORDS` among them if it takes any other name.

    A class that takes keywords passes them on to the next class.
    """
    found: dict[str, object] = {}
    for constructor in (vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)):
        _, *parameters = inspect.signature(constructor).parameters.values()
        hints = _hints_of(constructor)
        for parameter in parameters:
            untyped = parameter.annotation is inspect.Parameter.empty
            found.setdefault(parameter.name, ANYTHING if untyped else hints.get(parameter.name, object))
        found[KEYWORDS] = ANYTHING
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            del found[KEYWORDS]
            break
    return found


def _hints_of(function: Callable[..., object]) -> dict[str, object]:
    try:
        return get_type_hints(function)
    except Exception:  # names that only type checkers know
        return {}
