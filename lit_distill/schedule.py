"""Learning-rate schedule."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up from zero, then half a cosine down to ``min_ratio``, stepping once per optimizer step.

    Args:
        optimizer: The optimizer whose learning rates are scaled.
        total_steps: Steps of the whole run, >= 1; `LitDistiller` takes them from the trainer.
        warmup: Share of the steps that warm up, in [0, 1).
        min_ratio: Share of the learning rate that is left at the end, in 0..1.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WarmupCosine(optimizer, total_steps=10, warmup=0.2)
        >>> rates = []
        >>> for _ in range(10):
        ...     rates.append(round(schedule.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, min_ratio: float = 0.0) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps must be >= 1, got {total_steps}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {warmup}")
        if not 0 <= min_ratio <= 1:
            raise ValueError(f"min_ratio must be in [0, 1], got {min_ratio}")
        warmup_steps = round(warmup * total_steps)

        def scale(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
            return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2

        super().__init__(optimizer, scale)
