"""A run whose weights are lost ends with an error, and its checkpoints are from before."""

from pathlib import Path
from typing import Any
import warnings

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import pytest
import torch
from toys import Foreign, toy_loader, trainer

from lit_distill.callbacks import DivergenceCheck


class Diverges(Foreign):
    """Has a loss that is not finite in one step, which is the second epoch's third unless told otherwise."""

    def __init__(self, at: tuple[int, int] = (1, 2), value: float = float("nan"), rank: int = 0) -> None:
        super().__init__()
        self.at, self.value, self.rank = at, value, rank

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        broken = (self.current_epoch, batch_idx) == self.at and self.global_rank == self.rank
        return loss * self.value if broken else loss


def fit(module: Any, *callbacks: Any, **kwargs: Any) -> Trainer:
    run = trainer(max_epochs=3, callbacks=[DivergenceCheck(), *callbacks], **kwargs)
    run.fit(module, toy_loader(), toy_loader(8))
    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_run_ends_at_the_step_and_names_it(value: float) -> None:
    module = Diverges(value=value)
    with pytest.raises(
        ValueError, match=r"diverged: in epoch 1, batch 2 \(counted from 0\) the loss became NaN"
    ) as ended:
        fit(module)
    assert "(net.0.weight)" in str(ended.value)
    assert "no checkpoint was saved before" in str(ended.value)
    assert "\n" not in str(ended.value)
    assert module.trainer.global_step == 4 + 3


def test_no_checkpoint_holds_the_lost_weights(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    with pytest.raises(ValueError, match=r"the last checkpoint before is \S*last.ckpt$"):
        fit(Diverges(), every, last, enable_checkpointing=True)
    saved = {path.name: torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")}
    assert sorted(saved) == ["last.ckpt", *(f"step={step}.ckpt" for step in range(1, 7))]
    for checkpoint in saved.values():
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


class Overflows(Foreign):
    """Loses its weights in the last step of an epoch, while its loss is finite."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_step == 3:
            self.net[0].bias.grad.fill_(float("inf"))


def test_weights_are_looked_at_before_a_checkpoint_and_at_the_epochs_end(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"in epoch 0 \(counted from 0\) the weights became NaN or infinite \(net\.0\.bias\)"
    ):
        fit(Overflows(), limit_val_batches=0)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(ValueError, match=r"in epoch 0"):
        fit(Overflows(), every, enable_checkpointing=True)
    assert not (tmp_path / "step=4.ckpt").exists()


class Skips(Diverges):
    """Skips the steps whose gradients are not finite, as a gradient scaler does."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if any(not p.grad.isfinite().all() for p in self.parameters()):
            optimizer.zero_grad()


def test_a_step_that_is_skipped_is_a_warning_once_an_epoch() -> None:
    module = Skips()
    module.training_step = lambda batch, batch_idx: (  # type: ignore[method-assign]
        Foreign.training_step(module, batch, batch_idx) * (float("nan") if module.current_epoch else 1)
    )
    with warnings.catch_warnings(record=True, action="always") as caught:
        run = fit(module)
    assert run.current_epoch == 3
    said = [str(w.message) for w in caught if "NaN or infinite" in str(w.message)]
    assert [line.partition(" in ")[2].partition(" (")[0] for line in said] == ["epoch 1, batch 0", "epoch 2, batch 0"]


def test_a_run_that_is_well_is_left_alone() -> None:
    with warnings.catch_warnings(action="error", category=UserWarning):
        plain, checked = Foreign(), Foreign()
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="GPU available but not used")
        trainer(max_epochs=2).fit(plain, toy_loader(), toy_loader(8))
        trainer(max_epochs=2, callbacks=DivergenceCheck()).fit(checked, toy_loader(), toy_loader(8))
    for ours, theirs in zip(checked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_step_reads_nothing_on_the_host_that_the_device_has_yet_to_compute(monkeypatch: Any) -> None:
    check, module, run = DivergenceCheck(), Foreign(), trainer(max_epochs=1)
    run.fit(module, toy_loader())
    check.on_train_start(run, module)

    def waits(self: torch.Tensor, *args: Any) -> Any:
        raise AssertionError("a value was read on the host")

    # Not `numpy`, which is of host memory alone.
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    check.on_train_batch_end(run, module, {"loss": torch.tensor(1.0)}, None, 0)
    monkeypatch.undo()
    assert check._first_on_host == check._first


def _on_two_ranks(folder: Path) -> None:
    module = Diverges(at=(1, 0), rank=1)  # the first of two batches; in the second, both ranks have lost weights
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    try:
        fit(module, last, enable_checkpointing=True, devices=2, strategy="ddp_fork")
    except Exception as error:  # the launcher's, with the rank's message in it
        (folder / "said.txt").write_text(str(error))


def test_ranks_end_together(tmp_path: Path, away: Any) -> None:
    away(_on_two_ranks, tmp_path)
    assert "the run has diverged: in epoch 1, batch 0 (counted" in (tmp_path / "said.txt").read_text()
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
