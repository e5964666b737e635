"""The teacher's share of a step, measured on the steps that ask it."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from lit_distill import FrozenTeacher
from lit_distill.callbacks import teacher_time
from lit_distill.callbacks.teacher_time import StepTime, TeacherTime
from lit_distill.models.teacher_cache import TeacherCache

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [0.0]

    class Mark:
        def __init__(self, device: torch.device) -> None:
            self.time = now[0]

        def __sub__(self, before: Any) -> float:
            return self.time - before.time

    monkeypatch.setattr(teacher_time, "Mark", Mark)
    return now


def step(now: list[float], timer: TeacherTime, cache: TeacherCache, asking: float | None, rest: float) -> bool:
    is_over = timer.begin_step(CPU)
    before = teacher_time.Mark(CPU)
    if asking is not None:
        now[0] += asking
        cache.asks.append((before, teacher_time.Mark(CPU)))
    now[0] += rest
    return is_over


def test_the_first_step_and_those_that_do_not_ask_are_left_out(clock) -> None:
    cache = TeacherCache(FrozenTeacher(nn.Linear(2, 2)))
    timer = TeacherTime(cache)
    for asking, rest in ((50.0, 50.0), (None, 7.0), (1.0, 2.0), (2.0, 4.0), (None, 9.0), (1.5, 1.5), (8.0, 8.0)):
        assert not step(clock, timer, cache, asking, rest)
    assert not timer.is_over
    assert timer.measure() == StepTime(step=3.0, asking=1.5)  # the last step has no end yet
    assert timer.is_over
    assert not cache.is_timed


def test_a_step_alone_has_no_end_and_two_have_one(clock) -> None:
    cache = TeacherCache(FrozenTeacher(nn.Linear(2, 2)))
    timer = TeacherTime(cache)
    step(clock, timer, cache, 1.0, 2.0)
    assert timer.measure() is None
    timer.forget_steps()
    assert timer.measure() is None
    step(clock, timer, cache, 1.0, 3.0), step(clock, timer, cache, 1.0, 2.0)
    assert timer.measure() == StepTime(step=4.0, asking=1.0)


def test_twenty_steps_are_enough(clock) -> None:
    cache = TeacherCache(FrozenTeacher(nn.Linear(2, 2)))
    timer = TeacherTime(cache)
    assert [step(clock, timer, cache, 1.0, 1.0) for _ in range(23)] == [*[False] * 21, True, True]


def test_it_is_seconds(monkeypatch) -> None:
    cache = TeacherCache(FrozenTeacher(nn.Linear(2, 2)))
    timer = TeacherTime(cache)
    for _ in range(3):
        timer.begin_step(CPU)
        before = teacher_time.Mark(CPU)
        time.sleep(0.01)
        cache.asks.append((before, teacher_time.Mark(CPU)))
        time.sleep(0.01)
    measured = timer.measure()
    assert measured is not None
    assert 0.01 <= measured.asking < measured.step < 5
    assert measured.step >= 0.02
