"""Teacher logits as bytes: a row of fixed length for each answer."""

from dataclasses import dataclass
import math

import torch
from torch import Tensor

from lit_distill.checks import check_at_least
from lit_distill.rows import class_dtype, keep_largest, spread

_MOST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class AnswerRows:
    r"""How logits ``(B, K)`` are stored: all of them in float16, or the ``top_k`` largest and the sum of the rest.

    Of the rest a row keeps :math:`r = \log \sum_{j \notin \mathrm{top}} e^{z_j}`, which the other classes then share
    evenly: each has the logit :math:`r - \log(K - k)`. So at temperature 1 the ``top_k`` probabilities are exact to
    float16 rounding. Finite logits beyond float16's range, 65504, are stored as its end.

    Args:
        num_classes: K >= 1.
        top_k: >= 1; None, or K and more, keeps all.

    Raises:
        ValueError: If one is < 1.

    Example:
        >>> rows = AnswerRows(num_classes=1000, top_k=8)
        >>> rows.stride
        34
        >>> logits = torch.tensor([[2.0, 1.0, 0.5, 0.5]])
        >>> rows = AnswerRows(4, top_k=2)
        >>> torch.allclose(rows.unpack(rows.pack(logits)), logits, atol=1e-3)
        True
    """

    num_classes: int
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes, top_k=self.top_k)

    @property
    def kept(self) -> int:
        """Logits kept of a row."""
        return self.num_classes if self.top_k is None else min(self.top_k, self.num_classes)

    @property
    def stride(self) -> int:
        """Bytes of a row."""
        return 2 * self.kept if self.is_dense else 2 * self.kept + 2 + self.kept * self._id_dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether all logits are kept."""
        return self.kept == self.num_classes

    @property
    def _id_dtype(self) -> torch.dtype:
        return class_dtype(self.num_classes)

    def __str__(self) -> str:
        """Say it in words."""
        kept = "all" if self.is_dense else f"top {self.kept}"
        return f"{kept} of {self.num_classes} classes"

    def pack(self, logits: Tensor) -> Tensor:
        """Return logits ``(B, K)`` as ``uint8`` ``(B, stride)``."""
        if self.is_dense:
            return as_bytes(as_half(logits))
        values, classes = keep_largest(logits, self.kept)
        rest = logits.scatter(1, classes.long(), -math.inf).logsumexp(dim=1, keepdim=True)
        values = as_half(values)
        # Relative to the least value kept, where float16 is finer.
        return torch.cat([as_bytes(values), as_bytes(as_half(rest - values[:, -1:].float())), as_bytes(classes)], dim=1)

    def unpack(self, rows: Tensor) -> Tensor:
        """Return the logits ``(B, K)``, float32, of packed rows."""
        if self.is_dense:
            return rows.contiguous().view(torch.float16).float()
        parts = rows.split_with_sizes([2 * self.kept, 2, self.stride - 2 * self.kept - 2], dim=1)
        # Copied: bytes are viewed as wider numbers only where offset and strides are multiples of their width.
        values, rest = (
            part.clone(memory_format=torch.contiguous_format).view(torch.float16).float() for part in parts[:2]
        )
        classes = parts[2].clone(memory_format=torch.contiguous_format).view(self._id_dtype)
        others = rest + values[:, -1:] - math.log(self.num_classes - self.kept)
        return spread(values, classes, others, self.num_classes)


def as_half(values: Tensor) -> Tensor:
    """Return values in float16, finite ones beyond its range as its end."""
    values = values.float()
    return torch.where(values.isfinite(), values.clamp(-_MOST, _MOST), values).to(torch.float16)


def as_bytes(values: Tensor) -> Tensor:
    """Return the bytes of numbers, ``uint8``, in rows as long as theirs."""
    return values.contiguous().view(torch.uint8)
