"""Configurations as trees: their leaves, and where two of them differ."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
    """One leaf that differs between two configurations; None where one of them has no such leaf."""

    key: str
    new: object
    old: object

    @property
    def flag(self) -> str:
        """What the command line calls the key."""
        return self.key.replace(".init_args", "").removesuffix(".class_path")


def as_list(value: object) -> list[Any]:
    """Return what may be nothing, one or several as a list.

    Example:
        >>> as_list(None), as_list("a"), as_list(["a", "b"])
        ([], ['a'], ['a', 'b'])
    """
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def map_leaves(config: object, function: Callable[[object], object]) -> object:
    """Return the configuration with ``function`` applied to every value that is no mapping, list or tuple."""
    if isinstance(config, Mapping):
        return {key: map_leaves(value, function) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [map_leaves(value, function) for value in config]
    return function(config)


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    """Yield where two configurations differ.

    The arguments of a class that is replaced by another one all differ. Only the class is yielded then.

    Example:
        >>> [change.flag for change in changes({"a": {"class_path": "A", "init_args": {"x": 1}}, "b": 1}, {"b": 1})]
        ['a']
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    replaced: tuple[str, ...] = ()
    for key in before | after:
        if before.get(key) == after.get(key) or key.startswith(replaced):
            continue
        if key.endswith(".class_path"):
            replaced += (key.removesuffix("class_path"),)
        yield Change(key, after.get(key), before.get(key))


def _leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _leaves(value, f"{prefix}.{key}".removeprefix("."))
    else:
        yield prefix, list(config) if isinstance(config, tuple) else config
