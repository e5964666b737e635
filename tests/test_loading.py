from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_distill import HardDistillation, LitDistiller
from lit_distill.loading import checked, leave_out_of, takes_teacher


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image.flatten(1))


class Own(LitDistiller):
    """Somebody's own module, with arguments of its own."""

    def __init__(self, folder: Path, width: int = 4, make: Any = nn.ReLU) -> None:
        super().__init__(Flat(), alpha=0.3)
        self.width = width


def test_a_subclass_keeps_its_own_plain_arguments() -> None:
    assert dict(Own(Path("some/where"), width=8).hparams) == {"folder": "some/where", "width": 8}


def test_class_weights_and_losses_that_are_not_loaded_are_left_out() -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
    module = LitDistiller(Flat(), criterion=weighted)
    state = {**module.state_dict(), "criterion.weight": torch.zeros(3), "distillation.projection": torch.zeros(1)}
    leave_out_of(state, module)
    assert set(state) == {"student.head.weight", "student.head.bias", "criterion.weight"}
    assert torch.equal(state["criterion.weight"], torch.ones(3))  # the new run's
    with_losses = {"distillation.projection": torch.zeros(1)}
    leave_out_of(with_losses, LitDistiller(Flat(), Flat(), distillation=HardDistillation()))
    assert "distillation.projection" in with_losses


@pytest.mark.parametrize(("kind", "expected"), [(LitDistiller, True), (Own, False)])
def test_a_class_that_makes_its_own_teacher_takes_none(kind: Any, expected: bool) -> None:
    assert takes_teacher(kind, {}) == expected
    assert takes_teacher(kind, {"teacher": None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hyper_parameters": [1]}, "its hyper-parameters are a list"),
        ({"hyper_parameters": {"_instantiator": "os.system"}}, "it names os.system to make its module"),
        ({"hparams": {}}, "it has hyper-parameters under a name of older versions of Lightning"),
        ({"hyper_parameters": {"student": {"class_path": "os.system"}}}, "os.system"),
    ],
)
def test_a_description_that_may_not_be_followed_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message), checked(tmp_path / "a.ckpt", LitDistiller, []):
        raise AssertionError("it was loaded")


def test_plain_arguments_are_yielded(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": {"alpha": 0.25}}, tmp_path / "a.ckpt")
    with checked(tmp_path / "a.ckpt", LitDistiller, []) as named:
        assert named == {"alpha": 0.25}
