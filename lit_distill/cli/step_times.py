"""Measure how long a step takes, for a dry run."""

import time

from lightning.pytorch import Callback, Trainer
import torch
from typing_extensions import override


class StepTimes(Callback):
    """Measure the seconds of a training step and of a validation step, and keep them in the checkpoint.

    The first step of each kind is left out: loaders, kernels and memory are made in it.
    """

    def __init__(self) -> None:
        self._began = {"train": 0.0, "val": 0.0}
        self._steps = {"train": 0, "val": 0}
        self._seconds = {"train": 0.0, "val": 0.0}
        self._batches = {"train": 0.0, "val": 0.0}

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        self._batches = {"train": trainer.num_training_batches, "val": sum(trainer.num_val_batches)}
        self._count("train")

    @override
    def on_validation_batch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        if trainer.sanity_checking:
            self._count("val")

    def _count(self, kind: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        if self._steps[kind]:
            self._seconds[kind] = (now - self._began[kind]) / self._steps[kind]
        else:
            self._began[kind] = now
        self._steps[kind] += 1

    @override
    def state_dict(self) -> dict[str, float]:
        """Return the seconds of an epoch, and the steps in it."""
        seconds = sum(self._batches[kind] * self._seconds[kind] for kind in self._batches)
        return {"seconds": seconds, "steps": self._batches["train"]}
