from itertools import product
from typing import Any

from oracles import check_conduct, check_equal, check_finite
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill import StandardizedDistillation, standardized_distillation_loss


def published(student: Tensor, teacher: Tensor, t: float, weight: float) -> Tensor:
    """Sun et al., Algorithm 1, as in the authors' code."""

    def standardized(logits: Tensor) -> Tensor:
        return (logits - logits.mean(dim=-1, keepdim=True)) / (1e-7 + logits.std(dim=-1, keepdim=True))

    log_q, p = F.log_softmax(standardized(student) / t, dim=1), F.softmax(standardized(teacher) / t, dim=1)
    return weight * t**2 * F.kl_div(log_q, p, reduction="none").sum(1).mean()


@pytest.mark.parametrize(("classes", "t"), list(product([3, 10, 1000], [1.0, 2.0, 4.0])))
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0])
def test_value_and_gradient_equal_the_published_formula(classes: int, t: float, scale: float) -> None:
    check_equal(
        lambda s, w: standardized_distillation_loss(s, w, t, 9.0), lambda s, w: published(s, w, t, 9.0), classes, scale
    )


def test_two_classes_know_only_which_is_ahead() -> None:
    student, teacher = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], requires_grad=True), torch.tensor([[0.0, 1.0]] * 2)
    loss = standardized_distillation_loss(student, teacher)
    torch.testing.assert_close(loss, published(student, teacher, 2.0, 9.0))
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-4
    with pytest.raises(ValueError, match="this loss is for 2 or more classes, got 1"):
        standardized_distillation_loss(torch.zeros(2, 1), torch.zeros(2, 1))


def test_shift_and_scale_do_not_matter() -> None:
    logits = torch.randn(16, 9)
    assert standardized_distillation_loss(logits, 5 * logits - 3).abs() < 1e-5


@pytest.mark.parametrize(("dtype", "scale"), list(product([torch.float16, torch.bfloat16], [1.0, 1e3, "largest"])))
def test_finite_for_half_precision_logits_of_any_size(dtype: torch.dtype, scale: Any) -> None:
    check_finite(standardized_distillation_loss, dtype, scale)


def test_conduct() -> None:
    check_conduct(standardized_distillation_loss)


def test_module_equals_function_and_ignores_the_target() -> None:
    student, teacher, module = torch.randn(4, 5), torch.randn(4, 5), StandardizedDistillation(3.0, 2.0)
    for target in (torch.tensor([0, 1, 2, 3]), torch.full((4, 5), 0.2)):
        assert torch.equal(module(student, teacher, target), standardized_distillation_loss(student, teacher, 3.0, 2.0))
    assert repr(module) == "StandardizedDistillation(temperature=3.0, weight=2.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"weight": -1.0}, "weight must be >= 0, got -1.0"), ({"temperature": 0.0}, "temperature must be > 0, got 0.0")],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StandardizedDistillation(**arguments)
    with pytest.raises(ValueError, match=message):
        standardized_distillation_loss(torch.zeros(1, 3), torch.zeros(1, 3), **arguments)
