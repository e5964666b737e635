"""Checks the configuration of somebody else's run, before a parser reads it.

A parser imports what it finds where a class is expected: a dotted name, YAML in a string, or a file with YAML. So a
foreign configuration must be in the form that this project writes: classes as ``{"class_path": ..., "init_args": ...}``
with their full names, and text only where a parameter takes text.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
import inspect
from pathlib import Path
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lit_distill.models.sources import source_of
from lit_distill.models.teacher import FrozenTeacher
from lit_distill.models.trust import class_named, module_named

_PACKAGES = (
    *("lit_distill", "torch.nn", "torch.optim"),
    *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.cli.ReduceLROnPlateau"),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("EarlyStopping", "LearningRateMonitor", "EMAWeightAveraging")),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("StochasticWeightAveraging", "GradientAccumulationScheduler")),
)
# What a parser takes for text, numbers or nothing, and not for a class.
_PLAIN = (str, int, float, bool, complex, bytes, NoneType, Path)
KEYWORDS = "**"  # stands for the names that no signature has
_WORDS = re.compile(r"[\w .,+/=-]*")  # text that no parser makes anything else of


def check_arguments(arguments: Mapping[str, Any], kind: type[Any], path: str | Path) -> None:
    """Check the arguments of a class, as a foreign file gives them.

    Args:
        arguments: By name, of plain containers.
        kind: The class.
        path: The file, for messages.

    Raises:
        ValueError: If an argument names code that a file may not name, or is not in the form that this project writes.
    """
    types = parameters_of(kind)
    for name, value in arguments.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"refused {path}: {name!r} is no name of an argument of {kind.__name__}")
        if name not in types and KEYWORDS not in types:
            raise ValueError(f"refused {path}: {kind.__name__} has no argument {name!r}")
        if name == "trust" and value:
            raise ValueError(f"refused {path}: it asks to trust {value}, which only you can say")
        if kind is FrozenTeacher and name == "model" and isinstance(value, str) and source_of(value) == "dotted path":
            module_named(value, path)  # the only text that is imported
        check_value(value, types.get(name, Any), f"{kind.__name__}.{name}", path)


def check_value(value: Any, annotation: Any, where: str, path: str | Path) -> None:
    """Check a value for a parameter, as `check_arguments` does.

    Args:
        value: The value, of plain containers.
        annotation: The parameter's type.
        where: The parameter's name, for messages.
        path: The file, for messages.

    Raises:
        ValueError: As `check_arguments`.
    """
    if value is None or type(value) in (bool, int, float):
        return
    if type(value) is str:
        if not _takes_text(annotation, value):
            raise ValueError(f"refused {path}: {where} is the text {value!r}, where a class or a number is expected")
    elif type(value) in (list, tuple):
        for part in value:
            check_value(part, annotation, where, path)
    elif type(value) not in (dict, OrderedDict):
        raise ValueError(f"refused {path}: {where} is a {type(value).__name__}")
    elif "class_path" in value:
        _check_class(value, where, path)
    else:
        # Of a dataclass, or a mapping of the user's such as class names.
        kind = next((leaf for leaf in _leaves(annotation) if _is_described_by(leaf, value)), None)
        if kind is not None:
            check_arguments(value, kind, path)
            return
        if not any(leaf in _PLAIN or leaf is Any for leaf in _leaves(annotation)):
            raise ValueError(f"refused {path}: {where} is a mapping without a class_path")
        for part in value.values():
            check_value(part, annotation, where, path)


def _check_class(value: Mapping[str, Any], where: str, path: str | Path) -> None:
    odd = set(value) - {"class_path", "init_args", "dict_kwargs"}
    if odd:
        raise ValueError(f"refused {path}: {where} has {sorted(map(str, odd))[0]!r} beside its class_path")
    kind = class_named(value["class_path"], path, _PACKAGES)
    for key in ("init_args", "dict_kwargs"):
        arguments = value.get(key) or {}
        if type(arguments) not in (dict, OrderedDict):
            raise ValueError(f"refused {path}: the {key} of {where} are a {type(arguments).__name__}")
        check_arguments(arguments, kind, path)


def _takes_text(annotation: Any, text: str) -> bool:
    """Tell whether a parser takes text for text, and not for the name or the description of a class."""
    for leaf in _leaves(annotation):
        if leaf is Any:
            return bool(_WORDS.fullmatch(text))
        if leaf is str or get_origin(leaf) is Literal:
            return True
        if leaf not in _PLAIN:
            return False
    return True


def _leaves(annotation: Any) -> Iterator[Any]:
    """Return the types in an annotation, in order, without their containers."""
    if get_origin(annotation) in (None, Literal):
        yield annotation
    elif get_origin(annotation) in (Callable, type):
        yield Callable
    else:
        mapping = isinstance(get_origin(annotation), type) and issubclass(get_origin(annotation), Mapping)
        for part in get_args(annotation)[-1:] if mapping else get_args(annotation):
            if part is not Ellipsis:
                yield from _leaves(part)


def _is_described_by(leaf: Any, arguments: Mapping[str, Any]) -> bool:
    return isinstance(leaf, type) and leaf not in _PLAIN and set(arguments) <= set(parameters_of(leaf))


def parameters_of(kind: type[Any]) -> dict[str, Any]:
    """Return the parameters of a class and their types, `KEYWORDS` among them if it takes any other name.

    What takes keywords passes them on to the next class.
    """
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters: Sequence[inspect.Parameter] = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        try:
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
        except Exception:  # names that only type checkers know
            hints = {}
        for parameter in parameters:
            plain = parameter.annotation is inspect.Parameter.empty
            found.setdefault(parameter.name, Any if plain else hints.get(parameter.name, object))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            found.pop(KEYWORDS, None)
            break
        found[KEYWORDS] = Any
    return found
