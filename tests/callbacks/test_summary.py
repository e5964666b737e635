from typing import Any

import pytest
from toys import Foreign, toy_loader, trainer

from lit_distill.callbacks import RunSummary


class Scores(Foreign):
    """Validates to 0.5, 0.9, 0.7."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        score = [0.5, 0.9, 0.7][self.current_epoch]
        accuracies = {"val/accuracy_class": score - 0.1, "val/accuracy_mean_probs": score}
        self.log_dict({**accuracies, "val/nll": 1 - score, "val/teacher_accuracy": 1.0})


def test_tells_the_last_and_the_best_epoch_apart(capsys) -> None:
    summary = RunSummary()
    module = Scores()
    module.trains_both_heads, module.predicts = True, "mean_probs"
    trainer(max_epochs=3, callbacks=summary).fit(module, toy_loader(), toy_loader(8))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["epoch,", "counted", "from", "0", "2", "1"] in rows
    assert ["teacher", "accuracy", "100.00%", "100.00%"] in rows
    assert ["student", "accuracy,", "mean", "of", "softmaxes", "70.00%", "90.00%", "predicts"] in rows
    assert ["student", "accuracy,", "class", "head", "60.00%", "80.00%"] in rows
    assert ["negative", "log-likelihood", "(nats)", "0.3000", "0.1000"] in rows


def test_without_distillation_the_student_has_one_accuracy(capsys) -> None:
    module = Scores()
    module.predicts = "class"
    trainer(max_epochs=3, callbacks=RunSummary()).fit(module, toy_loader(), toy_loader(8))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if "student" in row] == [["student", "accuracy", "60.00%", "80.00%"]]


def test_the_best_may_be_the_lowest() -> None:
    summary = RunSummary("val/nll", mode="min")
    trainer(max_epochs=3, callbacks=summary).fit(Scores(), toy_loader(), toy_loader(8))
    assert summary.best["epoch"] == 1


def test_remembers_the_best_over_a_resume(tmp_path, capsys) -> None:
    run = trainer(max_epochs=2, callbacks=RunSummary())
    run.fit(Scores(), toy_loader(), toy_loader(8))
    run.save_checkpoint(tmp_path / "half.ckpt")
    summary = RunSummary()
    trainer(max_epochs=3, callbacks=summary).fit(
        Scores(), toy_loader(), toy_loader(8), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert summary.best["epoch"] == 1
    assert summary.last["epoch"] == 2


def test_says_nothing_without_validation(capsys) -> None:
    trainer(max_epochs=1, callbacks=RunSummary(), limit_val_batches=0).fit(Foreign(), toy_loader())
    assert "best epoch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cadence", "noted"),
    [({}, ""), ({"check_val_every_n_epoch": 2}, "8 of 12"), ({"val_check_interval": 0.75}, "11 of 12")],
)
def test_says_when_the_last_weights_were_not_validated(capsys, cadence: dict[str, Any], noted: str) -> None:
    trainer(max_epochs=3, callbacks=RunSummary(), **cadence).fit(Scores(), toy_loader(), toy_loader(8))
    out = capsys.readouterr().out
    assert ("note: the last validation was at step " in out) == bool(noted)
    assert f"at step {noted}" in out or not noted


def test_a_run_that_has_all_its_epochs_says_that_nothing_was_trained(tmp_path, capsys) -> None:
    run = trainer(max_epochs=2, callbacks=RunSummary())
    run.fit(Scores(), toy_loader(), toy_loader(8))
    assert "nothing was trained" not in capsys.readouterr().out
    run.save_checkpoint(tmp_path / "all.ckpt")
    for epochs, said in ((2, True), (3, False)):
        trainer(max_epochs=epochs, callbacks=RunSummary()).fit(
            Scores(), toy_loader(), toy_loader(8), ckpt_path=tmp_path / "all.ckpt", weights_only=True
        )
        assert ("all.ckpt has all 2 epochs: a larger max_epochs goes on" in capsys.readouterr().out) == said
