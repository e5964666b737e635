"""What all teachers have in common: they answer, and never learn."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.fingerprint import digest_of
from lit_distill.models.fast import FastNetwork
from lit_distill.models.output import TeacherOutput


class Teacher(nn.Module):
    """Base of teachers: always in eval mode, frozen by `LitDistiller`, answers in float32 and without a graph.

    A subclass implements ``forward``, from a `Batch` to a `TeacherOutput`. It is asked with the whole batch, so it can
    ask several networks, or look an answer up by ``batch.view_and_index()``. A teacher without classes leaves
    ``num_classes`` at None and returns features alone.

    Attributes:
        num_classes: Classes K of its logits, or None.
        fast_network: Runs its network, if it has one that can be made fast.

    Example:
        >>> class Ensemble(Teacher):
        ...     def __init__(self, *networks):
        ...         super().__init__()
        ...         self.networks = nn.ModuleList(networks)
        ...
        ...     def forward(self, batch):
        ...         logits = torch.stack([network(batch.image) for network in self.networks])
        ...         return TeacherOutput(logits.mean(dim=0))
        >>> teacher = Ensemble(nn.Flatten(), nn.Flatten())
        >>> teacher(Batch(torch.ones(2, 1, 1, 3), torch.tensor([0, 1]))).logits.shape
        torch.Size([2, 3])
    """

    num_classes: int | None = None
    fast_network: FastNetwork | None = None

    def forward(self, batch: Batch) -> TeacherOutput:
        """Return the answer to a batch."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward(batch) that returns a TeacherOutput")

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return what ``forward`` returns, in float32 and without a graph."""
        if any(module.training for module in self.modules()):  # somebody reached past `train`
            self.eval()
        answer: TeacherOutput = super().__call__(batch)
        features = {name: feature.float() for name, feature in answer.features.items()}
        return TeacherOutput(None if answer.logits is None else answer.logits.float(), features)

    @override
    def extra_repr(self) -> str:
        """Say what the first line of a run says about the teacher."""
        return f"classes={self.num_classes}"

    @property
    def network(self) -> nn.Module:
        """The network whose layers a feature loss can name."""
        return self

    def set_class_names(self, names: Sequence[str]) -> None:
        """Answer in the order of the data's classes, which are named in their order, if the teacher has names too."""

    def set_class_counts(self, count: Callable[[], Sequence[int] | None]) -> None:
        """Take the number of training images of each class, if the teacher's answers depend on it.

        Args:
            count: Returns the numbers in the order of the data's classes, or None if the data does not tell. Call it
                only where they matter: it may read all labels.
        """

    def grouping(self) -> dict[str, object]:
        """Return in plain containers how the teacher combines its classes, for checkpoints; empty if it does not."""
        return {}

    def identity(self) -> str:
        """Return a digest of all that decides its answers: weights, statistics, layers, settings, code of your own.

        How its networks are run is no part of it, and neither are functions that its code calls by a global name, hooks
        on its layers, nor whole numbers, True and False under names with an underscore. If such a thing changes what it
        answers, extend this method.
        """
        return digest_of(self, without=(FastNetwork,))

    def evaluating(self, loader: int) -> AbstractContextManager[None]:
        """Answer, inside the block, to the batches of the validation set's loader of this number, counted from 0."""
        return nullcontext()

    def notes(self) -> list[str]:
        """Return what a user may want to know before training with this teacher."""
        return []

    def tune(self, batch: Batch, calls: float) -> None:
        """Choose how to run the network for batches like this one, of which ``calls`` will come.

        All ranks call it together, before the first step.
        """

    @override
    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the student's data must not change the teacher's batch statistics."""
        return super().train(False)
