"""Moments in the work of a device, and times in words."""

import time

import torch

from lit_distill.checks import counted


class Mark:
    """A moment in the work of a device, on a GPU that in which it gets to what is asked of it now.

    The difference of two is the seconds between them; only the difference waits for the device.

    Args:
        device: Whose work is timed.

    Example:
        >>> before = Mark(torch.device("cpu"))
        >>> 0 <= Mark(torch.device("cpu")) - before < 60
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._event: torch.Event | None = None
        if device.type == "cuda":
            self._event = torch.Event(device, enable_timing=True)
            self._event.record()
        self._time = time.perf_counter()

    def __sub__(self, before: "Mark") -> float:
        if self._event is None or before._event is None:
            return self._time - before._time
        self._event.synchronize()
        return float(before._event.elapsed_time(self._event)) / 1000


def duration(seconds: float) -> str:
    """Return a time in its largest unit, and in the next one too if it is of hours or days.

    Example:
        >>> [duration(seconds) for seconds in (45, 119, 150, 8000, 100000)]
        ['45 seconds', '119 seconds', '2 minutes', '2 hours 13 minutes', '1 day 3 hours']
    """
    if seconds >= 86400:
        return f"{counted(seconds // 86400, 'day')} {counted(seconds % 86400 // 3600, 'hour')}"
    if seconds >= 3600:
        return f"{counted(seconds // 3600, 'hour')} {counted(seconds % 3600 // 60, 'minute')}"
    return counted(seconds / 60, "minute") if seconds >= 120 else counted(seconds, "second")
