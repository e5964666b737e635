"""Teachers that are asked with the whole batch: the smallest ensemble, and the smallest cache."""

from typing import Any

import pytest
import torch
from torch import nn
from toys import trainer

from lit_distill import DigitsCNN, DistillableViT, FrozenTeacher, LitDistiller, SoftDistillation
from lit_distill.callbacks import TeacherCheck
from lit_distill.datamodules import Batch, DigitsDataModule, IndexedDataset
from lit_distill.models import Teacher, TeacherOutput


class Ensemble(Teacher):
    """The mean of several teachers' probabilities."""

    def __init__(self, *teachers: FrozenTeacher) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.num_classes = teachers[0].num_classes

    def forward(self, batch: Batch) -> TeacherOutput:
        probabilities = [teacher(batch).logits.softmax(dim=1) for teacher in self.teachers]
        return TeacherOutput(torch.stack(probabilities).mean(dim=0).log())


class Cache(Teacher):
    """The answers of a teacher to the first views of each row, in a table; images of no view get no logits."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)  # (views, rows, K)
        self.num_classes = table.shape[2]

    table: torch.Tensor

    def forward(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(None if batch.view is None else self.table[batch.view_and_index()])


class Strict(Cache):
    """A cache for training alone."""

    def forward(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(self.table[batch.view_and_index()])


def distil(teacher: nn.Module, **kwargs: Any) -> tuple[LitDistiller, Any]:
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    module = LitDistiller(student, teacher, distillation=SoftDistillation())
    run = trainer(max_epochs=2, limit_train_batches=3, limit_val_batches=1, **kwargs)
    run.fit(module, datamodule=DigitsDataModule(seed=3, storage="host"))
    return module, run


def same_weights(first: LitDistiller, second: LitDistiller) -> bool:
    state = second.state_dict()
    return all(torch.allclose(value, state[name], atol=1e-6) for name, value in first.state_dict().items())


def cached(teacher: FrozenTeacher, views: int = 2) -> torch.Tensor:
    """Ask the teacher about each view of each row of the training set."""
    data = DigitsDataModule(seed=3)
    data.setup()
    keyed = IndexedDataset(data.train_set, seed=3)
    batches = (keyed.__getitems__([(view, row) for row in range(len(keyed))]) for view in range(views))
    return torch.stack([teacher(torch.stack([sample.image for sample in batch])) for batch in batches])


def test_an_ensemble_of_one_network_teaches_what_the_network_teaches() -> None:
    teachers = [FrozenTeacher(DigitsCNN(pretrained=True)) for _ in range(3)]
    ensemble, run = distil(Ensemble(*teachers), callbacks=TeacherCheck())
    alone, expected = distil(teachers[0])
    assert same_weights(ensemble, alone)
    for name in ("val/teacher_accuracy", "val/agreement", "train/distillation"):
        torch.testing.assert_close(run.callback_metrics[name], expected.callback_metrics[name])


def test_a_cache_answers_from_view_and_index_as_the_live_teacher_does() -> None:
    teacher = FrozenTeacher(DigitsCNN(pretrained=True))
    _, run = distil(Cache(cached(teacher)), callbacks=TeacherCheck())
    _, live = distil(teacher)
    expected = live.callback_metrics["train/distillation"]
    torch.testing.assert_close(run.callback_metrics["train/distillation"], expected, rtol=1e-3, atol=0)
    assert "val/nll" in run.callback_metrics
    assert "val/teacher_accuracy" not in run.callback_metrics  # validation has no views: the cache has no logits for it
    for dim in (0, 1):  # the view makes a difference, and the index
        _, other = distil(Cache(cached(teacher).roll(1, dims=dim)))
        assert abs(other.callback_metrics["train/distillation"] - expected) > 2e-3 * expected


def test_a_batch_without_a_view_is_one_line() -> None:
    with pytest.raises(ValueError, match="the batch has no view, and a view and an index of each sample are needed"):
        distil(Strict(torch.zeros(2, 1437, 10)))


def test_every_teacher_is_frozen_in_float32_and_without_a_graph() -> None:
    class Half(Teacher):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).bfloat16()

        def forward(self, batch: Batch) -> TeacherOutput:
            logits = self.net(batch.image.bfloat16())
            return TeacherOutput(logits, {"same": logits})

    teacher = Half()
    module = LitDistiller(DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1), teacher)
    assert module.teacher is teacher
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher.net.train()  # somebody reaches past it
    logits, features = teacher(Batch(torch.rand(4, 1, 8, 8, requires_grad=True), torch.zeros(4, dtype=torch.int64)))
    assert (logits.dtype, features["same"].dtype) == (torch.float32, torch.float32)
    assert not logits.requires_grad
    assert not any(part.training for part in teacher.modules())
    assert not [name for name in module.state_dict() if "teacher" in name]


def test_a_frozen_teacher_answers_batches_and_plain_images() -> None:
    teacher, image = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Linear(12, 5))), torch.rand(2, 3, 2, 2)
    answer = teacher(Batch(image, torch.tensor([0, 1])))
    assert torch.equal(teacher(image), answer.logits)
    assert answer.features == {}


def test_a_teacher_needs_a_forward() -> None:
    with pytest.raises(NotImplementedError, match="Teacher needs a method forward"):
        Teacher()(torch.zeros(1))
