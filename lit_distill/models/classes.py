"""Classes: how many a network tells apart, and how their names differ from others."""

from collections.abc import Sequence

from torch import nn


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


def compare_names(teacher: Sequence[str], data: Sequence[str]) -> str:
    """Return which names only the teacher has, and which only the data has.

    Example:
        >>> compare_names(["ant", "cow"], ["ant", "dog"])
        'only the teacher has cow, only the data has dog'
    """
    sides = {"only the teacher has": set(teacher) - set(data), "only the data has": set(data) - set(teacher)}
    lists = {side: sorted(names) for side, names in sides.items() if names}
    return ", ".join(f"{side} {', '.join(names[:3])}{', ...' if names[3:] else ''}" for side, names in lists.items())
