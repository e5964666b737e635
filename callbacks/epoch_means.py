"""Means over the samples of an epoch that survive a resume within it."""

from collections.abc import Mapping

from lightning.pytorch import Trainer
import torch
from torch import Tensor


class EpochMeans:
    """Means of values by sample, summed on the device and read when the epoch ends.

    A step's values count once the step is done, so a checkpoint holds those of exactly the steps that a resumed run
    does not repeat. Plain sums: torchmetrics' ``MeanMetric`` would wait for the device to look for NaN, and take
    several times as long.

    Example:
        >>> means = EpochMeans()
        >>> means.add(torch.tensor([True, False]), {"kl": torch.tensor([0.5, 9.0])})
        >>> means.end_step()
        >>> means.gather(Trainer(logger=False, accelerator="cpu", enable_checkpointing=False))["kl"]
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._step: Tensor | None = None  # of the step under way, one sum for each name
        self._sums: Tensor | None = None  # of this process, since the last time that all were gathered
        self._gathered: Tensor | None = None  # of all processes, before that

    def add(self, recorded: Tensor, values: Mapping[str, Tensor]) -> None:
        """Note a batch: values ``(B,)`` by name, which count where ``recorded`` ``(B,)`` bool."""
        ones = torch.ones_like(recorded, dtype=torch.float32)
        counted = (torch.where(recorded, value.detach(), 0) for value in values.values())
        columns = torch.stack([*counted, recorded.float(), ones])
        self._names = (*values, "recorded", "rows")
        self._step = columns.sum(dim=1, dtype=torch.float32 if recorded.device.type == "mps" else torch.float64)

    def end_step(self) -> None:
        """Count the batch that was noted, if there was one."""
        if self._step is not None:
            self._sums = self._step if self._sums is None else self._sums + self._step
            self._step = None

    def gather(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return the sums over the epoch so far and over all processes, with the number of rows; collective."""
        if self._sums is not None:
            sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
            self._gathered = sums if self._gathered is None else sums + self._gathered.to(sums.device)
            self._sums = None
        return {} if self._gathered is None else dict(zip(self._names, self._gathered, strict=True))

    def load(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from what `gather` returned."""
        self._names = tuple(sums)
        self._gathered = torch.stack(list(sums.values())) if sums else None
