import pytest
import torch

from lit_distill import HardDistillation, hard_distillation_loss


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [1.0, 3.0, 5.0])
def test_value_and_gradient_equal_the_published_formula(classes: int, scale: float) -> None:
    student, teacher = scale * torch.randn(16, classes), torch.randn(16, classes)
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    q = torch.exp(theirs) / torch.exp(theirs).sum(dim=1, keepdim=True)
    expected = -torch.stack([q[b, teacher[b].argmax()].log() for b in range(16)]).mean()
    loss = hard_distillation_loss(ours, teacher)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_float32_and_finite_for_half_precision_logits_of_any_size(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    student = torch.tensor([[largest, -largest, 0.0]], dtype=dtype, requires_grad=True)
    loss = HardDistillation()(student, torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype), torch.tensor([0]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_depends_on_the_teachers_decision_alone() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(hard_distillation_loss(student, teacher), hard_distillation_loss(student, 7 * teacher + 1))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, K\), got \(2, 3\) and \(2, 1000\)"):
        hard_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 1000))
