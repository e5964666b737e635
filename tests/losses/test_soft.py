from itertools import product

import pytest
import torch
from torch.nn import functional as F

from lit_distill import SoftDistillation, soft_distillation_loss

GRID = list(product([2, 10, 1000], [1.0, 3.0, 5.0]))


def published(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The formula written out, in float64."""
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum(dim=1, keepdim=True)
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum(dim=1, keepdim=True)
    return temperature**2 * (p * (p.log() - q.log())).sum()


@pytest.mark.parametrize(("classes", "temperature"), GRID)
@pytest.mark.parametrize("reduction", ["batchmean", "deit"])
def test_value_and_gradient_equal_the_published_formula(classes: int, temperature: float, reduction: str) -> None:
    student, teacher = (3 * torch.randn(16, classes) for _ in range(2))
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = soft_distillation_loss(ours, teacher, temperature, reduction)  # type: ignore[arg-type]
    expected = published(theirs, teacher.double(), temperature) / (16 if reduction == "batchmean" else 16 * classes)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    scale = theirs.grad.abs().max()
    torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("classes", "temperature"), GRID)
def test_deit_reduction_equals_deits_code(classes: int, temperature: float) -> None:
    student, teacher = torch.randn(8, classes), torch.randn(8, classes)
    deit = (
        F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="sum",
            log_target=True,
        )
        * (temperature * temperature)
        / student.numel()
    )
    torch.testing.assert_close(soft_distillation_loss(student, teacher, temperature, "deit"), deit)


@pytest.mark.parametrize(("classes", "temperature"), GRID)
def test_kl_is_zero_and_gradient_free_at_equality(classes: int, temperature: float) -> None:
    logits = (10 * torch.randn(16, classes)).requires_grad_()
    loss = soft_distillation_loss(logits, logits.detach().clone(), temperature)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e3, "largest"])
def test_is_float32_and_finite_for_half_precision_logits_of_any_size(dtype: torch.dtype, scale: float | str) -> None:
    size = torch.finfo(dtype).max if scale == "largest" else scale
    signs = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0]])
    student, teacher = (signs * size).to(dtype).requires_grad_(), (-signs * size).to(dtype)
    loss = soft_distillation_loss(student, teacher, temperature=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_stays_float32_under_autocast() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    with torch.autocast("cpu", torch.bfloat16):
        loss = soft_distillation_loss(student, teacher, 3.0)
    assert torch.equal(loss, soft_distillation_loss(student, teacher, 3.0))


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    soft_distillation_loss(student, teacher).backward()
    assert teacher.grad is None


def test_module_equals_function_and_ignores_the_target() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    module = SoftDistillation(temperature=2.0, reduction="deit")
    expected = soft_distillation_loss(student, teacher, 2.0, "deit")
    assert torch.equal(module(student, teacher, torch.tensor([0, 1, 2, 3])), expected)
    assert repr(module) == "SoftDistillation(temperature=2.0, reduction='deit')"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_temperature_out_of_range(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, got"):
        SoftDistillation(temperature)
    with pytest.raises(ValueError, match="temperature must be > 0, got"):
        soft_distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)


def test_refuses_other_shapes_and_reductions() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        soft_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="reduction must be"):
        SoftDistillation(reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be"):
        soft_distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), reduction="mean")  # type: ignore[arg-type]
