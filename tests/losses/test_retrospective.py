import pytest
import torch

from lit_distill.losses import retrospective_loss


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("kappa", [0.0, 1.0, 4.0])
def test_equals_the_published_formula_with_its_gradient(classes: int, kappa: float) -> None:
    logits = torch.randn(8, classes, dtype=torch.float64, requires_grad=True)
    past, target = torch.randn(8, classes, dtype=torch.float64), torch.randint(classes, (8,))
    exact = 0
    for z, old, y in zip(logits, past, target, strict=True):
        p, q = torch.softmax(z, 0), torch.softmax(old, 0)
        truth = torch.zeros(classes, dtype=torch.float64)
        truth[y] = 1
        exact = exact + ((kappa + 1) * torch.linalg.vector_norm(p - truth, 1) - kappa * torch.linalg.norm(p - q, 1)) / 8
    ours = retrospective_loss(logits, past, target, kappa)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_of_probabilities_as_targets_and_in_half_precision() -> None:
    logits, past, target = torch.randn(4, 5), torch.randn(4, 5), torch.randint(5, (4,))
    truth = torch.nn.functional.one_hot(target, 5).float()
    assert torch.equal(retrospective_loss(logits, past, truth), retrospective_loss(logits, past, target))
    assert torch.equal(retrospective_loss(logits, past, target.byte()), retrospective_loss(logits, past, target))
    half = retrospective_loss(logits.bfloat16(), past.bfloat16(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, retrospective_loss(logits, past, target), rtol=0.05, atol=0.05)


def test_no_gradient_goes_to_the_past() -> None:
    past = torch.randn(4, 5, requires_grad=True)
    loss = retrospective_loss(torch.randn(4, 5, requires_grad=True), past, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert past.grad is None


def test_refuses_what_does_not_fit() -> None:
    logits, target = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="kappa must be >= 0, got -1"):
        retrospective_loss(logits, logits, target, kappa=-1)
    with pytest.raises(ValueError, match=r"past logits must have one shape \(B, K\), got \(4, 5\) and \(4, 6\)"):
        retrospective_loss(logits, torch.randn(4, 6), target)
