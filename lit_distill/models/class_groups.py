"""Groups of a teacher's classes, one for each class of the student."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
import math
from operator import index
import re
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
import yaml

from lit_distill.checks import check_choice, some_of
from lit_distill.models.classes import match_names

Members = Sequence[int] | int | str
"""Numbers of a teacher's classes: ``[281, 282]``, one number, or text with ranges: ``"7-24, 80-100"``."""

Groups = Mapping[str, Members] | Sequence[Members]
"""For each class of the student, by name or in order, the classes of the teacher that it stands for."""

_Rule = Literal["uniform", "teacher", "frequencies"]

TargetPrior = _Rule | Mapping[str, float] | Sequence[float]
"""How often each class is expected; see `ClassGroups`."""


class ClassGroups(nn.Module):
    r"""Combine the logits of groups of classes by Bayes' rule: ``(B, M)`` to ``(B, K)``.

    .. math:: \tilde z_k = \log \sum_{m \in G_k} e^{z_m} - \log \sum_{m \in G_k} \pi_m + \log \rho_k + c

    so that :math:`\mathrm{softmax}(\tilde z)` sums the probabilities within each group, divides them by the group's
    share of the teacher's prior :math:`\pi`, multiplies them by the target's prior :math:`\rho`, and renormalises over
    the groups. Without the division a group of many classes swallows one of few. A temperature comes after it, in the
    loss: :math:`\mathrm{softmax}(\tilde z / T)`.

    The constant :math:`c`, one for each image, makes the largest correction zero, and the largest :math:`z_m` that is
    in a group. So probabilities and their gradients are within 1e-6 of Bayes' rule in float64, for 1000 classes and
    float32 logits of any size. One-to-one groups without a correction leave logits as they are. A group whose logits
    are all -inf has the smallest float32 as its logit, and the gradient 0.

    Args:
        groups: For each class, by name or in order, the numbers of the teacher's classes, 0..M-1: a list, or text with
            ranges such as ``"7-24, 80-100"``; one number alone will do too.
        num_classes: M, if it is known.
        teacher_prior: Share of each of the M classes in the teacher's training data, >= 0 and in any unit, such as
            counts. By default all are equal, as in ImageNet, and a group's share is its size.
        target_prior: Share of each of the K classes where the student will be used. ``"uniform"``: all are equal;
            ``"frequencies"``: as in the training set, which `LitDistiller` counts; or numbers > 0 in any unit, by name
            or in the order of ``groups``. ``"teacher"``: the groups' shares of the teacher's prior, so probabilities
            are summed and nothing else.

    Raises:
        ValueError: If there is no group, a group is empty or has other values than class numbers, or it names a class
            that the teacher lacks; if a prior has not one number for each class, or a group's share is zero. In a call:
            if the frequencies are not known.

    Source:
        Saerens et al., "Adjusting the outputs of a classifier to new a priori probabilities", Neural Computation 14,
        2002, eq. 2.4.

    Example:
        >>> logits = torch.tensor([[0.1, 0.3, 0.2, 0.4]]).log()
        >>> ClassGroups({"cat": [0, 2], "dog": [1]}, num_classes=4)(logits).softmax(dim=1)
        tensor([[0.3333, 0.6667]])
        >>> groups = ClassGroups({"cat": [0, 2], "dog": [1]}, num_classes=4, target_prior="teacher")
        >>> groups(logits).softmax(dim=1)
        tensor([[0.5000, 0.5000]])
        >>> groups.notes()
        ['1 of the 4 classes of the teacher in no group: 3']
    """

    index: Tensor

    def __init__(
        self,
        groups: Groups,
        num_classes: int | None,
        teacher_prior: Sequence[float] | None = None,
        target_prior: TargetPrior = "uniform",
    ) -> None:
        super().__init__()
        if isinstance(groups, str) or not isinstance(groups, Iterable):
            raise ValueError(f"classes must be a list or a mapping with a group for each class, got {groups!r}")
        self.named = isinstance(groups, Mapping)
        by_name = dict(groups) if isinstance(groups, Mapping) else dict(enumerate(groups))
        if not by_name:
            raise ValueError("classes must have a group of the teacher's classes for each class, got none")
        end = math.inf if num_classes is None else num_classes
        self.names = ["null" if name is None else str(name) for name in by_name]  # as YAML has the name null
        self.members: list[list[int]] = []
        for name, members in by_name.items():
            numbers = list(dict.fromkeys(_numbers(members, name)))
            lacking = [number for number in numbers if not 0 <= number < end]
            if not numbers:
                raise ValueError(f"classes: {name} has no class of the teacher, it needs one or more")
            if lacking:
                raise ValueError(f"classes: {name} names class {lacking[0]}, but the teacher has classes 0..{end - 1}")
            self.members.append(numbers)
        self.places = list(range(len(self.names)))  # of the groups now, as they were given
        self.num_classes = num_classes
        self.shares = self._shares(teacher_prior)
        self.target_prior = target_prior
        self.weights = self._weights()
        padded = pad_sequence([torch.tensor(members) for members in self.members], batch_first=True, padding_value=-1)
        self.register_buffer("index", padded, persistent=False)
        self._set_offset()

    def forward(self, logits: Tensor) -> Tensor:
        """Return the groups' logits."""
        if self.weights is None:
            raise ValueError(
                "target_prior is 'frequencies', but nobody has said how many training images each class has: give "
                "target_prior as numbers, by class name or in the order of the classes"
            )
        if self.sums_only and self.index.shape[1] == 1:
            return logits[:, self.index[:, 0]]
        grouped = logits.float()[:, self.index].masked_fill(self.index < 0, -torch.inf)
        # Small numbers lose less to rounding. A sum of nothing but -inf would have no gradient.
        grouped = grouped - grouped.detach().amax(dim=(1, 2), keepdim=True)
        return grouped.clamp(min=torch.finfo(torch.float32).min).logsumexp(dim=2) + self._offset

    def set_counts(self, count: Callable[[], Sequence[int] | None]) -> None:
        """Take the training set's class counts, in the order that the groups have now, if the prior asks for them.

        Args:
            count: Returns them, or None if the data does not tell. It is called only where they are asked for.

        Raises:
            ValueError: If a class has no image.
        """
        counts = count() if self.target_prior == "frequencies" else None
        if counts is not None:
            what = "the number of training images of each class"
            self.weights = _positive(counts, self.names, what, "give target_prior as numbers, or the class some images")
            self._set_offset()

    def grouping(self) -> dict[str, object]:
        """Return in plain containers how the classes are combined."""
        return {
            "classes": dict(zip(self.names, self.members, strict=True)),
            "teacher_shares": _normalised(self.shares),
            "target_prior": None if self.weights is None else _normalised(self.weights),
        }

    def _shares(self, prior: Sequence[float] | None) -> list[float]:
        """Return each group's share of the teacher's prior, in any unit."""
        if prior is None:
            return [float(len(members)) for members in self.members]
        classes = self.num_classes or 1 + max(chain(*self.members))
        prior = _floats(prior, "teacher_prior")
        if len(prior) != classes or not all(0 <= share < math.inf for share in prior):
            raise ValueError(
                f"teacher_prior must have a finite number >= 0 for each of the teacher's {classes} classes, got "
                f"{len(prior)}: {some_of(prior)}"
            )
        sums = [math.fsum(prior[member] for member in members) for members in self.members]
        return _positive(sums, self.names, "teacher_prior summed over each group", "one of its classes needs > 0")

    def _weights(self) -> list[float] | None:
        """Return the target's prior of each group, in any unit; None until the frequencies are known."""
        prior = self.target_prior
        if isinstance(prior, str):
            check_choice(_Rule, target_prior=prior)
            known = {"uniform": [1.0] * len(self.names), "teacher": self.shares}
            return known.get(prior)
        if isinstance(prior, Mapping):
            values = {str(name): value for name, value in prior.items()}
            if set(values) != set(self.names):
                raise ValueError(
                    f"target_prior must have a number for each of {some_of(self.names)}, got {some_of(values)}"
                )
            prior = [values[name] for name in self.names]
        return _positive(prior, self.names, "target_prior", "give a small number, such as 0.001")

    def _set_offset(self) -> None:
        pairs = zip(self.weights or self.shares, self.shares, strict=True)
        offsets = [math.log(weight) - math.log(share) for weight, share in pairs]
        most = max(offsets)
        relative = [offset - most for offset in offsets]
        # No buffer: it stays in float32, whatever the teacher computes in.
        self._offset = torch.tensor(relative, dtype=torch.float32, device=self.index.device)
        self.sums_only = min(relative) > -1e-7
        """True if the priors change nothing, so that probabilities are only summed."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's has no types
        self._offset = self._offset.to(self.index.device)
        return self

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
        advice = (
            "classes= (--teacher_classes) must name the data's classes and no others, with the numbers of the teacher's"
        )
        places = match_names(own_names, names, "teacher", advice)
        self.names, self.members = list(names), [self.members[place] for place in places]
        self.places, self.index = [self.places[place] for place in places], self.index[places]
        self.shares = [self.shares[place] for place in places]
        self.weights = None if self.weights is None else [self.weights[place] for place in places]
        self._offset = self._offset[places]

    def notes(self) -> list[str]:
        """Return lines about another order, classes in several groups, classes in none, and the priors."""
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
        if not self.sums_only:
            shares = zip(self.names, _normalised(self.shares), _normalised(self.weights or self.shares), strict=True)
            changes = some_of(f"{name} from {share:.1%} to {weight:.1%}" for name, share, weight in shares)
            notes.append(f"its probabilities are corrected from its own prior to the target's: {changes}")
        return notes


def _numbers(members: Members, name: object) -> Sequence[int]:
    """Return the numbers of a group, whose text may have ranges.

    Example:
        >>> _numbers("1-3, 7", "cat")
        [1, 2, 3, 7]
    """
    wrong = ValueError(f"classes: {name} must be numbers, or text such as '7-24, 80-100', got {members!r}")
    if not isinstance(members, str):
        listed = list(members) if isinstance(members, Iterable) else [members]
        if any(isinstance(number, bool) for number in listed):  # to Python a number too
            raise wrong
        try:
            return [index(number) for number in listed]
        except TypeError:
            raise wrong from None
    if not re.fullmatch(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*", members):
        raise wrong
    ranges = [[int(number) for number in part.split("-")] for part in members.split(",")]
    for first, last in (ends for ends in ranges if len(ends) == 2):
        if first > last:
            raise ValueError(
                f"classes: {name} has a range that begins after its end, {first}-{last}: write {last}-{first}"
            )
    return [number for ends in ranges for number in range(ends[0], ends[-1] + 1)]


def _floats(values: Sequence[float], what: str) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be numbers, one for each class, got {values!r}") from None


def _positive(values: Sequence[float], names: Sequence[str], what: str, mend: str) -> list[float]:
    """Return the values as floats, if there is one for each name and all are > 0."""
    numbers = _floats(values, what)
    if len(numbers) != len(names):
        raise ValueError(f"{what} must have {len(names)} values, one for each class, got {len(numbers)}")
    wrong = [name for name, number in zip(names, numbers, strict=True) if not 0 < number < math.inf]
    if wrong:
        value = dict(zip(names, values, strict=True))[wrong[0]]
        raise ValueError(f"{what} must be > 0, got {value} for {wrong[0]}: {mend}")
    return numbers


def _normalised(values: Sequence[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values]


def _as_yaml(name: str) -> str:
    """Return the value that a name without quotes has in YAML, as text: that of ``yes`` is ``True``."""
    try:
        return repr(yaml.safe_load(name))
    except (yaml.YAMLError, ValueError):
        return repr(name)
