"""Learning-rate schedule."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override


class WarmupCosine(LRScheduler):
    """Linear warm-up from zero, then half a cosine down to ``min_ratio``, stepping once per optimizer step.

    Args:
        optimizer: The optimizer whose learning rates are scaled.
        warmup: Share of the steps that warm up, in [0, 1).
        min_ratio: Share of the learning rate that is left at the end, in 0..1.
        total_steps: Steps of the whole run, >= 1. None leaves the learning rate alone until `start` is called, which
            `LitDistiller` does with the trainer's number of steps.

    Raises:
        ValueError: If a value is out of range.

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
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be >= 1, got {total_steps}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {warmup}")
        if not 0 <= min_ratio <= 1:
            raise ValueError(f"min_ratio must be in [0, 1], got {min_ratio}")
        self.warmup = warmup
        self.min_ratio = min_ratio
        self.total_steps = total_steps
        super().__init__(optimizer)

    def start(self, total_steps: int) -> None:
        """Set the number of steps, unless it is set, and the learning rates of the first of them."""
        if self.total_steps is None:
            self.total_steps = total_steps
            self._last_lr = self.get_lr()
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = rate

    @override
    def get_lr(self) -> list[float | Tensor]:
        return [rate * self._scale(self.last_epoch) for rate in self.base_lrs]

    @override
    def state_dict(self) -> dict[str, Any]:
        # A resumed run has the length that it is given, not the one of the checkpoint.
        return {key: value for key, value in super().state_dict().items() if key != "total_steps"}

    def _scale(self, step: int) -> float:
        if self.total_steps is None:
            return 1.0
        warmup_steps = round(self.warmup * self.total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (self.total_steps - warmup_steps))
        return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * progress)) / 2
