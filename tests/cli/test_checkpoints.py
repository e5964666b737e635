"""The best checkpoint has the metric that its name says, by every way to measure it."""

from pathlib import Path
import re
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
import pytest
import torch
from torch.utils.data import Subset
from toys import QUIET, Foreign, toy_loader, trainer

from lit_distill import DistillableViT, LitDistiller
from lit_distill.callbacks import RunSummary, StepSeed
from lit_distill.cli.checkpoints import BestCheckpoint
from lit_distill.datamodules import DigitsDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
METRIC = "val/accuracy_mean_probs"
CADENCES: list[dict[str, Any]] = [
    {},
    {"check_val_every_n_epoch": 2},
    {"val_check_interval": 0.4},
    {"val_check_interval": 0.5, "check_val_every_n_epoch": 2},
    {"val_check_interval": 3, "check_val_every_n_epoch": None},
    {"val_check_interval": 0.4, "accumulate_grad_batches": 3},
    {"max_steps": 7, "val_check_interval": 2},
]


class FewDigits(DigitsDataModule):
    """Ten steps an epoch, and 89 images to validate on, which two ranks cannot share evenly."""

    def __init__(self, ranks: int = 1) -> None:
        super().__init__(batch_size=8 // ranks, eval_batch_size=16, seed=3)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set, self.val_set = Subset(self.train_set, range(80)), Subset(self.val_set, range(89))


def module() -> LitDistiller:
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1, dropout=0.1)
    return LitDistiller(student, optimizer=lambda p: torch.optim.AdamW(p, lr=0.03), scheduler=None)


def best(folder: Path | str, **kwargs: Any) -> BestCheckpoint:
    return BestCheckpoint(**{"dirpath": folder, "monitor": METRIC, "mode": "max", **kwargs})


def run(folder: Path, ranks: int = 1, callbacks: tuple[Any, ...] = (), **kwargs: Any) -> Trainer:
    """A run whose accuracy goes up and down."""
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto", "enable_checkpointing": True}
    callbacks = (StepSeed(3), RunSummary(), best(folder), *callbacks)
    fitted = Trainer(**{**QUIET, **strategy, "max_epochs": 4, "callbacks": list(callbacks), **kwargs})
    fitted.fit(module(), FewDigits(ranks))
    return fitted


def agrees(folder: Path) -> float:
    """Compare the name of the best checkpoint, what the file says of itself, and what it measures anew."""
    (path,) = folder.glob("best-*.ckpt")
    named = float(re.fullmatch(r"best-epoch=\d+-accuracy_mean_probs=(0\.\d{4})\.ckpt", path.name)[1])
    stored = torch.load(path, weights_only=True)["callbacks"]
    summary = stored["RunSummary"]
    assert summary["last"] == summary["best"]
    (measured,) = trainer().validate(module(), FewDigits(), ckpt_path=path, weights_only=True, verbose=False)
    assert round(measured[METRIC], 4) == named
    for name, value in measured.items():
        assert summary["best"][name] == pytest.approx(value, abs=1e-6), name
    return named


@pytest.mark.parametrize("cadence", CADENCES, ids=str)
def test_the_best_checkpoint_has_its_metric(tmp_path: Path, cadence: dict[str, Any]) -> None:
    values: list[float] = []

    class Note(RunSummary):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                values.append(float(trainer.callback_metrics[METRIC]))

    fitted = run(tmp_path, callbacks=(Note(),), **cadence)
    named = agrees(tmp_path)
    assert named == round(max(values), 4)
    assert len(values) > 1 > 0.9 * max(values) > min(values)  # the metric moves
    summary = next(callback for callback in fitted.callbacks if type(callback) is RunSummary)
    assert round(summary.best[METRIC], 4) == named  # the closing table's


def _two_ranks(folder: Path, cadence: dict[str, Any]) -> None:
    run(folder, 2, **cadence)


# The ranks share a validation out in one way, whenever it comes.
@pytest.mark.parametrize(
    "cadence",
    [pytest.param(cadence, marks=pytest.mark.slow) if cadence in CADENCES[1:4] else cadence for cadence in CADENCES],
    ids=str,
)
def test_the_best_checkpoint_of_two_ranks_has_its_metric(tmp_path: Path, cadence: dict[str, Any], away: Any) -> None:
    away(_two_ranks, tmp_path, cadence)
    agrees(tmp_path)


@pytest.mark.parametrize("cadence", [{}, {"val_check_interval": 0.4}, {"val_check_interval": 0.5}], ids=str)
@pytest.mark.parametrize("average", [{}, {"update_starting_at_epoch": 1}], ids=str)
def test_averaged_weights_are_saved_as_they_were_validated(tmp_path: Path, cadence: Any, average: Any) -> None:
    run(tmp_path, callbacks=(EMAWeightAveraging(decay=0.8, **average),), **cadence)
    agrees(tmp_path)


@pytest.mark.parametrize("cadence", [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 0.4}], ids=str)
def test_a_run_goes_on_from_its_best_checkpoint_as_if_it_had_not_stopped(tmp_path: Path, cadence: Any) -> None:
    whole = run(tmp_path / "whole", **cadence)
    (path,) = (tmp_path / "whole").glob("best-*.ckpt")
    again = Trainer(
        **{**QUIET, "enable_checkpointing": True, "max_epochs": 4, **cadence},
        callbacks=[StepSeed(3), RunSummary(), best(tmp_path / "again")],
    )
    other = module()
    again.fit(other, FewDigits(), ckpt_path=path, weights_only=True)
    assert again.global_step == whole.global_step
    for key, value in whole.lightning_module.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert again.callbacks[1].best == whole.callbacks[1].best
    assert Path(again.checkpoint_callback.best_model_path) == path  # nothing was better afterwards


class Scores(Foreign):
    """Validates to given scores, epoch by epoch."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", self.scores[self.current_epoch])


def names(folder: Path, scores: list[float], monitor: str = "val/score", **kwargs: Any) -> list[str]:
    options = {"monitor": monitor, **{key: kwargs.pop(key) for key in ("filename", "save_top_k") if key in kwargs}}
    callbacks = best(folder, **options)
    fitted = trainer(max_epochs=len(scores), callbacks=callbacks, enable_checkpointing=True, **kwargs)
    fitted.fit(Scores(scores), toy_loader(), toy_loader(8))
    return sorted(path.name for path in folder.glob("*"))


def test_a_value_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    nan = float("nan")
    assert names(tmp_path / "a", [nan, 0.5, nan]) == ["best-epoch=1-score=0.5000.ckpt"]
    assert names(tmp_path / "b", [nan, nan]) == []


def test_names_of_several_best_validations_are_told_apart(tmp_path: Path) -> None:
    kept = names(tmp_path, [0.5, 0.25, 0.75], save_top_k=-1, val_check_interval=0.5)
    assert kept[0] == "best-epoch=0-score=0.5000-v1.ckpt"
    assert len(kept) == 6


def test_a_metric_of_training_is_compared_at_every_epochs_end(tmp_path: Path) -> None:
    (name,) = names(tmp_path, [0.5] * 3, "train/loss", val_check_interval=0.5, save_top_k=1)
    assert re.fullmatch(r"best-epoch=\d-loss=\d\.\d{4}\.ckpt", name)
    assert names(tmp_path / "own", [0.5, 0.75], filename="mine-{val/score:.2f}")[0].startswith("mine-")


def test_other_arguments_are_those_of_lightnings_own(tmp_path: Path) -> None:
    callback = BestCheckpoint(dirpath=tmp_path, every_n_train_steps=3)
    assert (callback.within, callback._every_n_train_steps) == ({"every_n_train_steps": 3}, 3)
    assert isinstance(callback, ModelCheckpoint)
    assert best(tmp_path, every_n_train_steps=3)._every_n_train_steps == 0
