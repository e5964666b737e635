from itertools import product
from typing import Any

from oracles import check_conduct, check_equal, check_finite
import pytest
import torch
from torch import Tensor

from lit_distill import DIST, dist_loss


def pearson(u: Tensor, v: Tensor) -> Tensor:
    u, v = u - u.mean(), v - v.mean()
    return (u * v).sum() / (u.square().sum().sqrt() * v.square().sum().sqrt() + 1e-8)


def published(student: Tensor, teacher: Tensor, beta: float, gamma: float, t: float) -> Tensor:
    """Huang et al., equation 9, row by row and column by column, with the recipe's loss weight of 2."""
    q, p = torch.softmax(student / t, 1), torch.softmax(teacher / t, 1)
    inter = torch.stack([1 - pearson(u, v) for u, v in zip(q, p, strict=True)]).mean()
    intra = torch.stack([1 - pearson(u, v) for u, v in zip(q.T, p.T, strict=True)]).mean()
    return 2 * (beta * t**2 * inter + gamma * t**2 * intra)


@pytest.mark.parametrize(("classes", "t"), list(product([3, 10, 200], [1.0, 4.0])))
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.0, 1.0), (2.0, 0.0)])
def test_value_and_gradient_equal_the_published_formula(classes: int, t: float, beta: float, gamma: float) -> None:
    check_equal(
        lambda s, w: dist_loss(s, w, beta, gamma, t), lambda s, w: published(s, w, beta, gamma, t), classes, scale=1.0
    )


def test_two_classes_and_one_sample_are_as_documented() -> None:
    student = torch.randn(16, 2, requires_grad=True)
    teacher = torch.randn(16, 2)
    (gradient,) = torch.autograd.grad(dist_loss(student, teacher, gamma=0.0), student)
    assert gradient.abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(dist_loss(student, teacher), student)
    assert gradient.abs().max() > 1e-3
    alone = torch.randn(1, 5, requires_grad=True)
    loss = dist_loss(alone, torch.randn(1, 5), beta=0.0)
    (gradient,) = torch.autograd.grad(loss, alone)
    assert loss == 2.0
    assert not gradient.any()
    with pytest.raises(ValueError, match="this loss is for 2 or more classes, got 1"):
        dist_loss(torch.zeros(2, 1), torch.zeros(2, 1))


def test_is_zero_at_equality() -> None:
    logits = torch.randn(16, 9)
    assert dist_loss(logits, logits).abs() < 1e-5


@pytest.mark.parametrize(("dtype", "scale"), list(product([torch.float16, torch.bfloat16], [1.0, 1e3, "largest"])))
def test_finite_for_half_precision_logits_of_any_size(dtype: torch.dtype, scale: Any) -> None:
    check_finite(dist_loss, dtype, scale)


def test_conduct() -> None:
    check_conduct(dist_loss)


def test_module_equals_function_and_ignores_the_target() -> None:
    student, teacher, module = torch.randn(4, 5), torch.randn(4, 5), DIST(0.5, 2.0, 3.0)
    for target in (torch.tensor([0, 1, 2, 3]), torch.full((4, 5), 0.2)):
        assert torch.equal(module(student, teacher, target), dist_loss(student, teacher, 0.5, 2.0, 3.0))
    assert repr(module) == "DIST(beta=0.5, gamma=2.0, temperature=3.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ({"gamma": float("inf")}, "gamma must be >= 0, got inf"),
        ({"temperature": -1.0}, "temperature must be > 0, got -1.0"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DIST(**arguments)
    with pytest.raises(ValueError, match=message):
        dist_loss(torch.zeros(1, 3), torch.zeros(1, 3), **arguments)
