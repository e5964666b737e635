"""What students and teachers return."""

from collections.abc import Mapping
import math
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill.batch import describe
from lit_distill.checks import check_choice

Head = Literal["class", "distill", "mean_logits", "mean_probs"]
HEADS: tuple[Head, ...] = get_args(Head)


class TeacherOutput(NamedTuple):
    """What a teacher answers to a batch, float32 and without a graph.

    ``logits`` are ``(B, K)``, or None from a teacher without classes. ``features`` are tensors by name, which feature
    losses can ask for.

    Example:
        >>> TeacherOutput(torch.zeros(2, 3)).features
        {}
    """

    logits: Tensor | None
    features: Mapping[str, Tensor] = {}


class StudentOutput(NamedTuple):
    """The logits of a student's two heads, each ``(B, K)``.

    ``logits`` answer to the labels, ``distill_logits`` to the teacher. A student with one head returns a plain
    tensor instead; [`StudentOutput.of`][] lets that head serve both. ``features`` are tensors by name, which feature
    losses can ask for beside the outputs of the student's layers.

    Example:
        >>> StudentOutput.of(torch.zeros(2, 3)).distill_logits.shape
        torch.Size([2, 3])
        >>> StudentOutput.of({"logits": torch.zeros(2, 3), "hidden_states": None}).logits.shape
        torch.Size([2, 3])
    """

    logits: Tensor
    distill_logits: Tensor
    features: Mapping[str, Tensor] = {}

    @classmethod
    def of(cls, output: object) -> Self:
        """Accept what a network returns.

        Args:
            output: A `StudentOutput`, or a pair of logits; one tensor that serves both losses; or a mapping or an
                object with such a tensor as ``logits``, as Hugging Face's models return it.

        Raises:
            ValueError: If it is none of these.
        """
        if isinstance(output, cls):
            return output
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        heads = tuple(logits) if isinstance(logits, (tuple, list)) else (logits, logits)
        heads = heads * 2 if len(heads) == 1 else heads
        if len(heads) != 2 or not all(isinstance(head, Tensor) for head in heads):
            raise ValueError(
                f"the network returned {describe(output)}, expected its logits (B, K): a tensor, a pair of them, or "
                "a mapping or an object with logits"
            )
        return cls(*heads)

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """The logits of the two heads."""
        return self.logits, self.distill_logits

    def combined(self, head: Head) -> Tensor:
        """Return the logits that ``head`` answers with, ``(B, K)``, float32: their softmax is the prediction.

        Args:
            head: The ``"class"`` head or the ``"distill"`` head alone, the mean of their logits (DeiT's code), or the
                mean of their softmaxes (DeiT's paper).

        Raises:
            ValueError: If there is no such head.
        """
        check_choice(HEADS, head=head)
        logits, distill_logits = self.logits.float(), self.distill_logits.float()
        if head == "mean_probs":
            both = torch.stack([F.log_softmax(logits, dim=1), F.log_softmax(distill_logits, dim=1)])
            return torch.logsumexp(both, dim=0) - math.log(2)
        if head == "mean_logits":
            return (logits + distill_logits) / 2
        return logits if head == "class" else distill_logits

    def log_probs(self, head: Head = "mean_probs") -> Tensor:
        """Return the logarithms of the predicted probabilities, ``(B, K)``, float32; ``head`` as in `combined`."""
        combined = self.combined(head)
        return combined if head == "mean_probs" else F.log_softmax(combined, dim=1)
