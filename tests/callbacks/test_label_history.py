"""The sums of a run against what its network said, by hand; and that ranks, repeats and a resume change nothing."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys import Foreign, toy_data, toy_loader, trainer

from lit_distill.callbacks import (
    LearningWithRetrospection,
    ProgressiveSelfDistillation,
    SelfAdaptiveTraining,
    SoftLabelCallback,
    SoftLabelMemory,
)
from lit_distill.callbacks.label_history import LabelHistory
from lit_distill.datamodules import IndexedDataset, KeyedSampler

EPOCHS = 4


def by_hand(epochs: list[dict[int, Tensor]], labels: list[int], classes: int) -> tuple[Tensor, Tensor]:
    """Return sums and counts of soft labels by row, epoch by epoch."""
    sums, counts = torch.zeros(len(labels), 4), torch.zeros(len(labels), dtype=torch.int32)
    for soft_labels in epochs:
        of_class = [[p[k] for row, p in soft_labels.items() if labels[row] == k] for k in range(classes)]
        thresholds = [torch.stack(values).mean() if values else torch.tensor(2.0) for values in of_class]
        for row, p in soft_labels.items():
            label = labels[row]
            confident = [k for k in range(classes) if p[k] >= thresholds[k]]
            likeliest = max(confident, key=lambda k, p=p: p[k], default=label)
            margin = min(p[label].log() - p[k].log() for k in range(classes) if k != label)
            sums[row] += torch.tensor([p[label], margin, len(confident) > 0, likeliest != label])
            counts[row] += 1
    return sums, counts


def state(history: LabelHistory) -> tuple[Tensor, Tensor]:
    return history.state_dict()["label_sums"], history.state_dict()["label_counts"]


def assert_close(history: LabelHistory, epochs: list[dict[int, Tensor]], labels: list[int], **kwargs: float) -> None:
    sums, counts = by_hand(epochs, labels, len(next(iter(epochs[0].values()))))
    torch.testing.assert_close(state(history)[0], sums, **{"rtol": 1e-4, "atol": 1e-5, **kwargs})
    assert torch.equal(state(history)[1], counts)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_adds_up_what_an_epoch_recorded_at_temperature_1(monkeypatch, temperature: float, chunk: int) -> None:
    monkeypatch.setattr("lit_distill.callbacks.label_history._CHUNK", chunk)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    memory, history = SoftLabelMemory(7, 3, dtype=torch.float32), LabelHistory(7)
    epochs = []
    for epoch in (1, 3, 4):
        index, logits = torch.randperm(7)[:5], 3 * torch.randn(5, 3)
        memory.record(index, torch.softmax(logits / temperature, dim=1), epoch)
        history.add(memory, labels, epoch, temperature)
        history.add(memory, labels, epoch + 50, temperature)  # nothing was recorded in it
        epochs.append(dict(zip(index.tolist(), torch.softmax(logits, dim=1), strict=True)))
    assert_close(history, epochs, labels.tolist())
    torch.testing.assert_close(history.probability, state(history)[0][:, 0] / state(history)[1])
    torch.testing.assert_close(history.margin, state(history)[0][:, 1] / state(history)[1])


def test_a_row_without_a_class_is_left_out() -> None:
    memory, history = SoftLabelMemory(4, 2), LabelHistory(4)
    memory.record(torch.arange(4), torch.full((4, 2), 0.5), epoch=1)
    history.add(memory, torch.tensor([-5, 0, 2, 2**29]), epoch=1)
    assert history.counts.tolist() == [0, 1, 0, 0]
    assert history.probability.isnan().tolist() == [True, False, True, True]


def test_the_largest_probabilities_alone_are_enough_unless_the_label_is_not_among_them() -> None:
    soft_labels = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    histories = []
    for top_k in (None, 2):
        memory = SoftLabelMemory(2, 4, top_k, torch.float32)
        memory.record(torch.arange(2), soft_labels, epoch=1)
        histories.append(LabelHistory(2))
        histories[-1].add(memory, torch.tensor([1, 0]), epoch=1)
    whole, largest = histories
    assert largest.probability.tolist() == pytest.approx([0.3, 0.15])  # the rest, spread evenly
    assert whole.probability.tolist() == pytest.approx([0.3, 0.1])
    assert largest.margin[0] == pytest.approx(whole.margin[0])


def test_the_number_of_wrong_labels_is_that_of_confident_learning() -> None:
    """Rows that are confident of no class have the share of those of their label that are confident of one."""
    history, labels = LabelHistory(6), torch.tensor([0, 0, 0, 0, 1, 1])
    history._sums[:, 2] = torch.tensor([2, 2, 2, 0, 2, 2])  # all but one row, in two epochs
    history._sums[:, 3] = torch.tensor([2, 0, 0, 0, 1, 0])
    history._counts += 2
    assert history.wrong_labels(labels) == pytest.approx(4 * 2 / 6 + 2 * 1 / 4)
    assert LabelHistory(6).wrong_labels(labels) == 0


def test_forgets_moves_and_round_trips(tmp_path) -> None:
    memory, history = SoftLabelMemory(3, 2), LabelHistory(3)
    memory.record(torch.arange(3), torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), epoch=1)
    history.add(memory, torch.tensor([0, 0, 1]), epoch=1)
    sums, counts = (part.clone() for part in state(history))
    torch.save(history.state_dict(), tmp_path / "a.pt")
    again = LabelHistory.from_state_dict(torch.load(tmp_path / "a.pt", weights_only=True)).to("cpu")
    assert all(map(torch.equal, state(again), (sums, counts)))
    moved = history.rearranged(torch.tensor([2, -1, 0, 1]))
    assert torch.equal(state(moved)[0], torch.stack([sums[2], torch.zeros(4), sums[0], sums[1]]))
    assert moved.counts.tolist() == [1, 0, 1, 1]
    history.forget(torch.tensor([False, True, False]))
    assert history.counts.tolist() == [1, 0, 1]
    assert torch.equal(state(history)[0], sums * torch.tensor([[1.0], [0.0], [1.0]]))


class Heard(Callback):
    """Keeps the softmax of each row's first prediction in each epoch, in the order in which batches come."""

    def __init__(self) -> None:
        self.epochs: list[dict[int, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        def hear(_: nn.Module, args: tuple[Tensor, Tensor], __: Tensor) -> None:
            self.logits = args[0].detach()

        pl_module.criterion.register_forward_hook(hear)

    def on_train_epoch_start(self, *args: Any) -> None:
        self.epochs.append({})

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for row, p in zip(batch[2].tolist(), self.logits.softmax(dim=1), strict=True):
            self.epochs[-1].setdefault(row, p)


def fit(callback: SoftLabelCallback, loader: Any = None, **kwargs: Any) -> list[dict[int, Tensor]]:
    heard = Heard()
    run = trainer(**{"max_epochs": EPOCHS, "callbacks": [callback, heard], **kwargs})
    run.fit(Foreign(), toy_loader() if loader is None else loader)
    return heard.epochs


def labels_of_toys() -> list[int]:
    return toy_data().tensors[1].tolist()


def test_a_run_adds_up_what_its_network_said() -> None:
    callback = ProgressiveSelfDistillation(dtype="float32")
    epochs = fit(callback)
    assert_close(callback.history, epochs, labels_of_toys())
    callback = LearningWithRetrospection(2, dtype="float32")
    epochs = fit(callback)[1::2]
    assert_close(callback.history, epochs, labels_of_toys(), atol=1e-4)
    half = LearningWithRetrospection(2)
    epochs = fit(half)[1::2]
    assert_close(half.history, epochs, labels_of_toys(), rtol=1e-2, atol=1e-2)


def test_self_adaptive_training_adds_up_its_targets() -> None:
    callback = SelfAdaptiveTraining(EPOCHS - 1, momentum=0.0, dtype="float32")
    epochs = fit(callback)[-1:]
    assert_close(callback.history, epochs, labels_of_toys())


@pytest.mark.parametrize("repeats", [2, 3])
def test_of_a_row_that_comes_again_in_an_epoch_the_first_prediction_counts_once(repeats: int) -> None:
    data = IndexedDataset(toy_data())
    loader = DataLoader(data, 8, sampler=KeyedSampler(data, 3, repeats=repeats))
    callback = ProgressiveSelfDistillation(dtype="float32")
    epochs = fit(callback, loader)
    assert all(len(epoch) < 30 for epoch in epochs)
    assert_close(callback.history, epochs, labels_of_toys())


class Cut(Callback):
    """Saves a checkpoint after a step, and one when the run ends."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


# At the end of an epoch whose sums are not made yet; `test_resume.py` cuts runs off within an epoch.
@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_ends_with_the_same_sums(tmp_path, step: int) -> None:
    whole = LearningWithRetrospection(2)
    trainer(max_epochs=EPOCHS, callbacks=[whole, Cut(tmp_path / "a.ckpt", step)]).fit(Foreign(), toy_loader())
    resumed = LearningWithRetrospection(2)
    again = trainer(max_epochs=EPOCHS, callbacks=resumed)
    again.fit(Foreign(seed=9), toy_loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert whole.history.counts.tolist() == [2] * 30
    assert all(map(torch.equal, state(resumed.history), state(whole.history)))


def test_an_epoch_that_a_limit_cuts_off_is_not_added_up() -> None:
    callback = ProgressiveSelfDistillation()
    loader = toy_loader()
    trainer(max_epochs=2, max_steps=len(loader) + 1, callbacks=callback).fit(Foreign(), loader)
    assert callback.history.counts.tolist() == [1] * 30


def test_a_checkpoint_of_an_older_version_goes_on_without_its_first_epochs(tmp_path) -> None:
    callback = ProgressiveSelfDistillation()
    run = trainer(max_epochs=2, callbacks=callback)
    run.fit(Foreign(), toy_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for kept in content["callbacks"].values():
        for name in ("label_sums", "label_counts"):
            kept.pop(name, None)
    torch.save(content, tmp_path / "old.ckpt")
    resumed = ProgressiveSelfDistillation()
    trainer(max_epochs=5, callbacks=resumed).fit(
        Foreign(), toy_loader(), ckpt_path=tmp_path / "old.ckpt", weights_only=True
    )
    assert resumed.history.counts.tolist() == [3] * 30


def test_a_row_with_another_label_begins_anew() -> None:
    data = toy_data()
    callback = ProgressiveSelfDistillation()

    class Relabel(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                data.tensors[1][5] = (data.tensors[1][5] + 1) % 4

    indexed = IndexedDataset(data)
    loader = DataLoader(indexed, 8, sampler=KeyedSampler(indexed, 3))
    with pytest.warns(UserWarning, match="1 of 30 rows had another target than before"):
        trainer(max_epochs=EPOCHS, callbacks=[callback, Relabel()]).fit(Foreign(), loader)
    assert callback.history.counts.tolist() == [EPOCHS if row != 5 else 1 for row in range(30)]
    assert callback.targets.known[5] == data.tensors[1][5]


def test_targets_of_probabilities_are_no_labels_and_count_nowhere() -> None:
    class Soft(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0], nn.functional.one_hot(batch[1], 4).float()), batch_idx)

    callback = ProgressiveSelfDistillation(soft_targets=True)
    trainer(max_epochs=2, callbacks=callback).fit(Soft(), toy_loader())
    assert callback.history.counts.tolist() == [0] * 30
