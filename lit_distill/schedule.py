"""Learning-rate schedules: their length, when they step, and their peak."""

import math
from typing import Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR
from typing_extensions import override

from lit_distill.checks import check_at_least, check_fraction

Interval = Literal["step", "epoch"]


class WarmupCosine(LRScheduler):
    """Linear warm-up from zero, then half a cosine down to ``min_ratio``.

    A parameter group that is added in the middle of a run begins with its own rate and follows the schedule from then
    on.

    Args:
        optimizer: The optimizer whose learning rates are scaled.
        warmup: Share of the steps that warm up, in [0, 1); at least one step is left for the cosine.
        min_ratio: Learning rate at the end, as a share of the peak, in 0..1.
        total_steps: Calls of ``step`` in the whole run, >= 1. If None, call `start` before the first step, as
            `LitDistiller` does with the trainer's number of steps or epochs.

    Raises:
        ValueError: If a value is out of range, or ``step`` is called before the number of steps is known.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WarmupCosine(optimizer, warmup=0.2, total_steps=10)
        >>> rates = []
        >>> for _ in range(10):
        ...     rates.append(round(schedule.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.05, min_ratio: float = 0.0, total_steps: int | None = None
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {warmup}")
        check_fraction(min_ratio=min_ratio)
        check_at_least(1, total_steps=total_steps)
        self.warmup = warmup
        self.min_ratio = min_ratio
        self.total_steps = total_steps
        self._follows_the_run = total_steps is None
        super().__init__(optimizer)

    def start(self, total_steps: int) -> None:
        """Set the number of steps, unless it was given at construction, and the resulting learning rates."""
        if self._follows_the_run:
            check_at_least(1, total_steps=total_steps)
            self.total_steps = total_steps
            self._last_lr = self.get_lr()
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = rate

    @override
    def get_lr(self) -> list[float | Tensor]:
        if self.total_steps is None and self.last_epoch > 0:
            raise ValueError("WarmupCosine does not know its length: give it total_steps, or call start(total_steps)")
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:  # thawed since the last step
            self.base_lrs.append(group["lr"] / (self._scale(self.last_epoch - 1) or 1.0))
        return [rate * self._scale(self.last_epoch) for rate in self.base_lrs]

    @override
    def state_dict(self) -> dict[str, object]:
        # A resumed run has its own length, not the checkpoint's.
        length = ("total_steps", "_follows_the_run")
        return {key: value for key, value in super().state_dict().items() if key not in length}

    def _scale(self, step: int) -> float:
        if self.total_steps is None:
            return 1.0
        warmup_steps = min(round(self.warmup * self.total_steps), self.total_steps - 1)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (self.total_steps - warmup_steps))
        return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * progress)) / 2


def interval_of(scheduler: object) -> Interval:
    """Return when a scheduler steps: `WarmupCosine`, ``OneCycleLR`` and ``CyclicLR`` by step, all others by epoch."""
    return "step" if isinstance(scheduler, (WarmupCosine, OneCycleLR, CyclicLR)) else "epoch"


def length_of(trainer: Trainer, interval: Interval) -> int:
    """Return the steps or epochs of a whole run, which spans its ``max_epochs``; ``max_steps`` may end it earlier.

    Raises:
        ValueError: If the run has no end, or steps cannot be counted because the training loader has no length.
    """
    if trainer.limit_train_batches == 0:
        return 1  # the run ends before its first step, and Lightning makes no training loader
    # Lightning makes the training loader when it is asked for this. Without a length, its answer is max_steps, or -1.
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    has_end = trainer.max_epochs is not None and trainer.max_epochs != -1
    epochs = max(1, trainer.max_epochs or 0)
    if interval == "epoch" and has_end:
        return epochs
    if isinstance(batches, int) and has_end:
        return max(1, sum(math.ceil(batches / accumulated) for accumulated in _accumulation(trainer, epochs)))
    if interval == "step" and trainer.max_steps != -1:
        return int(steps)
    if has_end:
        raise ValueError(
            "WarmupCosine needs the number of steps, but the training loader has no length: set the trainer's "
            "max_steps or limit_train_batches, the schedule's total_steps, or scheduler_interval='epoch'"
        )
    other = " or max_steps" if interval == "step" else ""
    raise ValueError(f"WarmupCosine needs an end: set the trainer's max_epochs{other}, or total_steps")


def scheduler_config(
    scheduler: LRScheduler | ReduceLROnPlateau, trainer: Trainer, interval: Interval | None
) -> tuple[LRSchedulerConfigType, bool]:
    """Return what Lightning wants to know of a scheduler, and whether its length was taken from the run.

    Args:
        scheduler: The scheduler; a `WarmupCosine` without a length gets the run's.
        trainer: The run.
        interval: When it steps; None for `interval_of`.
    """
    interval = interval or interval_of(scheduler)
    follows_the_run = isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None
    if isinstance(scheduler, WarmupCosine) and follows_the_run:
        scheduler.start(length_of(trainer, interval))
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = scheduler.monitor
    return config, follows_the_run


def restart(trainer: Trainer) -> None:
    """Set the length of the run's `WarmupCosine` anew, unless a callback has put another schedule in its place."""
    config = trainer.lr_scheduler_configs[0]
    if isinstance(config.scheduler, WarmupCosine):
        config.scheduler.start(length_of(trainer, "epoch" if config.interval == "epoch" else "step"))


def peak_rate(trainer: Trainer | None) -> float:
    """Return the learning rate of the first optimizer at its schedule's peak.

    Raises:
        AttributeError: If no trainer has made an optimizer yet.
    """
    if trainer is None or not trainer.optimizers:
        raise AttributeError("there is no learning rate before a fit: the optimizer is made in it")
    group = trainer.optimizers[0].param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def set_peak_rate(trainer: Trainer, rate: float) -> None:
    """Scale all learning rates so that the schedules peak at ``rate``."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= rate / group.get("initial_lr", group["lr"])
            group["initial_lr"] = rate
    for scheduler in _schedulers(trainer):
        scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def apply_schedules(trainer: Trainer) -> None:
    """Set the optimizers' learning rates to those of their schedules."""
    for scheduler in _schedulers(trainer):
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate


def _schedulers(trainer: Trainer) -> list[LRScheduler]:
    """Return the schedulers with a rate to scale, which ``ReduceLROnPlateau`` has not."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [scheduler for scheduler in schedulers if hasattr(scheduler, "base_lrs")]


def _accumulation(trainer: Trainer, epochs: int) -> list[int]:
    """Return how many batches make a step, in each epoch."""
    callbacks: list[Callback] = vars(trainer)["callbacks"]
    for planned in callbacks:
        if isinstance(planned, GradientAccumulationScheduler):
            return [planned.get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
    return [trainer.accumulate_grad_batches] * epochs
