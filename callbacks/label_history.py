"""Sums over the epochs of what was remembered about each row's label, to find the labels that are wrong."""

from typing import Self, TypedDict

import torch
from torch import Tensor

from lit_distill.callbacks.memory import SoftLabelMemory

_CHUNK = 1 << 22  # probabilities that are read at once
_ONE = 1 << 30  # a probability of 1 as an integer
_SMALLEST = 2.0**-24  # that a float16 tells from zero: smaller probabilities count as this one


class HistoryState(TypedDict):
    """What a checkpoint keeps of the history."""

    label_sums: Tensor
    label_counts: Tensor


class LabelHistory:
    r"""Sums over the epochs of what a `SoftLabelMemory` has remembered about the label of each row.

    A network learns a wrong label late or never. So a label is probably wrong if its probability, averaged over the
    epochs, is small. Of the soft label p of each recorded row, with label y and p at temperature 1, an epoch adds

    - the probability :math:`p_y`;
    - the margin :math:`\log p_y - \max_{k \ne y} \log p_k`, which is that of the logits; its mean over the epochs is
      the area under the margin (AUM);
    - 1 if p is confident of a class: if some :math:`p_k` reaches the mean of the :math:`p_k` of all rows with label k;
    - 1 if the likeliest class of those is another than y.

    The sums are made when an epoch ends, from the table, which is then the same in all processes: no step takes longer,
    nothing more is exchanged, and a run that was cut off sums the same. 20 bytes a row.

    Args:
        num_samples: Rows N.
        device: Where the sums are, that of the table.

    Source:
        Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020, arXiv
        2001.10528; Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
        2021, arXiv 1911.00068.

    Example:
        >>> memory, history = SoftLabelMemory(num_samples=2, num_classes=2), LabelHistory(2)
        >>> memory.record(torch.tensor([0, 1]), torch.tensor([[0.75, 0.25], [0.75, 0.25]]), epoch=1)
        tensor([True, True])
        >>> history.add(memory, torch.tensor([0, 1]), epoch=1)
        >>> history.probability
        tensor([0.7500, 0.2500])
        >>> history.confident_share  # only the second row is confidently of another class
        tensor([0., 1.])
    """

    def __init__(self, num_samples: int, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(num_samples, 4, device=device)
        self._counts = torch.zeros(num_samples, dtype=torch.int32, device=device)

    @property
    def counts(self) -> Tensor:
        """Epochs that each row is summed over, ``(N,)`` int32."""
        return self._counts

    @property
    def probability(self) -> Tensor:
        """Mean probability of the label, ``(N,)`` in 0..1; NaN for a row without epochs."""
        return self._sums[:, 0] / self._counts

    @property
    def margin(self) -> Tensor:
        """Area under the margin, ``(N,)``, in logits; NaN for a row without epochs."""
        return self._sums[:, 1] / self._counts

    @property
    def confident_share(self) -> Tensor:
        """Share of the epochs that were confident of another class, ``(N,)`` in 0..1; NaN for a row without epochs."""
        return self._sums[:, 3] / self._counts

    def wrong_labels(self, labels: Tensor) -> float:
        """Return how many labels confident learning takes for wrong: what lies off the diagonal of its joint matrix.

        The share of rows that are confidently of another class, among the rows of each label that are confident of
        any, times all rows of that label.

        Args:
            labels: Class of each row, ``(N,)``.
        """
        columns = torch.cat([(self._counts > 0)[:, None], self._sums[:, 2:]], dim=1).double()
        by_label = columns.new_zeros(int(labels.max()) + 1, 3).index_add_(0, labels.long(), columns)
        rows, confident, other = by_label.unbind(dim=1)
        return float((rows * other / confident.clamp(min=1)).sum())

    def add(self, memory: SoftLabelMemory, labels: Tensor, epoch: int, temperature: float = 1.0) -> None:
        """Add what was recorded in ``epoch``.

        Args:
            memory: The table.
            labels: Class of each row, ``(N,)``; rows whose value is none of its classes are left out.
            epoch: >= 1.
            temperature: Of the soft labels in the table.
        """
        is_class = (labels >= 0) & (labels < memory.num_classes)
        index = (memory.recorded_in(epoch) & is_class).nonzero().flatten()
        chunks = torch.split(index, max(1, _CHUNK // memory.num_classes))
        # Integers: the order in which a device adds them does not matter, and all processes get the same.
        sums, counts = torch.zeros(2, memory.num_classes, dtype=torch.int64, device=index.device)
        for rows in chunks:
            label = labels[rows].long()
            probability = _at_temperature_1(memory, rows, epoch, temperature).gather(1, label[:, None]).flatten()
            sums.index_add_(0, label, (probability * _ONE).long())
            counts.index_add_(0, label, torch.ones_like(label))
        # A class that no row has is none to be confident of.
        thresholds = torch.where(counts > 0, sums / (counts * _ONE), 2)
        for rows in chunks:
            label = labels[rows].long()[:, None]
            soft_labels = _at_temperature_1(memory, rows, epoch, temperature)
            probability = soft_labels.gather(1, label)
            other = soft_labels.scatter(1, label, 0).amax(dim=1, keepdim=True)
            margin = probability.clamp(min=_SMALLEST).log() - other.clamp(min=_SMALLEST).log()
            confidence, likeliest = torch.where(soft_labels >= thresholds, soft_labels, -1).max(dim=1, keepdim=True)
            is_confident = confidence >= 0
            columns = [probability, margin, is_confident, is_confident & (likeliest != label)]
            self._sums.index_add_(0, rows, torch.cat([column.float() for column in columns], dim=1))
        self._counts[index] += 1

    def forget(self, rows: Tensor) -> None:
        """Begin anew with the rows that are marked in ``rows``, ``(N,)`` bool."""
        self._sums.masked_fill_(rows.to(self._sums.device)[:, None], 0)
        self._counts.masked_fill_(rows.to(self._counts.device), 0)

    def to(self, device: torch.device | str) -> Self:
        """Move the sums and return them."""
        self._sums, self._counts = self._sums.to(device), self._counts.to(device)
        return self

    def rearranged(self, source: Tensor) -> "LabelHistory":
        """Return the sums of a data set whose row n was row ``source[n]``, or is new where that is -1."""
        source = source.to(self._counts.device)
        history, there = LabelHistory(len(source), source.device), source >= 0
        history._sums[there], history._counts[there] = self._sums[source[there]], self._counts[source[there]]
        return history

    def state_dict(self) -> HistoryState:
        """Return the sums as plain tensors, not copied."""
        return {"label_sums": self._sums, "label_counts": self._counts}

    @classmethod
    def from_state_dict(cls, state: HistoryState) -> "LabelHistory":
        """Take over what `state_dict` returned."""
        history = cls(0)
        history._sums, history._counts = state["label_sums"], state["label_counts"]
        return history


def _at_temperature_1(memory: SoftLabelMemory, rows: Tensor, epoch: int, temperature: float) -> Tensor:
    """Return the soft labels of these rows ``(B, K)`` as a softmax without a temperature has them."""
    soft_labels, _ = memory.read(rows, epoch + 1)
    if temperature == 1:
        return soft_labels
    return torch.softmax(temperature * soft_labels.clamp(min=_SMALLEST).log(), dim=1)
