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


def test_refuses_to_step_before_it_knows_the_steps() -> None:
    """A constant rate would pass for a schedule: in another Lightning module, or inside SequentialLR."""
    schedule = WarmupCosine(optimizer())
    assert schedule.get_last_lr() == [2.0]
    with pytest.raises(ValueError, match=r"WarmupCosine does not know its length: give it total_steps, or call start"):
        rates(schedule, 1)


@pytest.mark.parametrize(
    ("warmup", "total_steps", "expected"),
    [
        (0.9, 1, [2.0, 0.0, 0.0]),
        (0.9, 2, [2.0, 2.0, 0.0]),
        (0.95, 10, [2 * (i + 1) / 9 for i in range(9)] + [2.0, 0.0]),
        (0.5, 1, [2.0, 0.0]),
        (0.05, 4, [2 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]),
    ],
)
def test_a_warmup_of_the_whole_run_leaves_the_cosine_a_step(
    warmup: float, total_steps: int, expected: list[float]
) -> None:
    schedule = WarmupCosine(optimizer(), warmup=warmup, total_steps=total_steps)
    assert rates(schedule, len(expected)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_a_group_that_is_added_later_follows_from_its_own_rate(warmup: float) -> None:
    schedule = WarmupCosine(optimizer(), warmup=warmup, total_steps=10)
    rates(schedule, 3)
    first, alone = schedule.optimizer.param_groups[0], WarmupCosine(optimizer(), warmup=warmup, total_steps=10)
    schedule.optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": first["lr"] / 10})
    rates(alone, 3)
    for expected in rates(alone, 9):
        assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([expected, expected / 10])
        rates(schedule, 1)
    again = WarmupCosine(schedule.optimizer, warmup=warmup, total_steps=10)
    again.load_state_dict(schedule.state_dict())
    assert again.base_lrs == pytest.approx([2.0, 0.2])


def test_a_group_that_is_added_where_the_rate_is_zero_keeps_its_rate_as_the_full_one() -> None:
    schedule = WarmupCosine(optimizer(), warmup=0.0, total_steps=2)
    rates(schedule, 2)
    schedule.optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0})
    rates(schedule, 1)
    assert schedule.get_last_lr() == [0.0, 0.0]


def test_start_keeps_a_given_length() -> None:
    schedule = WarmupCosine(optimizer(), total_steps=7)
    schedule.start(50)
    assert schedule.total_steps == 7
    with pytest.raises(ValueError, match="total_steps must be >= 1, got -1"):
        WarmupCosine(optimizer()).start(-1)


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
