from types import SimpleNamespace
from typing import Any

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
