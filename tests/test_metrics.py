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
        metrics.update_with(StudentOutput(*(logits[part] for logits in output.heads)), teacher[part], target[part])
    values = {name: value.item() for name, value in metrics.compute().items()}
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
    assert metrics["accuracy_class"].compute() == 1.0


def test_mean_of_softmaxes_is_stable_for_extreme_logits() -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.bfloat16)
    log_probs = StudentOutput(extreme, -extreme).log_probs()
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.5, 0.5, 0.0]]))
    assert log_probs.dtype == torch.float32


def measured(metrics: DistillationMetrics, count: int = 3000) -> dict[str, float]:
    """Metrics of made logits that are right on half of the samples, taken in by batches of 30."""
    generator = torch.Generator().manual_seed(2)
    logits, other = (3 * torch.randn(count, 4, generator=generator, dtype=torch.float32) for _ in range(2))
    target = torch.randint(4, (count,), generator=generator)
    for start in range(0, count, 30):
        part = slice(start, start + 30)
        metrics.update_with(StudentOutput(logits[part], other[part]), None, target[part])
    return {name: metrics[name].compute().item() for name in metrics}


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("how", ["to", "type", "default"])
def test_values_do_not_depend_on_the_precision_of_the_module(cast: torch.dtype, how: str) -> None:
    expected = measured(DistillationMetrics(teacher=False))
    if how == "default":  # what `trainer.init_module()` and the forward pass of `bf16-true` do
        try:
            torch.set_default_dtype(cast)
            values = measured(DistillationMetrics(teacher=False))
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(DistillationMetrics(teacher=False)))
        getattr(module, how)(cast)
        assert module[0].weight.dtype == cast
        values = measured(module[1][0])
        module[1][0]["nll"].reset()
        assert {state.dtype for state in module[1][0]["nll"].metric_state.values()} == {torch.float32}
    assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("head", ["class", "distill", "mean_logits", "mean_probs"])
def test_likelihood_calibration_and_agreement_are_those_of_the_head_that_predicts(head) -> None:
    torch.manual_seed(3)
    output = StudentOutput(3 * torch.randn(200, 4), 3 * torch.randn(200, 4))
    teacher, target = torch.randn(200, 4), torch.randint(4, (200,))
    metrics = DistillationMetrics(teacher=True, head=head)
    metrics.update_with(output, teacher, target)
    log_probs = output.log_probs(head)
    assert metrics["nll"].compute().item() == pytest.approx(F.nll_loss(log_probs, target).item(), abs=1e-6)
    agreement = (log_probs.argmax(1) == teacher.argmax(1)).float().mean().item()
    assert metrics["agreement"].compute().item() == pytest.approx(agreement)
    alone = DistillationMetrics(teacher=False)  # a single head that is as sure as this one
    alone.update_with(StudentOutput(log_probs, log_probs), None, target)
    assert metrics["ece"].compute().item() == pytest.approx(alone["ece"].compute().item(), abs=1e-6)
    expected = (output.log_probs("mean_probs").argmax(1) == target).float().mean().item()
    assert metrics["accuracy_mean_probs"].compute().item() == pytest.approx(expected)
