"""Sums over an epoch's steps, kept on the device and read when it ends."""

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
import torch
from torch import Tensor


def log_gathered(module: LightningModule, name: str, value: Tensor, prog_bar: bool = False) -> None:
    """Log an epoch's value that all processes have already, such as one of `EpochSums.gather`.

    Lightning would reduce it once more, when its progress bar asks for it: on rank 0 alone, which no other rank joins.
    With ``rank_zero_only`` it does not. All ranks keep the value, so it may be monitored.
    """
    module.log(name, value, prog_bar, on_step=False, on_epoch=True, sync_dist=True, rank_zero_only=True)


class EpochSums:
    """Sums of values over the steps of an epoch; with the number of rows they make means.

    A step's values count once the step is done, so a checkpoint holds those of exactly the steps that a resumed run
    does not repeat. Plain sums: torchmetrics' ``MeanMetric`` waits for the device to look for NaN, and Lightning's
    ``log`` takes several times as long in each step.

    Example:
        >>> sums = EpochSums()
        >>> sums.add({"kl": torch.tensor([0.5, 2.0])})
        >>> sums.end_step()
        >>> sums.gather(Trainer(logger=False, accelerator="cpu", enable_checkpointing=False))
        {'kl': tensor(2.5000, dtype=torch.float64), 'rows': tensor(2., dtype=torch.float64)}
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._step: Tensor | None = None  # of the step under way, one sum for each name
        self._sums: Tensor | None = None  # of this process, since the last time that all were gathered
        self._gathered: Tensor | None = None  # of all processes, before that

    def add(self, values: Mapping[str, Tensor], weight: int = 1) -> None:
        """Note a step's values by name: all ``(B,)``, or all scalars that are the mean of ``weight`` rows."""
        columns = [value.detach().float() for value in values.values()]
        columns.append(torch.ones_like(columns[0]))
        self._names = (*values, "rows")
        wide = torch.float32 if columns[0].device.type == "mps" else torch.float64
        self._step = torch.stack(columns).view(len(columns), -1).sum(dim=1, dtype=wide) * weight

    def end_step(self) -> None:
        """Count the step that was noted, if there was one."""
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
