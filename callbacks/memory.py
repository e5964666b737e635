"""The per-sample table of remembered soft labels."""

from typing import Any

import torch
from torch import Tensor


class SoftLabelMemory:
    """One remembered probability vector per training sample, with the epoch in which it was recorded.

    Every row has two slots. Recording in epoch e overwrites the older slot, and reading in epoch e takes the newest
    slot recorded *before* e; so nothing recorded in an epoch can be read in it, and no hook has to publish anything.
    Within an epoch the first recording of a row stands. Nothing here waits for the device.

    Args:
        num_samples: Rows N >= 1, the length of the training set.
        num_classes: Classes K >= 1.
        dtype: What a probability is stored as; float16 halves the table and is exact to 5e-4 of the value.
        device: Where the table lies.

    Raises:
        ValueError: If a size is < 1.

    Example:
        >>> memory = SoftLabelMemory(num_samples=3, num_classes=2)
        >>> memory.record(torch.tensor([1]), torch.tensor([[0.25, 0.75]]), epoch=1)
        >>> memory.read(torch.tensor([0, 1]), epoch=2)
        (tensor([[0.0000, 0.0000],
                [0.2500, 0.7500]]), tensor([False,  True]))
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in {"num_samples": num_samples, "num_classes": num_classes}.items():
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        self.num_samples = num_samples
        self.num_classes = num_classes
        self._rows = torch.zeros(2, num_samples, num_classes, dtype=dtype, device=device)
        self._epochs = torch.zeros(2, num_samples, dtype=torch.int32, device=device)  # 0: never recorded

    def record(self, index: Tensor, soft_labels: Tensor, epoch: int) -> None:
        """Remember ``soft_labels`` ``(B, K)`` for the rows ``index`` ``(B,)``, as of ``epoch`` >= 1.

        A row that was already recorded in this epoch keeps its first value, as does the first of several equal
        indices in the batch; a vector that is not finite is not recorded.
        """
        newest_epoch, newest = self._epochs.index_select(1, index).max(dim=0)
        again = newest_epoch == epoch
        slot = torch.where(again, newest, 1 - newest)
        row = slot * self.num_samples + index
        # Equal indices write equal values, those of the first of them, so the order of the writes does not matter.
        first = (index[:, None] == index[None, :]).int().argmax(dim=1)
        soft_labels = soft_labels.to(self._rows.dtype).index_select(0, first)
        keep = again | ~soft_labels.sum(dim=1, dtype=torch.float32).isfinite()  # of probabilities: all are finite
        rows, epochs = self._rows.view(-1, self.num_classes), self._epochs.view(-1)
        rows.index_copy_(0, row, torch.where(keep[:, None], rows.index_select(0, row), soft_labels))
        epochs.index_copy_(0, row, torch.where(keep, epochs.index_select(0, row), epoch))

    def read(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return what was remembered before ``epoch`` for the rows ``index`` ``(B,)``.

        Returns:
            Soft labels ``(B, K)``, float32, zeros where nothing was recorded; and ``(B,)`` bool, True where it was.
        """
        epochs = self._epochs.index_select(1, index)
        recorded_in, slot = torch.where(epochs < epoch, epochs, 0).max(dim=0)
        recorded = recorded_in > 0
        rows = self._rows.view(-1, self.num_classes).index_select(0, slot * self.num_samples + index)
        return rows.float() * recorded[:, None], recorded

    def to(self, device: torch.device | str) -> "SoftLabelMemory":
        """Move the table and return it."""
        self._rows, self._epochs = self._rows.to(device), self._epochs.to(device)
        return self

    def resize(self, num_samples: int) -> "SoftLabelMemory":
        """Return a table for a data set that has grown by new rows at its end; they count as never recorded.

        Raises:
            ValueError: If ``num_samples`` is smaller than before: nobody can tell which rows went.
        """
        if num_samples == self.num_samples:
            return self
        if num_samples < self.num_samples:
            raise ValueError(
                f"the remembered soft labels are for {self.num_samples} samples, the training set has {num_samples}: "
                "resume with the data set of the checkpoint"
            )
        grown = SoftLabelMemory(num_samples, self.num_classes, self._rows.dtype, self._rows.device)
        grown._rows[:, : self.num_samples] = self._rows
        grown._epochs[:, : self.num_samples] = self._epochs
        return grown

    def state_dict(self) -> dict[str, Any]:
        """Return the table as plain tensors; they are the table's own, not copies."""
        return {"rows": self._rows, "epochs": self._epochs}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "SoftLabelMemory":
        """Make a table from what `state_dict` returned; takes the tensors over without a copy."""
        memory = cls.__new__(cls)
        memory._rows, memory._epochs = state["rows"], state["epochs"]
        _, memory.num_samples, memory.num_classes = memory._rows.shape
        return memory
