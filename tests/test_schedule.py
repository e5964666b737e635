import math

import pytest
import torch

from lit_distill import WarmupCosine


def optimizer(lr: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(schedule: WarmupCosine, steps: int) -> list[float]:
    out = []
    for _ in range(steps):
        out.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return out


@pytest.mark.parametrize("started", [True, False])
def test_warms_up_linearly_then_falls_as_half_a_cosine(started: bool) -> None:
    schedule = WarmupCosine(optimizer(), warmup=0.1, min_ratio=0.2, total_steps=None if started else 50)
    if started:
        schedule.start(50)
    warm = [2 * (i + 1) / 5 for i in range(5)]
    fall = [2 * (0.2 + 0.8 * (1 + math.cos(math.pi * i / 45)) / 2) for i in range(46)]
    assert rates(schedule, 55) == pytest.approx(warm + fall + [0.4] * 4)


def test_leaves_the_rate_alone_until_it_knows_the_steps() -> None:
    assert rates(WarmupCosine(optimizer()), 3) == [2.0, 2.0, 2.0]


def test_start_keeps_a_given_length() -> None:
    schedule = WarmupCosine(optimizer(), total_steps=7)
    schedule.start(50)
    assert schedule.total_steps == 7


def test_a_resumed_schedule_goes_on_with_the_length_it_is_given() -> None:
    first = WarmupCosine(optimizer(), total_steps=10)
    rates(first, 5)
    second = WarmupCosine(optimizer(), total_steps=20)
    second.load_state_dict(first.state_dict())
    assert second.last_epoch == 5
    assert second.total_steps == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps must be >= 1, got 0"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"min_ratio": 1.5}, r"min_ratio must be in \[0, 1\], got 1.5"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupCosine(optimizer(), **arguments)
