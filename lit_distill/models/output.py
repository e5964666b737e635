"""What a student returns."""

from typing import NamedTuple

from torch import Tensor


class StudentOutput(NamedTuple):
    """The logits of a student's two heads, each ``(B, K)``.

    ``logits`` answer to the labels, ``distill_logits`` to the teacher. A student with one head returns a plain
    tensor instead; [`StudentOutput.of`][] lets that head serve both.

    Example:
        >>> import torch
        >>> StudentOutput.of(torch.zeros(2, 3)).distill_logits.shape
        torch.Size([2, 3])
    """

    logits: Tensor
    distill_logits: Tensor

    @classmethod
    def of(cls, output: "StudentOutput | tuple[Tensor, Tensor] | Tensor") -> "StudentOutput":
        """Accept a `StudentOutput`, a pair of logits, or one tensor that serves both losses."""
        if isinstance(output, Tensor):
            return cls(output, output)
        return cls(*output)
