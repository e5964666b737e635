"""The teacher's share of the time of a step."""

from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

from lit_distill.models.marks import Mark
from lit_distill.models.teacher_cache import TeacherCache

_STEPS = 20  # that are timed; more would be no more exact where other work is on the machine


class StepTime(NamedTuple):
    """Seconds of a step in which the teacher is asked, and of the asking alone."""

    step: float
    asking: float


class TeacherTime:
    """Times the first steps in which a cache asks its teacher, without waiting for the device before they are over.

    Args:
        cache: Which asks.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self._cache = cache
        self._steps: list[tuple[Mark, int]] = []  # when each began, and how often the teacher had been asked then

    @property
    def is_over(self) -> bool:
        """Whether enough steps have been timed, or `measure` has been called."""
        return not self._cache.is_timed

    def begin_step(self, device: torch.device) -> bool:
        """Note that a step begins; return whether enough of them have been timed."""
        self._steps.append((Mark(device), len(self._cache.asks)))
        return len(self._cache.asks) > _STEPS

    def forget_steps(self) -> None:
        """Count no time from the last step that began to the next one, as between epochs."""
        self._steps.clear()
        self._cache.asks.clear()

    def measure(self) -> StepTime | None:
        """Return the medians, and time no more; None if there was no step between two others that began.

        The first step is left out where there are more, since memory is made in it.
        """
        times = [
            (later - earlier, answered - asked)
            for (earlier, number), (later, next_number) in pairwise(self._steps)
            for asked, answered in self._cache.asks[number:next_number]
        ]
        if not times:
            return None
        self._cache.is_timed = False
        return StepTime(*(median(seconds) for seconds in zip(*(times[1:] or times), strict=True)))
