"""Several losses at once: each has a name and a weight."""

from collections.abc import Mapping
import re
from typing import NotRequired, TypedDict

from torch import nn

from lit_distill.checks import check_at_least, did_you_mean

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_LOGGED = ("criterion", "distillation", "loss")  # train/loss and so on are logged already


class WeightedLoss(TypedDict):
    """A loss and its weight >= 0, by default 1, as Python and YAML write it: ``{"loss": ..., "weight": 0.5}``."""

    loss: nn.Module
    weight: NotRequired[float]


class WeightedLosses(nn.ModuleDict):
    """Losses by name, with a weight each.

    Args:
        terms: For each name a loss, or a `WeightedLoss`. A name is a word of letters, digits, ``_`` and
            ``-``, other than ``loss``, ``criterion`` and ``distillation``.

    Attributes:
        weights: The weight of each loss, by name.

    Raises:
        ValueError: If there is no term, a name cannot be one, a term has an unknown key or no loss, or a weight is
            negative.

    Example:
        >>> losses = WeightedLosses({"first": nn.Identity(), "second": {"loss": nn.Identity(), "weight": 0.5}})
        >>> losses.weights
        {'first': 1.0, 'second': 0.5}
    """

    weights: dict[str, float]

    def __init__(self, terms: Mapping[str, nn.Module | WeightedLoss]) -> None:
        if not terms:
            raise ValueError("distillation has no terms: name one loss or more, or set it to null (None)")
        super().__init__()
        self.weights = {}
        for name, term in terms.items():
            if not _NAME.fullmatch(str(name)) or name in _LOGGED or hasattr(nn.ModuleDict, name):
                raise ValueError(f"distillation: {name!r} cannot name a loss: choose another word")
            loss, weight = _as_pair(name, term)
            check_at_least(0, **{f"the weight of distillation.{name}": weight})
            self[name] = loss
            self.weights[name] = float(weight)

    def extra_repr(self) -> str:
        """Show the weights in ``print(module)``."""
        return f"weights={self.weights}"


def _as_pair(name: str, term: nn.Module | WeightedLoss) -> tuple[nn.Module, float]:
    if isinstance(term, nn.Module):
        return term, 1.0
    expected = "expected a loss, or a mapping with 'loss' and 'weight'"
    if not isinstance(term, Mapping):
        raise ValueError(f"distillation.{name}: {expected}, got {term!r}")
    unknown = next((key for key in term if key not in ("loss", "weight")), None)
    if unknown is not None:
        hint = did_you_mean(str(unknown), ["loss", "weight"])
        raise ValueError(f"distillation.{name} has an unknown key {unknown!r}: {hint or expected}")
    if not isinstance(term.get("loss"), nn.Module):
        raise ValueError(f"distillation.{name}: {expected}, got no loss")
    return term["loss"], term.get("weight", 1.0)
