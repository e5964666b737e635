from typing import Any

import pytest
from torch import nn

from lit_distill.losses import HardDistillation, SoftDistillation, WeightedLosses


def test_each_loss_has_a_name_and_a_weight() -> None:
    hard, soft = HardDistillation(), SoftDistillation(2.0)
    losses = WeightedLosses({"hard": hard, "soft": {"loss": soft, "weight": 0.5}})
    assert losses.weights == {"hard": 1.0, "soft": 0.5}
    assert dict(losses.items()) == {"hard": hard, "soft": soft}
    assert "weights={'hard': 1.0, 'soft': 0.5}" in repr(losses)


def test_the_parameters_of_a_loss_are_its_own() -> None:
    losses = WeightedLosses({"project": nn.Linear(2, 3)})
    assert list(losses.state_dict()) == ["project.weight", "project.bias"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "distillation has no terms: name one loss or more"),
        ({"hard": {"loss": HardDistillation(), "weight": -1}}, "the weight of distillation.hard must be >= 0, got -1"),
        (
            {"hard": {"loss": HardDistillation(), "wieght": 1}},
            "distillation.hard has an unknown key 'wieght': did you mean 'weight'?",
        ),
        (
            {"hard": {"weight": 1}},
            "distillation.hard: expected a loss, or a mapping with 'loss' and 'weight', got no loss",
        ),
        ({"hard": "HardDistillation"}, "distillation.hard: expected a loss, or a mapping .*, got 'HardDistillation'"),
        ({"loss": HardDistillation()}, "distillation: 'loss' cannot name a loss: choose another word"),
        ({"keys": HardDistillation()}, "distillation: 'keys' cannot name a loss"),
        ({"a.b": HardDistillation()}, "distillation: 'a.b' cannot name a loss"),
    ],
)
def test_says_what_is_wrong_with_a_mapping(terms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedLosses(terms)
