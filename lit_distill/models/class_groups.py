"""Groups of a teacher's classes, one for each class of the student."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
import yaml

from lit_distill.checks import some_of
from lit_distill.models.classes import match_names


class ClassGroups(nn.Module):
    r"""Combine the logits of groups of classes: ``(B, M)`` to ``(B, K)``.

    .. math:: \tilde z_k = \log \sum_{m \in G_k} e^{z_m}

    so that :math:`\mathrm{softmax}(\tilde z)` sums the probabilities within each group and renormalises over the
    groups.

    Args:
        groups: For each class, by name or in order, the numbers of the teacher's classes, 0..M-1.
        num_classes: M, if it is known.

    Raises:
        ValueError: If there is no group, a group is empty, or it names a class that the teacher lacks.

    Example:
        >>> groups = ClassGroups({"cat": [0, 2], "dog": [1]}, num_classes=4)
        >>> groups(torch.tensor([[0.1, 0.3, 0.2, 0.4]]).log()).softmax(dim=1)
        tensor([[0.5000, 0.5000]])
        >>> groups.notes()
        ['1 of the 4 classes of the teacher in no group: 3']
    """

    index: Tensor

    def __init__(self, groups: Mapping[str, Sequence[int]] | Sequence[Sequence[int]], num_classes: int | None) -> None:
        super().__init__()
        self.named = isinstance(groups, Mapping)
        by_name = dict(groups) if isinstance(groups, Mapping) else dict(enumerate(groups))
        if not by_name:
            raise ValueError("classes must have a group of the teacher's classes for each class, got none")
        end = math.inf if num_classes is None else num_classes
        for name, members in by_name.items():
            if not members:
                raise ValueError(f"classes: {name} has no class of the teacher, it needs one or more")
            lacking = [member for member in members if not 0 <= member < end]
            if lacking:
                raise ValueError(f"classes: {name} names class {lacking[0]}, but the teacher has classes 0..{end - 1}")
        self.names = ["null" if name is None else str(name) for name in by_name]  # as YAML has the name null
        self.members = [list(dict.fromkeys(members)) for members in by_name.values()]
        self.places = list(range(len(self.names)))  # of the groups now, as they were given
        self.num_classes = num_classes
        index = pad_sequence([torch.tensor(members) for members in self.members], batch_first=True, padding_value=-1)
        self.register_buffer("index", index, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the groups' logits."""
        return logits[:, self.index].masked_fill(self.index < 0, -torch.inf).logsumexp(dim=2)

    def order(self, names: Sequence[str]) -> None:
        """Put the groups in the order of these names, unless they have no names.

        YAML takes some names without quotes for values, such as ``yes`` or ``01``; these are matched by their value.

        Raises:
            ValueError: If they are not the groups' names.
        """
        if not self.named:
            return
        by_value = {_as_yaml(name): name for name in names}
        own_names = [name if name in names else by_value.get(_as_yaml(name), name) for name in self.names]
        advice = "give it classes= with the numbers of its classes for each of the data's"
        places = match_names(own_names, names, "teacher", advice)
        self.names, self.members = list(names), [self.members[place] for place in places]
        self.places, self.index = [self.places[place] for place in places], self.index[places]

    def notes(self) -> list[str]:
        """Return a line about another order, about the teacher's classes in several groups, and about those in none."""
        notes = []
        if self.places != sorted(self.places):
            notes.append("its classes are in another order than the data's, and are matched by name")
        counts = Counter(chain(*self.members))
        shared = [member for member, count in counts.items() if count > 1]
        if shared:
            names = [name for name, members in zip(self.names, self.members, strict=True) if shared[0] in members]
            notes.append(
                f"{len(shared)} of the teacher's classes in several groups, such as class {shared[0]} in those of "
                f"{', '.join(names)}: its probability counts in each"
            )
        unused = [member for member in range(self.num_classes or 0) if member not in counts]
        if unused:
            notes.append(
                f"{len(unused)} of the {self.num_classes} classes of the teacher in no group: {some_of(unused)}"
            )
        return notes


def _as_yaml(name: str) -> str:
    """Return the value that a name without quotes has in YAML, as text: that of ``yes`` is ``True``."""
    try:
        return repr(yaml.safe_load(name))
    except (yaml.YAMLError, ValueError):
        return repr(name)
