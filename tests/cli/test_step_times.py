import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from toys import FewDigits, trainer

from lit_distill import DistillableViT, HardDistillation, LitDistiller
from lit_distill.callbacks import TeacherCaching, TeacherCheck
from lit_distill.cli import step_times
from lit_distill.cli.step_times import StepTimes


def test_an_epoch_is_its_steps_at_the_time_of_all_but_the_first(monkeypatch) -> None:
    clock = iter([100.0, 102.0, 104.0, 200.0, 203.0, 206.0, 209.0])
    monkeypatch.setattr(step_times, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer: Any = SimpleNamespace(num_training_batches=50, num_val_batches=[10, 5], sanity_checking=True)
    times = StepTimes()
    for _ in range(3):
        times.on_validation_batch_end(trainer)
    trainer.sanity_checking = False
    for _ in range(4):
        times.on_train_batch_end(trainer)
    times.on_validation_batch_end(trainer)  # of the epoch
    assert times.state_dict() == {"seconds": 15 * 2.0 + 50 * 3.0, "steps": 50, "asking": 0.0, "views": 0}


def test_the_seconds_of_asking_a_teacher_with_a_cache_are_kept_too(tmp_path) -> None:
    class Slow(nn.Module):
        num_classes = 10

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return image.flatten(1)[:, :10]

    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    times, caching = StepTimes(), TeacherCaching(views=7, folder=tmp_path)
    run = trainer(max_steps=4, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[caching, times])
    data = FewDigits(batch_size=4, seed=3)
    run.fit(LitDistiller(student, Slow(), distillation=HardDistillation()), datamodule=data)
    kept = times.state_dict()
    assert kept["views"] == 7
    assert 12 * 0.02 <= kept["asking"] < kept["seconds"]


@pytest.mark.parametrize("check_teacher", [True, False])
def test_a_teacher_of_a_few_steps_is_not_checked(check_teacher: bool, recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    callbacks = [StepTimes(check_teacher), TeacherCheck()]
    run = trainer(max_steps=4, num_sanity_val_steps=0, callbacks=callbacks)
    run.fit(LitDistiller(student, teacher, distillation=HardDistillation()), datamodule=FewDigits(batch_size=4, seed=3))
    assert any("the teacher is right on" in str(each.message) for each in recwarn) == check_teacher
