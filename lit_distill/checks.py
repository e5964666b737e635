"""Checks of arguments: each error names the argument, what is expected and what came."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
import math
from typing import cast, get_args


def check_at_least(least: float, **values: float | None) -> None:
    """Raise ``ValueError`` unless each value is a finite number >= ``least``, or None.

    Example:
        >>> check_at_least(1, interval=0)
        Traceback (most recent call last):
        ValueError: interval must be >= 1, got 0
    """
    _check(values, lambda value: least <= value < math.inf, f">= {least}")


def check_whole(least: int, **values: object) -> None:
    """Raise ``ValueError`` unless each value is a whole number >= ``least``: no text, and neither true nor false.

    Example:
        >>> check_whole(1, epochs="2")
        Traceback (most recent call last):
        ValueError: epochs must be a whole number >= 1, got '2'
    """
    for name, value in values.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` unless each value is a finite number > 0."""
    _check(values, lambda value: 0 < value < math.inf, "> 0")


def check_fraction(**values: float) -> None:
    """Raise ``ValueError`` unless each value is in [0, 1]."""
    _check(values, lambda value: 0 <= value <= 1, "in [0, 1]")


def check_inside(low: float, high: float, **values: float | None) -> None:
    """Raise ``ValueError`` unless each value is in (low, high), the ends excluded, or None."""
    _check(values, lambda value: low < value < high, f"in ({low}, {high})")


def check_choice(choices: object, **values: object) -> None:
    """Raise ``ValueError`` unless each value is among ``choices``, a ``Literal`` type or a collection.

    Example:
        >>> from typing import Literal
        >>> check_choice(Literal["step", "epoch"], interval="batch")
        Traceback (most recent call last):
        ValueError: interval must be 'step' or 'epoch', got 'batch'
    """
    allowed = get_args(choices) or tuple(cast(Iterable[object], choices))
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} must be {listed(allowed)}, got {value!r}")


def _check(values: Mapping[str, float | None], fits: Callable[[float], bool], expected: str) -> None:
    for name, value in values.items():
        if value is not None and not fits(value):
            raise ValueError(f"{name} must be {expected}, got {value}")


def did_you_mean(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> str:
    """Return ``"did you mean 'close'?"``, or nothing if no known name is close.

    Args:
        name: What was given.
        known: The names there are.
        count: Names to offer at most.
        cutoff: How close they must be, in 0..1; 0 offers the nearest whatever it is.

    Example:
        >>> did_you_mean("distil", ["distill", "export"])
        "did you mean 'distill'?"
        >>> did_you_mean("qqq", ["distill", "export"])
        ''
    """
    close = get_close_matches(name, list(known), n=count, cutoff=cutoff)
    return f"did you mean {listed(close)}?" if close else ""


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def listed(values: Iterable[object]) -> str:
    """Return ``"'a', 'b' or 'c'"``."""
    *most, last = (repr(value) for value in values)
    return f"{', '.join(most)} or {last}" if most else last


def some_of(values: Iterable[object], count: int = 3) -> str:
    """Return the first values, and dots in place of the others.

    Example:
        >>> some_of(range(5))
        '0, 1, 2, ...'
    """
    texts = [str(value) for value in values]
    return ", ".join([*texts[:count], *["..."] * (len(texts) > count)])


def counted(number: float, name: str) -> str:
    """Return a number with the name of what it counts.

    Example:
        >>> counted(1, "view"), counted(0, "view"), counted(2.4, "hour")
        ('1 view', '0 views', '2 hours')
    """
    return f"{number:.0f} {name}" + ("" if round(number) == 1 else "s")


def knows_little_below(chance: float) -> float:
    """Return the accuracy below which a network knows little, given that of chance: a quarter of the way to all.

    Example:
        >>> knows_little_below(0.5), round(knows_little_below(0.1), 3)
        (0.625, 0.325)
    """
    return chance + 0.25 * (1 - chance)
