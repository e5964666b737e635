"""Rows of many classes, kept as a few values and the classes that they are of: the soft-label table, cached logits."""

import torch
from torch import Tensor


def class_dtype(num_classes: int) -> torch.dtype:
    """Return the integer type that class ids are stored as: int16 holds 32,768 of them."""
    return torch.int16 if num_classes <= 2**15 else torch.int32


def keep_largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest values of each row, in falling order, and their classes as they are stored.

    Args:
        values: ``(B, K)``.
        count: 1..K.

    Example:
        >>> keep_largest(torch.tensor([[1.0, 3.0, 2.0]]), 2)
        (tensor([[3., 2.]]), tensor([[1, 2]], dtype=torch.int16))
    """
    largest, classes = values.topk(count, dim=1)
    return largest, classes.to(class_dtype(values.shape[1]))


def spread(values: Tensor, classes: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """Return rows ``(B, num_classes)`` of these values at their classes, and one value at all others.

    Args:
        values: ``(B, count)``.
        classes: ``(B, count)``, integers.
        others: ``(B, 1)``.
        num_classes: K.

    Example:
        >>> spread(torch.tensor([[3.0, 2.0]]), torch.tensor([[1, 2]]), torch.tensor([[0.5]]), 4)
        tensor([[0.5000, 3.0000, 2.0000, 0.5000]])
    """
    return others.repeat(1, num_classes).scatter_(1, classes.long(), values)
