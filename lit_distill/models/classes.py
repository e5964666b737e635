"""Classes: how many a network tells apart, and where it has those of the data."""

from collections.abc import Sequence

from torch import nn

from lit_distill.checks import some_of


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
        raise ValueError(f"the {owner} knows other classes than the data has: {lists}; {advice}")
    places = {name: place for place, name in enumerate(own)}
    return [places[name] for name in data]
