import pytest
import torch

from lit_distill import retrospection_loss, retrospection_weight

# Deng and Zhang's Algorithm 1 with M = 20 and update_rate 0.9, by epoch 1..20.
TABLES = {
    1: [1.0, *(0.91 - 0.045 * n for n in range(19))],
    3: [1.0] * 3 + [0.865] * 2 + [0.73] * 3 + [0.595] * 3 + [0.46] * 3 + [0.325] * 3 + [0.19] * 3,
    5: [1.0] * 5 + [0.775] * 4 + [0.55] * 5 + [0.325] * 5 + [0.1],
}


@pytest.mark.parametrize("interval", TABLES)
def test_weight_equals_the_reference_table(interval: int) -> None:
    weights = [retrospection_weight(epoch, interval, max_epochs=20) for epoch in range(1, 21)]
    assert weights == pytest.approx(TABLES[interval], abs=1e-6)


def test_weight_ends_at_one_minus_the_update_rate_and_stays() -> None:
    assert retrospection_weight(20, 5, 20, 0.7) == pytest.approx(0.3)
    assert retrospection_weight(60, 5, 20, 0.7) == pytest.approx(0.3)
    assert all(retrospection_weight(epoch, 3, 20, 1.0) >= 0 for epoch in range(1, 100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "epoch must be >= 1, got 0"),
        ((1, 0, 1), "interval must be >= 1, got 0"),
        ((1, 1, 0), "max_epochs must be >= 1, got 0"),
        ((1, 1, 1, 1.1), r"update_rate must be in \[0, 1\], got 1.1"),
    ],
)
def test_weight_refuses_what_is_out_of_range(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrospection_weight(*arguments)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 5.0])
def test_value_and_gradient_equal_the_published_formula(classes: int, temperature: float) -> None:
    logits, soft_labels = 3 * torch.randn(8, classes), torch.randn(8, classes).softmax(dim=1)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    p = soft_labels.double()
    q = torch.exp(theirs / temperature) / torch.exp(theirs / temperature).sum(dim=1, keepdim=True)
    expected = temperature**2 * (p * (p.log() - q.log())).sum() / 8
    loss = retrospection_loss(ours, soft_labels, temperature)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    scale = theirs.grad.abs().max()
    torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, rtol=0, atol=1e-6)


def test_is_zero_and_gradient_free_at_equality() -> None:
    logits = torch.randn(8, 10, requires_grad=True)
    loss = retrospection_loss(logits, torch.softmax(logits.detach() / 5, dim=1), 5.0)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert logits.grad.abs().max() < 1e-6


def test_rows_average_to_the_batch_mean_and_zeros_of_p_count_nothing() -> None:
    logits, soft_labels = torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1.0]])
    rows = retrospection_loss(logits, soft_labels, 2.0, reduction="none")
    assert rows.shape == (3,)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.mean(), retrospection_loss(logits, soft_labels, 2.0))


def test_refuses_other_shapes_temperatures_and_reductions() -> None:
    with pytest.raises(ValueError, match="soft labels"):
        retrospection_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature must be > 0"):
        retrospection_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match="reduction must be"):
        retrospection_loss(torch.zeros(2, 3), torch.zeros(2, 3), reduction="mean")  # type: ignore[arg-type]
