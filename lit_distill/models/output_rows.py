"""All that a teacher answers as bytes: its logits, its features, or both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math

import torch
from torch import Tensor
from typing_extensions import override

from lit_distill.models.answer_rows import AnswerRows, as_bytes, as_half
from lit_distill.models.output import TeacherOutput


@dataclass(frozen=True)
class OutputRows:
    """How a `TeacherOutput` is stored: a row of logits, and behind it each feature in float16.

    Args:
        logits: How logits are stored; None if the teacher has none.
        features: Of each feature that is kept, its name and its shape without the batch.

    Example:
        >>> rows = OutputRows(AnswerRows(10), {"pooled": (64,)})
        >>> rows.stride, str(rows)
        (148, 'all of 10 classes, feature pooled of 64')
        >>> output = rows.unpack(rows.pack(TeacherOutput(torch.zeros(3, 10), {"pooled": torch.ones(3, 64)})))
        >>> output.logits.shape, output.features["pooled"].shape
        (torch.Size([3, 10]), torch.Size([3, 64]))
    """

    logits: AnswerRows | None
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Bytes of a row."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [0 if self.logits is None else self.logits.stride, *(2 * math.prod(s) for s in self.features.values())]

    @override
    def __str__(self) -> str:
        """Say it in words."""
        shapes = {name: "x".join(map(str, shape)) or "1" for name, shape in self.features.items()}
        features = [f"feature {name} of {shape}" for name, shape in shapes.items()]
        return ", ".join([*([] if self.logits is None else [str(self.logits)]), *features])

    def pack(self, output: TeacherOutput) -> Tensor:
        """Return the answer to a batch as ``uint8`` ``(B, stride)``; features of other names are left out.

        Raises:
            ValueError: If there are no logits, or a feature is missing or of another shape.
        """
        parts = []
        if self.logits is not None:
            if output.logits is None:
                raise ValueError(
                    "the teacher has no logits, and nothing else is cached: set teacher_cache.features=true, or leave "
                    "teacher_cache out"
                )
            parts.append(self.logits.pack(output.logits))
        for name, shape in self.features.items():
            feature = output.features.get(name)
            if feature is None or feature.shape[1:] != shape:
                found = "is missing" if feature is None else f"has the shape {tuple(feature.shape[1:])}"
                raise ValueError(f"the teacher's feature {name!r} {found}, expected {shape}, as in the cache")
            parts.append(as_bytes(as_half(feature.reshape(len(feature), math.prod(shape)))))
        return torch.cat(parts, dim=1)

    def largest_logit(self, rows: Tensor) -> float:
        """Return the largest absolute value of a logit that packed rows hold; 0 if they hold none."""
        if self.logits is None:
            return 0.0
        return float(rows[:, : 2 * self.logits.kept].contiguous().view(torch.float16).abs().max())

    def unpack(self, rows: Tensor) -> TeacherOutput:
        """Return the answer, float32, of packed rows."""
        packed_logits, *packed_features = rows.split_with_sizes(self._sizes, dim=1)
        # Copied: bytes are viewed as wider numbers only where offset and strides are multiples of their width.
        features = {
            name: part.clone(memory_format=torch.contiguous_format).view(torch.float16).float().view(len(rows), *shape)
            for (name, shape), part in zip(self.features.items(), packed_features, strict=True)
        }
        return TeacherOutput(None if self.logits is None else self.logits.unpack(packed_logits), features)
