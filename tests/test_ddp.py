"""Two processes train as one does: the same losses, the same weights, and a teacher that nobody synchronises."""

from typing import Any

from lightning.pytorch import Callback, Trainer
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from toys import QUIET

from lit_distill import DigitsCNN, DistillableViT, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.callbacks.exchange import RowExchange
from lit_distill.datamodules import DigitsDataModule, KeyedSampler


class FewDigits(DigitsDataModule):
    samples = 48

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set = Subset(self.train_set, range(self.samples))


class Save(Callback):
    """Write what the run ended with, from every rank."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        values = {"teacher": pl_module.teacher.state_dict(), "student": pl_module.student.state_dict()}
        torch.save(values | {"metrics": dict(trainer.callback_metrics)}, f"{self.folder}/{trainer.global_rank}.pt")


def run(folder: Any, ranks: int, distillation: torch.nn.Module | None) -> list[dict[str, Any]]:
    folder.mkdir()
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    module = LitDistiller(
        student, DigitsCNN(), None, distillation, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scheduler=None
    )
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    options = {**QUIET, **strategy, "max_epochs": 3, "callbacks": Save(folder), "use_distributed_sampler": True}
    Trainer(**options).fit(module, datamodule=FewDigits(batch_size=16 // ranks, eval_batch_size=180, seed=3))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")  # epoch means of the ranks, here by rank
@pytest.mark.parametrize(
    "distillation", [HardDistillation(), pytest.param(SoftDistillation(3.0), marks=pytest.mark.slow), None]
)
def test_two_ranks_equal_one_process(tmp_path, distillation: torch.nn.Module | None) -> None:
    (one,) = run(tmp_path / "one", 1, distillation)
    two = run(tmp_path / "two", 2, distillation)
    for rank in two:
        for key, value in one["student"].items():
            torch.testing.assert_close(rank["student"][key], value, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(rank["teacher"][key], value) for key, value in one["teacher"].items())
        for name in ("val/nll", "val/accuracy_mean_probs", "val/agreement", "train/loss"):
            torch.testing.assert_close(rank["metrics"][name], one["metrics"][name], rtol=1e-4, atol=1e-4)


class Watch(LearningWithRetrospection):
    """Counts the reads that found nothing, and keeps the table that each rank ends with."""

    def __init__(self, folder: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder, self.missing = folder, 0

    def recall(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        soft_labels, recorded = super().recall(epoch)
        self.missing += int((~recorded).sum())
        return soft_labels, recorded

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        table = {**self.memory.state_dict(), **self.history.state_dict()}
        tables = {"table": table, "student": pl_module.student.state_dict()}
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("retro")}
        torch.save({**tables, "missing": self.missing, "metrics": metrics}, f"{self.folder}/{trainer.global_rank}.pt")


def retrospect(
    folder: Any, ranks: int, samples: int = 48, kind: type[Watch] = Watch, epochs: int = 5, **kwargs: Any
) -> list[dict[str, Any]]:
    folder.mkdir()
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    module = LitDistiller(student, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scheduler=None)
    data = FewDigits(batch_size=16 // ranks, seed=3)
    data.samples = samples
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    callback = kind(folder, **{"interval": 2, "max_epochs": 6, **kwargs})
    Trainer(**{**QUIET, **strategy, "max_epochs": epochs, "limit_val_batches": 0, "callbacks": callback}).fit(
        module, data
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.mark.parametrize(
    ("dtype", "top_k"),
    [
        ("float32", None),
        ("float16", 3),
        pytest.param("float16", None, marks=pytest.mark.slow),
        pytest.param("float32", 3, marks=pytest.mark.slow),
    ],
)
def test_retrospection_on_one_two_and_four_ranks_is_the_same(tmp_path, dtype: str, top_k: int | None) -> None:
    (one,) = retrospect(tmp_path / "1", 1, dtype=dtype, top_k=top_k)
    tolerance = 1e-5 if dtype == "float32" else 1e-3
    for ranks in (2, 4):
        several = retrospect(tmp_path / str(ranks), ranks, dtype=dtype, top_k=top_k)
        for rank in several:
            for key, value in one["student"].items():
                torch.testing.assert_close(rank["student"][key], value, rtol=0, atol=tolerance)
            assert rank["missing"] == 0
            for name, value in rank["table"].items():
                assert name == "num_classes" or torch.equal(value, several[0]["table"][name])
            for name, value in rank["metrics"].items():
                torch.testing.assert_close(value, one["metrics"][name], rtol=1e-4, atol=1e-6)
        for name in ("epochs", "label_counts"):
            assert torch.equal(several[0]["table"][name], one["table"][name])
        sums = [run["table"]["label_sums"] for run in (several[0], one)]
        torch.testing.assert_close(*sums, rtol=0, atol=100 * tolerance)
        # The memory is read: without it, or with that of another interval, the weights are elsewhere.
    (other,) = retrospect(tmp_path / "other", 1, dtype=dtype, top_k=top_k, interval=1)
    assert max((other["student"][k] - v).abs().max() for k, v in one["student"].items()) > 5 * tolerance


class Keep(Watch):
    """Keeps what each step of the first epoch asked to be remembered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.labels: list[torch.Tensor] = []

    def remember(self, soft_labels: torch.Tensor, epoch: int) -> None:
        super().remember(soft_labels, epoch)
        self.labels += [soft_labels] if epoch == 1 else []

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        state = {"table": self.memory.state_dict(), "labels": torch.cat(self.labels)}
        torch.save(state, f"{self.folder}/{trainer.global_rank}.pt")


def test_of_a_sample_that_pads_the_epoch_the_earliest_place_is_remembered(tmp_path) -> None:
    """45 samples on 4 ranks are 48: the first three of the epoch's order come again at its end."""
    order = [index for _, index in KeyedSampler(range(45), seed=3, num_replicas=1, rank=0)]
    padded = torch.tensor(order + order[:3])
    ranks = retrospect(tmp_path / "4", 4, 45, Keep, 2, interval=1, dtype="float32")
    labels = torch.stack([rank["labels"] for rank in ranks], dim=1).flatten(0, 1)  # in the global order
    rows, epochs = ranks[0]["table"]["rows"], ranks[0]["table"]["epochs"]
    assert epochs.sort(dim=0).values.unique(dim=1).flatten().tolist() == [1, 2]
    for row in range(45):
        slot = int((epochs[:, row] == 1).nonzero())
        assert torch.equal(rows[slot, row], labels[(padded == row).nonzero()[0, 0]])
    again = [(padded == row).nonzero().flatten() for row in order[:3]]
    assert all(not torch.equal(labels[first], labels[last]) for first, last in again)  # the rule makes a difference
    for rank in ranks:
        assert all(torch.equal(rank["table"][name], ranks[0]["table"][name]) for name in ("rows", "epochs"))


def test_an_index_outside_on_one_rank_ends_all_before_anything_is_exchanged(tmp_path, monkeypatch) -> None:
    """As on a GPU, where the host does not know the index."""
    monkeypatch.setattr("lit_distill.callbacks.soft_labels.index_of", lambda batch, *_: batch.index)  # unchecked

    monkeypatch.setattr(RowExchange, "run", lambda *_: (tmp_path / "exchanged").touch())
    with pytest.raises(Exception, match=r"index must be in 0..19, the training set's rows: \d+ were outside"):
        retrospect(tmp_path / "2", 2, 48, interval=1, num_samples=20)
    assert not (tmp_path / "exchanged").exists()
    retrospect(tmp_path / "again", 2, 48, interval=1)
    assert (tmp_path / "exchanged").exists()


def classifier() -> LitDistiller:
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    return LitDistiller(student, DigitsCNN(), None, HardDistillation(), scheduler=None)


class FewHeldOut(DigitsDataModule):
    """Several validation sets of a few rows each, in plain loaders that know no rows if need be."""

    def __init__(self, counts: tuple[int, ...], plain: bool) -> None:
        super().__init__(batch_size=16, eval_batch_size=2, seed=3)
        self.counts, self.plain = counts, plain

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set = Subset(self.train_set, range(32))
        self.held_out = self.val_set

    def val_dataloader(self) -> Any:
        loaders = []
        for count in self.counts:
            self.val_set = Subset(self.held_out, range(count))
            loaders.append(DataLoader(self.val_set, 2) if self.plain else super().val_dataloader())
        return loaders if len(loaders) > 1 else loaders[0]

    test_dataloader = val_dataloader


def evaluated(folder: Any, ranks: int, counts: tuple[int, ...], plain: bool, **kwargs: Any) -> list[dict[str, Any]]:
    """What each rank logs in `fit`, `validate` and `test`."""
    folder.mkdir()
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}

    class Keep(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                torch.save(
                    dict(trainer.callback_metrics), f"{folder}/{trainer.state.fn.value}-{trainer.global_rank}.pt"
                )

        def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.on_validation_end(trainer, pl_module)

    run = Trainer(**{**QUIET, **strategy, "max_epochs": 1, "limit_train_batches": 1, "callbacks": Keep(), **kwargs})
    run.fit(classifier(), FewHeldOut(counts, plain))
    run.validate(classifier(), FewHeldOut(counts, plain), verbose=False)
    run.test(classifier(), FewHeldOut(counts, plain), verbose=False)
    parts = [{name: torch.load(f"{folder}/{name}-{rank}.pt") for name in NAMES} for rank in range(ranks)]
    return [{(name, key): v for name in NAMES for key, v in part[name].items() if "/" in key} for part in parts]


NAMES = ("fit", "validate", "test")


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
@pytest.mark.parametrize(
    ("ranks", "counts", "plain"),
    [
        pytest.param(2, (5,), False, marks=pytest.mark.slow),
        (2, (1,), False),
        (2, (1,), True),
        (3, (8,), True),
        (3, (4,), False),
        (2, (5, 3), True),
        pytest.param(2, (5,), True, marks=pytest.mark.slow),
        pytest.param(3, (8,), False, marks=pytest.mark.slow),
        pytest.param(3, (4,), True, marks=pytest.mark.slow),
        pytest.param(2, (5, 3), False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ranks_measure_what_one_process_measures(tmp_path, ranks: int, counts: tuple[int, ...], plain: bool) -> None:
    """Sets that the ranks cannot share evenly, down to one sample for two ranks; a sample that pads counts nowhere."""
    (one,) = evaluated(tmp_path / "one", 1, counts, plain)
    data, module = FewHeldOut(counts, plain), classifier().eval()
    data.setup()
    right = [
        module.predict_step(torch.stack([data.held_out[i][0] for i in range(count)])).argmax(1)
        == torch.tensor([data.held_out[i][1] for i in range(count)])
        for count in counts
    ]
    accuracy = torch.cat(right).float().mean().item()
    assert one["validate", "val/accuracy_mean_probs"].item() == pytest.approx(accuracy)
    assert {key for _, key in one} > {"val/nll", "val/ece", "val/agreement", "test/nll", "test/teacher_accuracy"}
    for rank in evaluated(tmp_path / "several", ranks, counts, plain):
        assert rank.keys() == one.keys()
        for key, value in one.items():
            if "train/" not in key[1] and key[0] != "fit":
                torch.testing.assert_close(rank[key], value, rtol=1e-6, atol=1e-6, msg=str(key))
