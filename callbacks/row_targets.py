"""The target that each row has had, which tells when a row becomes another sample."""

from functools import lru_cache
from typing import TypedDict

import torch
from torch import Tensor

from lit_distill.callbacks.exchange import all_reduce_max

# Where no target is known; fingerprints are above it, and the difference of two of them is an int32.
_NONE = -(2**30)
_MASK = 2**30 - 1


class TargetState(TypedDict):
    """What a checkpoint keeps of the targets."""

    targets: Tensor
    target_extremes: Tensor


class RowTargets:
    """One target per training row: a soft label is that row's only as long as the row is the same sample.

    A row has one target. If two are seen, the row has been two samples: two data sets share rows, the data was split
    or sorted anew, or a step reordered a batch without its index. Targets are compared in the step on the device, which
    nothing here waits for but `settle`; 12 bytes a row.

    Args:
        num_samples: Rows N >= 1.
        device: Where the targets are compared, that of the logits.

    Example:
        >>> targets = RowTargets(3)
        >>> targets.check(torch.tensor([0, 2]), torch.tensor([5, 5]))
        tensor([True, True])
        >>> targets.settle()  # the epoch ends
        tensor([False, False, False])
        >>> targets.check(torch.tensor([0, 2]), torch.tensor([5, 7]))
        tensor([ True, False])
        >>> targets.settle()
        tensor([False, False,  True])
    """

    def __init__(self, num_samples: int, device: torch.device | str = "cpu") -> None:
        self._known = torch.full((num_samples,), _NONE, dtype=torch.int32, device=device)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        # The largest of -target and of target: those known before, and those seen in this epoch by any process. The
        # order in which they are seen so does not matter.
        negative = torch.where(self._known == _NONE, _NONE, -self._known)
        self._extremes = torch.stack([negative, self._known])

    @property
    def known(self) -> Tensor:
        """What `fingerprint` returned of each row's target until the last `settle`, ``(N,)`` int32; < 0 for none."""
        return self._known

    def check(self, index: Tensor, target: Tensor) -> Tensor:
        """Note the targets of a batch; return ``(B,)`` bool, False for rows that have had more than one.

        Both of a row's targets count, so it stays False until `settle`.

        Args:
            index: The rows, integers ``(B,)``. One outside the table notes nothing, and its answer has no meaning.
            target: Classes ``(B,)``, or probabilities ``(B, K)``.
        """
        rows = self._known.shape[0]
        index = index.to(self._known.device).long()
        row = index.clamp(0, rows - 1)
        mark = fingerprint(target)
        marks = torch.where(index == row, torch.stack([-mark, mark]), _NONE)
        places = torch.cat([row, row + rows])
        # The largest of -target and of target: the smallest and the largest of the row are equal if it has had one.
        flat = self._extremes.view(-1).scatter_reduce_(0, places, marks.view(-1), "amax")
        negative, greatest = flat.index_select(0, places).view(2, -1)
        same: Tensor = negative + greatest <= 0
        return same

    def merge(self) -> None:
        """Bring together what all processes have seen of the epoch so far; collective."""
        all_reduce_max(self._extremes)

    def settle(self) -> Tensor:
        """End the epoch: return ``(N,)`` bool, True for each row that had more than one target; collective."""
        self.merge()
        negative, greatest = self._extremes
        changed: Tensor = negative + greatest > 0
        # Of two targets, the one that is new.
        self._known = torch.where(changed & (greatest == self._known), -negative, greatest)
        self._begin_epoch()
        return changed

    def to(self, device: torch.device | str) -> "RowTargets":
        """Move the targets and return them."""
        self._known, self._extremes = self._known.to(device), self._extremes.to(device)
        return self

    def rearranged(self, source: Tensor) -> "RowTargets":
        """Return the targets of a data set whose row n was row ``source[n]``, or is new where that is -1."""
        source = source.to(self._known.device)
        new, there = RowTargets(len(source), source.device), source >= 0
        new._known[there] = self._known[source[there]]
        new._extremes[:, there] = self._extremes[:, source[there]]
        return new

    def state_dict(self) -> TargetState:
        """Return the targets as plain tensors, not copied."""
        return {"targets": self._known, "target_extremes": self._extremes}

    @classmethod
    def from_state_dict(cls, state: TargetState) -> "RowTargets":
        """Take over what `state_dict` returned."""
        targets = cls(0)
        targets._known, targets._extremes = state["targets"], state["target_extremes"]
        return targets


def fingerprint(target: Tensor) -> Tensor:
    """Return an int32 in 0..2**30-1 for each target, ``(B,)``: the class, or a hash of the probabilities.

    Example:
        >>> fingerprint(torch.tensor([3, 0]))
        tensor([3, 0], dtype=torch.int32)
        >>> one, other, again = fingerprint(torch.tensor([[0.2, 0.8], [0.8, 0.2], [0.2, 0.8]])).tolist()
        >>> one == again != other
        True
    """
    if target.dim() == 1 and not target.is_floating_point():
        return (target & _MASK).int()
    bits = target.detach().float().contiguous().view(len(target), -1).view(torch.int32)
    # Round numbers such as 1.0 differ in their high bits alone, which a product moves out.
    mixed = (bits ^ (bits >> 16)) * _factors(bits.shape[1], bits.device)
    return mixed.sum(dim=1, dtype=torch.int32) & _MASK


@lru_cache(maxsize=4)
def _factors(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.int32, device=device) * 0x3C6EF372 | 1
