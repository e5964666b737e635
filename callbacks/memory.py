"""The table of remembered soft labels, one a training sample."""

from typing import NotRequired, Self, TypedDict

import torch
from torch import Tensor

from lit_distill.checks import check_at_least
from lit_distill.rows import class_dtype, keep_largest, spread


class MemoryState(TypedDict):
    """What a checkpoint keeps of a table."""

    rows: Tensor
    classes: NotRequired[Tensor]
    epochs: Tensor
    num_classes: int


class SoftLabelMemory:
    """One remembered probability vector per training sample, with the epoch in which it was recorded.

    Every row has two slots. Recording in epoch e overwrites the older slot, and reading in epoch e takes the newest
    slot recorded *before* e. So nothing recorded in an epoch can be read in it, and no hook has to publish anything.
    Within an epoch the first recording of a row stands. `record` and `read` never wait for the device.

    The table lies on the device of the soft labels. It takes 5.1 GB for ImageNet-1k (1,281,167 rows of 1000 classes,
    float16, both slots) and 1.2 GB for ImageNet-21k with ``top_k=10`` (14.2 million rows of 21,841 classes).

    Args:
        num_samples: Rows N >= 1, the length of the training set.
        num_classes: Classes K >= 1.
        top_k: Keep the ``top_k`` >= 1 largest probabilities of a row and their classes; the mass left is spread evenly
            over the other classes, as TinyViT and FKD do. A row with at most ``top_k`` probabilities above zero is
            kept exactly. None, or as many as there are classes, keeps all.
        dtype: What a probability is stored as; float16 halves the table and is exact to 5e-4 of the value.
        device: Where the table lies.

    Raises:
        ValueError: If a size is < 1.

    Example:
        >>> memory = SoftLabelMemory(num_samples=3, num_classes=2)
        >>> memory.record(torch.tensor([1]), torch.tensor([[0.25, 0.75]]), epoch=1)
        tensor([True])
        >>> memory.read(torch.tensor([0, 1]), epoch=2)
        (tensor([[0.0000, 0.0000],
                [0.2500, 0.7500]]), tensor([False,  True]))
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        top_k: int | None = None,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        check_at_least(1, num_samples=num_samples, num_classes=num_classes, top_k=top_k)
        size = 2, num_samples, _probabilities_kept(top_k, num_classes)
        tables = [torch.zeros(size, dtype=dtype, device=device)]
        if size[2] < num_classes:
            tables.append(torch.zeros(size, dtype=class_dtype(num_classes), device=device))
        # Epoch 0: never recorded.
        self._fill(num_classes, tables, torch.zeros(size[:2], dtype=torch.int32, device=device))

    def _fill(self, num_classes: int, tables: list[Tensor], epochs: Tensor) -> Self:
        self.num_classes = num_classes
        self._tables = tables  # probabilities, and the classes that they are of unless all are kept: (2, N, top_k) each
        self._epochs = epochs  # (2, N)
        # What `record` left out so far: indices outside the table, and unusable vectors.
        self.refused = torch.zeros(2, dtype=torch.int64, device=epochs.device)
        return self

    @property
    def num_samples(self) -> int:
        """Rows N."""
        return self._epochs.shape[1]

    @property
    def top_k(self) -> int:
        """Probabilities kept of a row."""
        return self._tables[0].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """What a probability is stored as."""
        return self._tables[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self._epochs.device

    @property
    def nbytes(self) -> int:
        """Bytes of the table: both slots of every row, their classes and epochs."""
        return sum(table.nbytes for table in (*self._tables, self._epochs))

    def record(self, index: Tensor, soft_labels: Tensor, epoch: int, where: Tensor | None = None) -> Tensor:
        """Remember ``soft_labels`` ``(B, K)`` for the rows ``index`` ``(B,)``, as of ``epoch`` >= 1.

        A row that was already recorded in this epoch keeps its first value, as does the first of several equal
        indices in the batch. A vector that is not finite, or not marked in ``where`` ``(B,)`` bool, is left out.
        So is a row outside the table. Both are counted in `refused`.

        Returns:
            ``(B,)`` bool, True for usable vectors whose row was written by this call.
        """
        if not len(index):
            return torch.zeros(0, dtype=torch.bool, device=self.device)
        usable = soft_labels.sum(dim=1, dtype=torch.float32).isfinite()  # probabilities: a finite sum has finite terms
        usable = usable if where is None else usable & where
        row, inside = self._rows(index)
        good = usable & inside
        epochs = self._epochs.index_select(1, row)
        second_is_newer, again = epochs[1] > epochs[0], (epochs == epoch).any(dim=0)
        # The newest slot if it is of this epoch, else the other one.
        flat_row = torch.add(row, (second_is_newer == again).long(), alpha=self.num_samples)
        # Equal indices write equal values, those of the first good one, so the order of the writes does not matter.
        found, first = ((row[:, None] == row) & good).max(dim=1)
        keep = again | ~found
        for table, part in zip(self._flat(), self._compress(soft_labels), strict=True):
            table.index_copy_(
                0, flat_row, torch.where(keep[:, None], table.index_select(0, flat_row), part.index_select(0, first))
            )
        stamps = self._epochs.flatten()
        stamps.index_copy_(0, flat_row, stamps.index_select(0, flat_row).masked_fill(~keep, epoch))
        self.refused += torch.stack([~inside, ~usable]).sum(dim=1)
        # A vector that is not usable has no place in the order, though an equal index may have written its row.
        return good & ~keep

    def read(self, index: Tensor, epoch: int, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the newest soft labels recorded before ``epoch`` for the rows ``index`` ``(B,)``.

        Args:
            index: Integers. A row outside 0..N-1 is returned as not recorded.
            epoch: >= 1.
            where: ``(B,)`` bool. Rows where it is False are returned as not recorded.

        Returns:
            Soft labels ``(B, K)``, float32, zeros where nothing was recorded; and ``(B,)`` bool, True where it was.
        """
        row, inside = self._rows(index)
        epochs = self._epochs.index_select(1, row)
        first, second = (epochs * (epochs < epoch)).unbind()
        # The row in `_flat()`, which has the second slots below the first ones.
        flat_row = torch.add(row, (second > first).long(), alpha=self.num_samples)
        recorded = (torch.maximum(first, second) > 0) & inside
        recorded = recorded if where is None else recorded & where
        soft_labels = self._expand([table.index_select(0, flat_row) for table in self._flat()])
        return soft_labels * recorded[:, None], recorded

    def recorded_in(self, epoch: int) -> Tensor:
        """Tell which rows were recorded in ``epoch`` >= 1, ``(N,)`` bool; two epochs of each row are known."""
        return (self._epochs == epoch).any(dim=0)

    def forget(self, rows: Tensor) -> None:
        """Forget what is remembered for the rows that are marked in ``rows``, ``(N,)`` bool."""
        self._epochs.masked_fill_(rows.to(self.device), 0)

    def to(self, device: torch.device | str) -> Self:
        """Move the table and return it."""
        self._tables = [table.to(device) for table in self._tables]
        self._epochs, self.refused = self._epochs.to(device), self.refused.to(device)
        return self

    def rearranged(self, source: Tensor) -> "SoftLabelMemory":
        """Return a table whose row n is this one's row ``source[n]``, or was never recorded where that is -1."""
        source = source.to(self.device)
        *tables, epochs = (table.index_select(1, source.clamp(min=0)) for table in (*self._tables, self._epochs))
        memory = object.__new__(SoftLabelMemory)._fill(self.num_classes, tables, epochs)
        memory.forget(source < 0)
        return memory

    def converted(self, top_k: int | None, dtype: torch.dtype, rows: int = 1 << 16) -> "SoftLabelMemory":
        """Return a table with the same soft labels that keeps ``top_k`` of them as ``dtype``; itself if it does.

        Args:
            top_k: See the class.
            dtype: See the class.
            rows: Rows converted at once, which bounds the additional memory.
        """
        if (_probabilities_kept(top_k, self.num_classes), dtype) == (self.top_k, self.dtype):
            return self
        memory = SoftLabelMemory(self.num_samples, self.num_classes, top_k, dtype, self.device)
        memory._epochs = self._epochs
        for start in range(0, 2 * self.num_samples, rows):
            part = slice(start, start + rows)
            soft_labels = self._expand([table[part] for table in self._flat()])
            for table, converted in zip(memory._flat(), memory._compress(soft_labels), strict=True):
                table[part] = converted
        return memory

    def state_dict(self) -> MemoryState:
        """Return the table as plain tensors; they are the table's own, not copies."""
        state: MemoryState = {"rows": self._tables[0], "epochs": self._epochs, "num_classes": self.num_classes}
        if len(self._tables) > 1:
            state["classes"] = self._tables[1]
        return state

    @classmethod
    def from_state_dict(cls, state: MemoryState) -> "SoftLabelMemory":
        """Make a table from what `state_dict` returned; takes the tensors over without a copy."""
        tables = [state["rows"], state["classes"]] if "classes" in state else [state["rows"]]
        return object.__new__(cls)._fill(state["num_classes"], tables, state["epochs"])

    # What `RowExchange` asks for.

    def take_out(self, row: Tensor) -> list[Tensor]:
        """Return the newest slot of each row as it is stored, a tensor for each table but the epochs."""
        slot = self._newest_slot(row)
        return [table[slot, row] for table in self._tables]

    def put_in(self, row: Tensor, parts: list[Tensor], epoch: int) -> None:
        """Write what another process took out; replaces a row of this ``epoch``, else uses the older slot."""
        newest = self._newest_slot(row)
        slot = torch.where(self._epochs[newest, row] == epoch, newest, 1 - newest)
        for table, part in zip(self._tables, parts, strict=True):
            table[slot, row] = part
        self._epochs[slot, row] = epoch

    def _newest_slot(self, row: Tensor) -> Tensor:
        epochs = self._epochs.index_select(1, row)
        return epochs[1].gt(epochs[0]).long()

    def _rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows to work on, and which of them are inside the table, each ``(B,)``."""
        index = index.to(self.device).long()
        row = index.clamp(0, self.num_samples - 1)
        return row, row == index

    def _flat(self) -> list[Tensor]:
        """Return each table with its slots one below the other, as views."""
        return [table.flatten(0, 1) for table in self._tables]

    def _compress(self, soft_labels: Tensor) -> list[Tensor]:
        """Return what is stored of soft labels ``(B, K)``, a part for each table."""
        if len(self._tables) == 1:
            return [soft_labels.to(self.dtype)]
        values, classes = keep_largest(soft_labels, self.top_k)
        exact = (soft_labels > 0).sum(dim=1, keepdim=True) <= self.top_k
        return [torch.where(exact, -values, values).to(self.dtype), classes]

    def _expand(self, parts: list[Tensor]) -> Tensor:
        """Return the soft labels ``(B, K)``, float32, that `_compress` made these parts of."""
        if len(parts) == 1:
            return parts[0].float()
        values = parts[0].float()
        # A negative first value marks a row that is stored exactly: its other classes are zero.
        exact, values = values[:, :1] < 0, values.abs()
        rest = (1 - values.sum(dim=1, keepdim=True)).clamp(min=0) / (self.num_classes - self.top_k)
        return spread(values, parts[1], torch.where(exact, 0.0, rest), self.num_classes)


def _probabilities_kept(top_k: int | None, num_classes: int) -> int:
    return num_classes if top_k is None else min(top_k, num_classes)
