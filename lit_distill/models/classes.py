"""Classes: how many a network tells apart, and where it has those of the data."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from lit_distill.checks import did_you_mean, some_of


def count_classes(model: nn.Module) -> int | None:
    """Return the class count of a classifier, or None if it cannot be told without running it.

    The model's own ``num_classes`` where it has one, as timm's models and this project's do; else the width of its
    last linear layer, as in torchvision's models.

    Example:
        >>> count_classes(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        3
    """
    own = getattr(model, "num_classes", None)
    if isinstance(own, int):
        return own
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else None


def count_targets(dataset: object, num_classes: int | None) -> list[int] | None:
    """Return how many samples of each class a data set has, or None if it does not tell without being read.

    Args:
        dataset: Has an attribute ``targets`` with the class of each sample, as those of torchvision and of this project
            do, and perhaps ``rows``, those of them that are used; or is a ``Subset`` or ``ConcatDataset`` of such.
        num_classes: K, the length of what is returned.

    Example:
        >>> from torchvision.datasets import FakeData
        >>> dataset = FakeData()
        >>> dataset.targets = [0, 2, 2, 0]
        >>> count_targets(Subset(dataset, [0, 1, 2]), 3), count_targets([], 3)
        ([1, 0, 2], None)
    """
    targets = _targets(dataset)
    if targets is None or num_classes is None:
        return None
    return torch.bincount(targets[targets >= 0], minlength=num_classes).tolist()


def _targets(dataset: object) -> torch.Tensor | None:
    if isinstance(dataset, ConcatDataset):
        parts = [part for part in map(_targets, dataset.datasets) if part is not None]
        return torch.cat(parts) if len(parts) == len(dataset.datasets) else None
    if isinstance(dataset, Subset):
        rows: object = dataset.indices
        targets = _targets(dataset.dataset)
    else:
        rows = getattr(dataset, "rows", None)
        targets = getattr(dataset, "targets", None)
        targets = None if targets is None else torch.as_tensor(targets)
    if targets is None or targets.dim() != 1 or targets.is_floating_point():
        return None
    return (targets if rows is None else targets[torch.as_tensor(rows)]).long().cpu()


def match_names(own: Sequence[str], data: Sequence[str], owner: str, advice: str) -> list[int]:
    """Return the place of each of the data's classes among a network's own.

    Args:
        own: Names of the network's classes, in its order.
        data: Names of the data's classes, in their order.
        owner: What messages call the network.
        advice: What to do if the classes differ.

    Raises:
        ValueError: If they are not the same names.

    Example:
        >>> match_names(["ant", "bee", "cow"], ["cow", "ant", "bee"], "teacher", "")
        [2, 0, 1]
        >>> match_names(["ant", "cow"], ["ant", "dog"], "teacher", "take another one")
        Traceback (most recent call last):
        ValueError: the teacher knows other classes than the data has: only the teacher has cow, only the data has...
    """
    if set(own) != set(data) or len(own) != len(data):
        sides = {f"only the {owner} has": set(own) - set(data), "only the data has": set(data) - set(own)}
        lists = ", ".join(f"{side} {some_of(sorted(names))}" for side, names in sides.items() if names)
        closest = (did_you_mean(name, set(data) - set(own)) for name in sorted(set(own) - set(data)))
        hint = next((f" ({words})" for words in closest if words), "")
        raise ValueError(f"the {owner} knows other classes than the data has: {lists}{hint}; {advice}")
    places = {name: place for place, name in enumerate(own)}
    return [places[name] for name in data]
