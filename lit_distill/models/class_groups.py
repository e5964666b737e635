"""Groups of a teacher's classes, one for each class of the student."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
import yaml


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

    def __init__(self, groups: Mapping[str, Sequence[int]] | Sequence[Sequence[int]], num_classes: int | None) -> None:
        super().__init__()
        named = isinstance(groups, Mapping)
        pairs = list(groups.items()) if isinstance(groups, Mapping) else [(str(k), g) for k, g in enumerate(groups)]
        if not pairs:
            raise ValueError("classes must have a group of the teacher's classes for each class, got none")
        for name, members in pairs:
            if not members:
                raise ValueError(f"classes: {name} has no class of the teacher, it needs one or more")
            lacking = [m for m in members if m < 0 or (num_classes is not None and m >= num_classes)]
            if lacking:
                raise ValueError(
                    f"classes: {name} names class {lacking[0]}, but the teacher has "
                    f"{'no class below 0' if num_classes is None else f'classes 0..{num_classes - 1}'}"
                )
        self.named = named
        self.names = ["null" if name is None else str(name) for name, _ in pairs]
        self.members = [list(dict.fromkeys(int(m) for m in members)) for _, members in pairs]
        self.num_classes = num_classes
        longest = max(map(len, self.members))
        index = torch.tensor([group + group[:1] * (longest - len(group)) for group in self.members])
        padding = torch.tensor([[False] * len(group) + [True] * (longest - len(group)) for group in self.members])
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("padding", padding, persistent=False)

    index: Tensor
    padding: Tensor

    def forward(self, logits: Tensor) -> Tensor:
        """Return the groups' logits."""
        out: Tensor = logits[:, self.index].masked_fill(self.padding, -torch.inf).logsumexp(dim=2)
        return out

    def order(self, names: Sequence[str]) -> None:
        """Put the groups in the order of these names.

        YAML takes some names without quotes for values, such as ``yes`` or ``01``; these are matched by their value.

        Raises:
            ValueError: If they are not the groups' names.
        """
        if set(names) != set(self.names):
            read = {_as_yaml(name): name for name in names}
            matched = [name if name in names else read.get(_as_yaml(name), name) for name in self.names]
            if sorted(matched) != sorted(names):
                raise ValueError(
                    f"the teacher's classes are for {', '.join(self.names)}, the data has {', '.join(map(str, names))}"
                )
            self.names = matched
        places = [self.names.index(name) for name in names]
        self.names, self.members = list(names), [self.members[place] for place in places]
        self.index, self.padding = self.index[places], self.padding[places]

    def notes(self) -> list[str]:
        """Return a line about the teacher's classes in more than one group, and one about those in none."""
        groups_of: dict[int, list[str]] = {}
        for name, members in zip(self.names, self.members, strict=True):
            for member in members:
                groups_of.setdefault(member, []).append(name)
        notes = []
        shared = [member for member, names in groups_of.items() if len(names) > 1]
        if shared:
            *names, last = groups_of[shared[0]]
            more = f"; {len(shared) - 1} more like it" if len(shared) > 1 else ""
            notes.append(
                f"class {shared[0]} of the teacher is in the groups of {', '.join(names)} and {last}: its probability "
                f"counts in each{more}"
            )
        unused = sorted(set(range(self.num_classes or 0)) - set(groups_of))
        if unused:
            ranges = _ranges(unused)
            notes.append(f"{len(unused)} of the {self.num_classes} classes of the teacher in no group: {ranges}")
        return notes


def _as_yaml(name: str) -> str:
    """Return the value that a name without quotes has in YAML, as text: that of ``yes`` is ``True``."""
    try:
        return repr(yaml.safe_load(name))
    except (yaml.YAMLError, ValueError):
        return repr(name)


def _ranges(numbers: Sequence[int], most: int = 4) -> str:
    """Return sorted numbers as text, such as ``0-2, 5``."""
    # Numbers in a row differ from their places by the same amount.
    runs = [[k for _, k in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")
