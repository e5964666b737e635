"""Rows that become other samples are said, and no soft label of another sample is trained on."""

from typing import Any
import warnings

from lightning.pytorch import LightningDataModule, Trainer
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split
from toys import QUIET, Foreign, toy_data, trainer

from lit_distill.callbacks import LearningWithRetrospection, ProgressiveSelfDistillation
from lit_distill.datamodules import IndexedDataset, KeyedSampler

SAID = r"in epoch \d, \d+ of {} rows had another target than before"


def shuffled(dataset: Dataset[Any], batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size, shuffle=True)


class Split(LightningDataModule):
    """Splits the data anew whenever it is asked for a loader, with the fault or without."""

    def __init__(self, anew: bool = True, soft: bool = False) -> None:
        super().__init__()
        images, target = toy_data(60).tensors
        self.data = TensorDataset(images, torch.eye(4)[target].lerp(images[:, :4].softmax(1), 0.5) if soft else target)
        self.anew, self.calls = anew, 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.calls += self.anew
        part = random_split(self.data, [40, 20], torch.Generator().manual_seed(self.calls))[0]
        return shuffled(IndexedDataset(part))


class Permuted(Foreign):
    """Permutes the batch in the step, but not its index."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        order = torch.randperm(len(batch[0]))
        loss: Tensor = self.criterion(self.net(batch[0][order]), batch[1][order])
        return loss


@pytest.mark.parametrize("soft", [False, True])
def test_a_split_that_is_drawn_anew_at_each_reload_is_said(soft: bool) -> None:
    callback = ProgressiveSelfDistillation(soft_targets=soft)
    run = trainer(max_epochs=4, callbacks=callback, reload_dataloaders_every_n_epochs=1)
    with pytest.warns(UserWarning, match=SAID.format(40)) as caught:
        run.fit(Foreign(), datamodule=Split(soft=soft))
    messages = [str(warning.message) for warning in caught if "another target" in str(warning.message)]
    assert [line.partition(",")[0] for line in messages] == ["in epoch 1", "in epoch 2", "in epoch 3"]
    assert run.callback_metrics["pskd/unrecorded"] > (0.9 if soft else 0.5)


@pytest.mark.parametrize("soft", [False, True])
def test_a_split_that_stays_is_not(soft: bool) -> None:
    run = trainer(max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.callbacks.append(ProgressiveSelfDistillation(soft_targets=soft))
    run.fit(Foreign(), datamodule=Split(anew=False, soft=soft))
    assert run.callback_metrics["pskd/unrecorded"] == 0


def test_a_step_that_permutes_the_batch_is_said() -> None:
    callback = LearningWithRetrospection(1)
    run = trainer(max_epochs=4, callbacks=callback)
    with pytest.warns(UserWarning, match=SAID.format(30)) as caught:
        run.fit(Permuted(), shuffled(IndexedDataset(toy_data())))
    assert any(str(warning.message).startswith("in epoch 1,") for warning in caught)
    assert run.callback_metrics["retrospection/unrecorded"] > 0.5


def test_a_row_that_is_labelled_anew_once_is_said_once_and_remembered_anew(tmp_path) -> None:
    images, target = toy_data().tensors
    first = trainer(max_epochs=2, callbacks=ProgressiveSelfDistillation(max_epochs=5))
    first.fit(Foreign(), shuffled(IndexedDataset(TensorDataset(images, target))))
    first.save_checkpoint(tmp_path / "a.ckpt")
    target = target.clone()
    target[:3] = (target[:3] + 1) % 4
    run = trainer(max_epochs=5, callbacks=ProgressiveSelfDistillation(max_epochs=5))
    loader = shuffled(IndexedDataset(TensorDataset(images, target)))
    with pytest.warns(UserWarning, match="in epoch 2, 3 of 30 rows had another target") as caught:
        run.fit(Foreign(), loader, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert sum("another target" in str(warning.message) for warning in caught) == 1
    assert run.callback_metrics["pskd/unrecorded"] == 0


def ranks_report(folder: Any, ranks: int) -> Any:
    """Train rows that become other samples in epoch 2; return what each rank forgets and the tables."""

    class Swapped(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            target = torch.where((batch.index < 6) & (self.current_epoch >= 2), (batch.target + 1) % 4, batch.target)
            return super().training_step((batch.image, target), batch_idx)

    class Watch(ProgressiveSelfDistillation):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            with warnings.catch_warnings(record=True, action="always") as caught:
                super().on_train_epoch_end(trainer, pl_module)
            messages = [str(warning.message).partition(" than")[0] for warning in caught]
            path = f"{folder}/{trainer.current_epoch}-{trainer.global_rank}.pt"
            torch.save((self.memory.state_dict()["epochs"].clone(), messages), path)

    folder.mkdir()
    data = IndexedDataset(toy_data())
    strategy = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}
    run = Trainer(**{**QUIET, **strategy, "max_epochs": 4, "callbacks": Watch()})
    run.fit(Swapped(), DataLoader(data, 6 // ranks, sampler=KeyedSampler(data, 3)))
    return [[torch.load(f"{folder}/{epoch}-{rank}.pt") for epoch in range(4)] for rank in range(ranks)]


def test_two_ranks_notice_and_forget_what_one_process_does(tmp_path) -> None:
    (one,) = ranks_report(tmp_path / "one", 1)
    assert [messages for _, messages in one] == [[], [], ["in epoch 2, 6 of 30 rows had another target"], []]
    assert (one[2][0][:, :6] == 0).all()
    assert (one[2][0][:, 6:].amax(0) == 3).all()
    for rank, epochs in enumerate(ranks_report(tmp_path / "two", 2)):
        for epoch in range(4):
            assert torch.equal(epochs[epoch][0], one[epoch][0])
            assert epochs[epoch][1] == (one[epoch][1] if rank == 0 else [])


def test_joined_data_sets_that_share_rows_are_refused_before_the_first_step() -> None:
    joined: Any = ConcatDataset([IndexedDataset(toy_data()), IndexedDataset(toy_data(20))])
    with pytest.raises(ValueError, match=r"joins 2 data sets.* wrap the whole, IndexedDataset\(ConcatDataset"):
        trainer(max_epochs=2, callbacks=LearningWithRetrospection(1)).fit(Foreign(), shuffled(joined))
    with pytest.raises(ValueError, match="share rows: wrap the whole"):
        KeyedSampler(joined)
    same = IndexedDataset(toy_data())  # twice the same sample is not another
    trainer(max_epochs=2, callbacks=LearningWithRetrospection(1, num_samples=30)).fit(
        Foreign(), shuffled(ConcatDataset([same, Subset(same, [3, 4])]))
    )


def test_a_part_of_an_indexed_data_set_names_its_cure() -> None:
    part, _ = random_split(IndexedDataset(toy_data(60)), [30, 30], torch.Generator().manual_seed(0))
    message = r"rows are those of the whole, 0..59: wrap the part, IndexedDataset\(part\).*or set num_samples=60"
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=2, callbacks=LearningWithRetrospection(1)).fit(Foreign(), shuffled(part))
    with pytest.raises(ValueError, match=r"wrap the part, IndexedDataset\(part\)"):
        KeyedSampler(part)  # such samples cannot be read by (view, index)
    callback = LearningWithRetrospection(1, num_samples=60)
    run = trainer(max_epochs=3, callbacks=callback)
    run.fit(Foreign(), shuffled(part))
    assert run.callback_metrics["retrospection/unrecorded"] == 0
    first = Subset(IndexedDataset(toy_data(60)), range(30))  # whose rows are in the table
    trainer(max_epochs=2, callbacks=LearningWithRetrospection(1)).fit(Foreign(), shuffled(first))


class Manual(Foreign):
    """Steps an optimizer that Lightning does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        super().training_step(batch, batch_idx).backward()
        optimizer.step()


def test_a_resume_whose_global_step_is_0_keeps_the_soft_labels(tmp_path) -> None:
    shares = []

    class Watch(LearningWithRetrospection):
        def count(self, recorded: Tensor, **rows: Tensor) -> None:
            super().count(recorded, **rows)
            shares.append(recorded.float().mean().item())

    first = trainer(max_epochs=2, callbacks=Watch(1, max_epochs=4))
    first.fit(Manual(), shuffled(IndexedDataset(toy_data())))
    assert first.global_step == 0
    first.save_checkpoint(tmp_path / "a.ckpt")
    run = trainer(max_epochs=4, callbacks=Watch(1))
    run.fit(Manual(), shuffled(IndexedDataset(toy_data())), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert shares
    assert set(shares) == {1.0}


def test_a_new_run_forgets_an_older_one_though_its_global_step_is_0() -> None:
    callback = LearningWithRetrospection(1, max_epochs=4)
    trainer(max_epochs=2, callbacks=callback).fit(Manual(), shuffled(IndexedDataset(toy_data())))
    run = trainer(max_epochs=1, callbacks=callback)
    run.fit(Manual(), shuffled(IndexedDataset(toy_data(12))))
    assert callback.memory is not None
    assert callback.memory.num_samples == 12
