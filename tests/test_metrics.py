import pytest
import torch
from torch.nn import functional as F

from lit_distill import StudentOutput
from lit_distill.metrics import DistillationMetrics


def test_equal_their_definitions_over_several_batches() -> None:
    torch.manual_seed(1)
    output = StudentOutput(3 * torch.randn(200, 4), 3 * torch.randn(200, 4))
    teacher, target = torch.randn(200, 4), torch.randint(4, (200,))
    metrics = DistillationMetrics(teacher=True)
    for part in (slice(0, 30), slice(30, 200)):
        metrics.update_with(StudentOutput(*(logits[part] for logits in output)), teacher[part], target[part])
    values = {name: metrics.metric(name).compute().item() for name in metrics}
    probs = (output.logits.softmax(1) + output.distill_logits.softmax(1)) / 2

    def accuracy(scores: torch.Tensor, labels: torch.Tensor = target) -> float:
        return (scores.argmax(1) == labels).float().mean().item()

    confidence, decided = probs.max(dim=1)
    bins = (confidence * 15).long().clamp(max=14)
    gaps = [
        (bins == b).float().mean()
        * ((decided == target)[bins == b].float().mean() - confidence[bins == b].mean()).abs()
        for b in bins.unique()
    ]
    expected = {
        "accuracy_class": accuracy(output.logits),
        "accuracy_distill": accuracy(output.distill_logits),
        "accuracy_mean_logits": accuracy(output.logits + output.distill_logits),
        "accuracy_mean_probs": accuracy(probs),
        "agreement": accuracy(probs, teacher.argmax(1)),
        "teacher_accuracy": accuracy(teacher),
        "nll": F.nll_loss(probs.log(), target).item(),
        "ece": sum(gaps).item(),
    }
    assert values == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
    assert values["accuracy_mean_logits"] != values["accuracy_mean_probs"]


def test_soft_targets_count_as_their_largest_class() -> None:
    metrics, logits = DistillationMetrics(teacher=False), torch.eye(3)
    metrics.update_with(StudentOutput(logits, logits), None, torch.eye(3) * 0.8 + 0.05)
    assert metrics.metric("accuracy_class").compute() == 1.0


def test_mean_of_softmaxes_is_stable_for_extreme_logits() -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.bfloat16)
    log_probs = StudentOutput(extreme, -extreme).log_probs()
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.5, 0.5, 0.0]]))
    assert log_probs.dtype == torch.float32
