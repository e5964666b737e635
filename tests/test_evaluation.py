from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_distill import StudentOutput
from lit_distill.evaluation import Evaluation, loaders_of


def measured(sizes: list[int], **kwargs: Any) -> tuple[Evaluation, dict[str, float]]:
    """Evaluate loaders of one batch each; in loader n, the first n + 1 answers are right."""
    evaluation = Evaluation("val", head="class", **{"teacher": False, **kwargs})
    trainer: Any = SimpleNamespace(val_dataloaders=[range(size) for size in sizes])
    for number, size in enumerate(sizes):
        logits, target = torch.eye(2)[[0] * size], torch.tensor([0] * (number + 1) + [1] * (size - number - 1))
        evaluation.update(trainer, StudentOutput(logits, logits), None, target, 0, number)
    return evaluation, {name: metric.compute().item() for name, _, metric in evaluation.named_metrics()}


def test_one_loader_has_no_metrics_of_its_own() -> None:
    _, values = measured([4])
    assert values["val/accuracy_class"] == 0.25
    assert not any("dataloader_idx" in name for name in values)


def test_several_loaders_are_measured_together_and_alone() -> None:
    evaluation, values = measured([4, 6])
    assert values["val/accuracy_class"] == pytest.approx(3 / 10)
    assert values["val/accuracy_class/dataloader_idx_0"] == pytest.approx(1 / 4)
    assert values["val/accuracy_class/dataloader_idx_1"] == pytest.approx(2 / 6)
    for _, path, metric in evaluation.named_metrics():
        assert evaluation.get_submodule(path) is metric  # the path that Lightning is told


def test_metrics_that_measured_nothing_are_left_out() -> None:
    _, values = measured([4], teacher=True)
    assert not {"val/agreement", "val/teacher_accuracy"} & set(values)


@pytest.mark.parametrize("loaders", [{"a": 1, "b": 2}, [1, 2], (1, 2)])
def test_loaders_may_be_named(loaders: Any) -> None:
    trainer: Any = SimpleNamespace(val_dataloaders=loaders, test_dataloaders=5)
    assert loaders_of(trainer, "val") == [1, 2]
    assert loaders_of(trainer, "test") == [5]
    assert loaders_of(None, "val") == [None]
