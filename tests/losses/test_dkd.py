from itertools import product
from typing import Any

from oracles import check_conduct, check_equal, check_finite
import pytest
import torch
from torch import Tensor

from lit_distill import DKD, dkd_loss

TARGET = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1] * 2)


def published(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, t: float) -> Tensor:
    """Zhao et al., equation 7, sample by sample."""
    total = torch.zeros((), dtype=torch.float64)
    for z, w, y in zip(student, teacher, target.tolist(), strict=True):
        q, p = torch.softmax(z / t, 0), torch.softmax(w / t, 0)
        b_q, b_p = torch.stack([q[y], q.sum() - q[y]]), torch.stack([p[y], p.sum() - p[y]])
        rest = [k for k in range(len(z)) if k != y]
        q_hat, p_hat = q[rest] / q[rest].sum(), p[rest] / p[rest].sum()
        total = total + alpha * (b_p * (b_p / b_q).log()).sum() + beta * (p_hat * (p_hat / q_hat).log()).sum()
    return t**2 * total / len(student)


@pytest.mark.parametrize(("classes", "t"), list(product([3, 10, 1000], [1.0, 4.0])))
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.0)])
def test_value_and_gradient_equal_the_published_formula(classes: int, t: float, alpha: float, beta: float) -> None:
    check_equal(
        lambda s, w: dkd_loss(s, w, TARGET, alpha, beta, t),
        lambda s, w: published(s, w, TARGET, alpha, beta, t),
        classes,
    )


def test_equals_the_mask_of_the_authors_code() -> None:
    """mdistiller takes the target out of the second softmax by subtracting 1000."""
    student, teacher, t = 3 * torch.randn(16, 7).double(), 3 * torch.randn(16, 7).double(), 4.0
    mask = torch.nn.functional.one_hot(TARGET, 7)
    p, log_q = torch.softmax(teacher / t - 1000.0 * mask, 1), torch.log_softmax(student / t - 1000.0 * mask, 1)
    second = torch.nn.functional.kl_div(log_q, p, reduction="sum") * t**2 / 16
    torch.testing.assert_close(dkd_loss(student, teacher, TARGET, 0.0, 1.0, t), second)


def test_two_classes_leave_the_first_term() -> None:
    target = TARGET.clamp(max=1)
    check_equal(lambda s, w: dkd_loss(s, w, target), lambda s, w: published(s, w, target, 1.0, 0.0, 4.0), 2)
    with pytest.raises(ValueError, match="this loss is for 2 or more classes, got 1"):
        dkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2).long())


def test_soft_targets_count_as_their_likeliest_class() -> None:
    student, teacher = torch.randn(16, 3), torch.randn(16, 3)
    soft = 0.2 + 0.4 * torch.nn.functional.one_hot(TARGET, 3)
    assert torch.equal(dkd_loss(student, teacher, soft), dkd_loss(student, teacher, TARGET))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_classes_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(16, 9), torch.randn(16, 9)
    assert torch.equal(dkd_loss(student, teacher, TARGET.to(dtype)), dkd_loss(student, teacher, TARGET))


def test_is_zero_at_equality() -> None:
    logits = (10 * torch.randn(16, 9)).requires_grad_()
    loss = dkd_loss(logits, logits.detach().clone(), TARGET)
    loss.backward()
    assert loss.abs() < 1e-5
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "scale"), list(product([torch.float16, torch.bfloat16], [1.0, 1e3, "largest"])))
def test_finite_for_half_precision_logits_of_any_size(dtype: torch.dtype, scale: Any) -> None:
    check_finite(lambda s, w: dkd_loss(s, w, torch.tensor([0, 1, 2, 0])), dtype, scale)


def test_conduct() -> None:
    check_conduct(lambda s, w: dkd_loss(s, w, TARGET[:4]))


def test_module_equals_function() -> None:
    student, teacher, module = torch.randn(16, 5), torch.randn(16, 5), DKD(0.5, 2.0, 3.0)
    assert torch.equal(module(student, teacher, TARGET), dkd_loss(student, teacher, TARGET, 0.5, 2.0, 3.0))
    assert repr(module) == "DKD(alpha=0.5, beta=2.0, temperature=3.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0, got -1.0"),
        ({"beta": float("nan")}, "beta must be >= 0, got nan"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DKD(**arguments)
    with pytest.raises(ValueError, match=message):
        dkd_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1).long(), **arguments)
