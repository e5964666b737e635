"""What a student returns."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Head = Literal["class", "distill", "mean_logits", "mean_probs"]
HEADS: tuple[Head, ...] = get_args(Head)


class StudentOutput(NamedTuple):
    """The logits of a student's two heads, each ``(B, K)``.

    ``logits`` answer to the labels, ``distill_logits`` to the teacher. A student with one head returns a plain
    tensor instead; [`StudentOutput.of`][] lets that head serve both.

    Example:
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

    def combined(self, head: Head) -> Tensor:
        """Return the logits that ``head`` answers with, ``(B, K)``, float32: their softmax is the prediction.

        Args:
            head: The ``"class"`` head or the ``"distill"`` head alone, the mean of their logits (DeiT's code), or the
                mean of their softmaxes (DeiT's paper).

        Raises:
            ValueError: If there is no such head.
        """
        logits, distill_logits = self.logits.float(), self.distill_logits.float()
        if head == "class":
            return logits
        if head == "distill":
            return distill_logits
        if head == "mean_logits":
            return (logits + distill_logits) / 2
        if head != "mean_probs":
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        both = torch.stack([F.log_softmax(logits, dim=1), F.log_softmax(distill_logits, dim=1)])
        return torch.logsumexp(both, dim=0) - math.log(2)

    def log_probs(self, head: Head = "mean_probs") -> Tensor:
        """Return the logarithms of the predicted probabilities, ``(B, K)``, float32; ``head`` as in `combined`."""
        combined = self.combined(head)
        return combined if head == "mean_probs" else F.log_softmax(combined, dim=1)
