"""How many classes a network tells apart."""

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
