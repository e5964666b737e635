"""The choice of the fastest way, by measuring, and remembered so that a rerun makes the same one."""

from collections.abc import Callable, Iterable
from contextlib import suppress
import hashlib
import json
import os
from pathlib import Path
import time
from typing import TypeVar

import torch

from lit_distill.files import write_atomically

Way = TypeVar("Way")
_ROUNDS, _CALLS = 3, 3
_remembered: dict[str, str] = {}  # the choices of this process


def fastest(ways: Iterable[Way], seconds_of: Callable[[Way], float], tie: float = 0.05) -> tuple[Way, float]:
    """Return the fastest way and its seconds; one that stands earlier wins unless it is slower by the share ``tie``.

    Example:
        >>> seconds = {"float32": 1.0, "bf16": 0.97, "fp16": 0.5}
        >>> fastest(["float32", "bf16"], seconds.get), fastest(seconds, seconds.get)
        (('float32', 1.0), ('fp16', 0.5))
    """
    seconds = {way: seconds_of(way) for way in ways}
    least = min(seconds.values())
    return next((way, value) for way, value in seconds.items() if value <= least * (1 + tie))


def seconds_of_call(call: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes on the device: the least of a few rounds, after calls that are not timed."""
    rounds = []
    for number in range(_ROUNDS + 1):
        _wait_for(device)
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        _wait_for(device)
        rounds.append((time.perf_counter() - start) / _CALLS if number else float("inf"))
    return min(rounds)


def remember(facts: object, choose: Callable[[], str]) -> str:
    """Return what was chosen before for these facts, in this process or by this user on this machine, or choose.

    The choices lie in ``$XDG_CACHE_HOME/lit_distill``, by default ``~/.cache/lit_distill``. Without a place for them
    each process chooses.

    Args:
        facts: All that the choice depends on, as JSON has it.
        choose: Called if nothing is remembered.
    """
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    if key in _remembered:
        return _remembered[key]
    with suppress(OSError, RuntimeError, ValueError, TypeError, LookupError):  # no home, not readable, not ours
        _remembered[key] = str(json.loads((_folder() / f"{key}.json").read_text())["choice"])
        return _remembered[key]
    _remembered[key] = choose()
    with suppress(OSError, RuntimeError), write_atomically(_folder() / f"{key}.json") as part:
        part.write_text(json.dumps({"choice": _remembered[key]}))
    return _remembered[key]


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_distill" / "fast"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
