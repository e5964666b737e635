"""What the callbacks with a memory share: where the table lies, what goes into it, and what is refused."""

from typing import Any

from lightning.pytorch import Callback, Trainer
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader
from toys import Foreign, toy_data, toy_loader, trainer, weights

from lit_distill.callbacks import (
    LearningWithRetrospection,
    ProgressiveSelfDistillation,
    SoftLabelCallback,
)
from lit_distill.callbacks.soft_labels import tempered_softmax
from lit_distill.datamodules import IndexedDataset, KeyedSampler

EPOCHS = 6


def fit(callback: Callback, module: Foreign | None = None, loader: Any = None, **kwargs: Any) -> Trainer:
    run = trainer(**{"max_epochs": EPOCHS, "callbacks": callback, **kwargs})
    run.fit(Foreign() if module is None else module, toy_loader() if loader is None else loader)
    return run


def recorded(callback: LearningWithRetrospection) -> list[bool]:
    return callback.memory.read(torch.arange(callback.memory.num_samples), epoch=99)[1].tolist()


class Two(Foreign):
    """Two networks, each with a criterion of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.second = nn.Linear(6, 4), nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + self.second(self.other(batch[0]), batch[1])


def test_two_callbacks_on_two_criteria_keep_apart(tmp_path) -> None:
    def callbacks() -> list[LearningWithRetrospection]:
        first = LearningWithRetrospection(1, update_rate=0.5)
        return [first, LearningWithRetrospection(2, update_rate=0.9, criterion="second")]

    module, both = Two(), callbacks()
    run = trainer(max_epochs=EPOCHS, callbacks=both)
    run.fit(module, toy_loader())
    assert run.callback_metrics["retrospection/weight"] == pytest.approx(0.5)
    assert run.callback_metrics["retrospection/second/weight"] == pytest.approx(0.1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = callbacks()
    trainer(max_epochs=EPOCHS + 1, callbacks=again).fit(
        Two(), toy_loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert all(callback.memory is not None for callback in again)
    lone = Foreign()
    fit(LearningWithRetrospection(1, update_rate=0.5), lone)
    torch.testing.assert_close(weights(module.net), weights(lone.net))


class Bad(Foreign):
    """Puts a value among the logits of the first sample of a batch, out of the loss's way."""

    def __init__(self, value: float, epoch: int = 0) -> None:
        super().__init__()
        self.value, self.epoch = value, epoch
        self.hit: set[int] = set()
        self.criterion = Careful()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        logits = self.net(batch[0])
        if self.current_epoch == self.epoch:
            logits[0, 1] = self.value
            self.hit.add(int(batch[2][0]))
        return self.criterion(logits, batch[1])


class Careful(nn.Module):
    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.nan_to_num(0.0, 0.0, 0.0), target)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_not_remembered_and_reported_once(value: float) -> None:
    module, callback = Bad(value), LearningWithRetrospection(1, max_epochs=EPOCHS)
    with pytest.warns(UserWarning, match="4 predictions of epoch 0 had NaN or infinity") as warned:
        fit(callback, module, max_epochs=1)
    assert sum("NaN or infinity" in str(warning.message) for warning in warned) == 1
    assert [row for row, there in enumerate(recorded(callback)) if not there] == sorted(module.hit)
    module, callback = Bad(value, epoch=2), LearningWithRetrospection(1)
    with pytest.warns(UserWarning, match="4 predictions of epoch 2 had NaN or infinity"):
        fit(callback, module)
    assert all(recorded(callback))  # the run went on, and the rows were recorded again
    assert weights(module).isfinite().all()


def test_an_index_that_only_the_device_knows_ends_the_run_at_the_end_of_the_epoch(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("lit_distill.callbacks.soft_labels.index_of", lambda batch, *_: batch.index)  # unchecked
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            steps.append(trainer.current_epoch)

    callback = LearningWithRetrospection(1, num_samples=20)
    run = trainer(max_epochs=EPOCHS, callbacks=[callback, Count()])
    with pytest.raises(ValueError, match=r"index must be in 0..19, the training set's rows: 10 were outside"):
        run.fit(Foreign(), toy_loader())
    assert steps == [0] * 4
    assert not any(recorded(callback)[20:])
    with pytest.raises(ValueError, match="10 were outside"):  # nor is that table ever written
        run.save_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


@pytest.mark.parametrize("bad", [torch.tensor([-1] * 8), torch.tensor([30] * 8)])
def test_an_index_outside_the_set_ends_the_run_before_its_step(bad: torch.Tensor) -> None:
    module, loader = Foreign(), DataLoader([(torch.zeros(8, 6), torch.zeros(8).long(), bad)], batch_size=None)
    before = weights(module)
    with pytest.raises(ValueError, match=r"index must be in 0..29, the training set's rows, got"):
        fit(LearningWithRetrospection(1, num_samples=30, index=2), module, loader)
    assert torch.equal(before, weights(module))


def resume(tmp_path: Any, loader: Any, module: Foreign | None = None) -> tuple[LearningWithRetrospection, Trainer]:
    run = fit(LearningWithRetrospection(1), max_epochs=2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    callback = LearningWithRetrospection(1)
    again = trainer(max_epochs=4, callbacks=callback)
    again.fit(module or Foreign(), loader, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    return callback, again


def test_a_data_set_that_has_grown_goes_on(tmp_path, caplog) -> None:
    data = IndexedDataset(ConcatDataset([toy_data(), toy_data(6, seed=2)]))
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        callback, _ = resume(tmp_path, DataLoader(data, 8, sampler=KeyedSampler(data, 3)))
    assert "the training set has grown from 30 to 36 samples since the checkpoint" in caplog.text
    assert callback.memory.num_samples == 36
    assert all(recorded(callback))


def test_a_data_set_that_has_shrunk_or_has_other_classes_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="remembered soft labels are for 30 samples, the training set has 20"):
        resume(tmp_path, toy_loader(20))
    (tmp_path / "a.ckpt").unlink()
    run = fit(LearningWithRetrospection(1), max_epochs=2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    state["callbacks"] = {
        key: {**value, "rows": value["rows"][:, :, :3].clone(), "num_classes": 3}
        for key, value in state["callbacks"].items()
    }
    torch.save(state, tmp_path / "b.ckpt")
    again = trainer(max_epochs=4, callbacks=LearningWithRetrospection(1))
    module = Foreign()
    with pytest.raises(ValueError, match="remembered soft labels have 3 classes, the logits 4"):
        again.fit(module, toy_loader(), ckpt_path=tmp_path / "b.ckpt", weights_only=True)
    assert again.global_step == run.global_step  # no step was taken


@pytest.mark.parametrize(("top_k", "dtype"), [(2, "float16"), (None, "float32")])
def test_resuming_with_another_table_converts_it_and_says_so(tmp_path, caplog, top_k: Any, dtype: Any) -> None:
    fit(LearningWithRetrospection(1, max_epochs=4), max_epochs=2).save_checkpoint(tmp_path / "a.ckpt")
    callback = LearningWithRetrospection(1, temperature=2.0, top_k=top_k, dtype=dtype)
    run = trainer(max_epochs=4, callbacks=callback)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        run.fit(Foreign(), toy_loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert (callback.memory.top_k, callback.memory.dtype) == (top_k or 4, callback.dtype)
    assert f"go on as top_k={top_k or 4} of 4 in torch.{dtype}; the checkpoint has top_k=4 of 4" in caplog.text
    assert "the remembered soft labels are of temperature 5.0, this run has 2.0" in caplog.text
    assert all(recorded(callback))


@pytest.mark.parametrize("kind", [LearningWithRetrospection, ProgressiveSelfDistillation])
def test_a_callback_of_another_run_forgets_it_when_a_checkpoint_has_nothing_for_it(tmp_path, kind: Any) -> None:
    plain = trainer(max_epochs=2)
    plain.fit(Foreign(), toy_loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    modules = []
    used = kind(max_epochs=4)
    fit(used, Foreign(seed=5))
    for callback in (used, kind(max_epochs=4)):
        modules.append(Foreign())
        run = trainer(max_epochs=4, callbacks=callback)
        run.fit(modules[-1], toy_loader(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
    assert torch.equal(*map(weights, modules))


def test_a_validation_between_fits_brings_nothing_back(tmp_path) -> None:
    def run(validate: bool) -> torch.Tensor:
        module, callback = Foreign(), LearningWithRetrospection(1, max_epochs=6)
        whole = trainer(max_epochs=2, callbacks=callback)
        whole.fit(module, toy_loader())
        whole.save_checkpoint(tmp_path / "old.ckpt")
        whole.fit_loop.max_epochs = 4
        whole.fit(module, toy_loader())
        if validate:
            state = {name: value.clone() for name, value in module.state_dict().items()}
            whole.validate(module, toy_loader(12), ckpt_path=tmp_path / "old.ckpt", verbose=False, weights_only=True)
            module.load_state_dict(state)
        whole.fit_loop.max_epochs = 6
        whole.fit(module, toy_loader())
        return weights(module)

    assert torch.equal(run(False), run(True))


def test_a_variant_with_a_mistake_is_told_so() -> None:
    class Forgot(ProgressiveSelfDistillation):
        def mix(self, *args: Any) -> Any:
            super().mix(*args)

    with pytest.raises(ValueError, match=r"Forgot.mix recalled soft labels but returned no loss: is a return missing"):
        fit(Forgot())

    class Few(ProgressiveSelfDistillation):
        def remember(self, soft_labels: torch.Tensor, epoch: int) -> None:
            super().remember(soft_labels[:, :2], epoch)

    with pytest.raises(ValueError, match=r"soft labels to remember must be \(B, K\) = \(8, 4\), got \(8, 2\)"):
        fit(Few())

    class Nothing(SoftLabelCallback):
        pass

    with pytest.raises(TypeError, match="abstract class Nothing"):
        Nothing()


def test_a_criterion_that_is_not_called_with_logits_and_target_is_named() -> None:
    class OfOne(nn.Module):
        def forward(self, both: dict[str, torch.Tensor]) -> torch.Tensor:
            return nn.functional.cross_entropy(both["logits"], both["target"])

    class Odd(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = OfOne()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.criterion({"logits": self.net(batch[0]), "target": batch[1]})

    with pytest.raises(ValueError, match=r"a criterion that is called with \(logits, target\), got \(dict\)"):
        fit(LearningWithRetrospection(1), Odd())


def test_loading_takes_the_tensors_over_without_a_copy(tmp_path) -> None:
    run = fit(LearningWithRetrospection(1), max_epochs=2)
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (saved,) = (value for key, value in state["callbacks"].items() if key.startswith("Learning"))
    callback = LearningWithRetrospection(1)
    callback.on_load_checkpoint(run, Foreign(), state)
    assert callback.memory._tables[0].data_ptr() == saved["rows"].data_ptr()
    assert not any(key.startswith("Learning") for key in state["callbacks"])  # Lightning has nothing left to copy


def test_manual_optimization_is_the_same() -> None:
    class Manual(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    modules = [Foreign(), Manual()]
    for module in modules:
        fit(LearningWithRetrospection(2), module)
    assert torch.equal(*map(weights, modules))


def test_a_criterion_called_twice_is_refused_and_without_gradient_left_alone() -> None:
    class Twice(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) + 0.1 * super().training_step(batch, batch_idx)

    class Looks(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            with torch.no_grad():
                plain = self.criterion(self.net(batch[0]), batch[1])
                torch.testing.assert_close(plain, nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="called 'criterion' twice, so which prediction counts is open: compute"):
        fit(LearningWithRetrospection(1), Twice())
    modules = [Foreign(), Looks()]
    for module in modules:
        fit(LearningWithRetrospection(2), module)
    assert torch.equal(*map(weights, modules))


def test_targets_of_probabilities_may_be_mixed_images_and_are_refused_unless_wanted() -> None:
    class Soft(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step((batch[0], nn.functional.one_hot(batch[1], 4).float()), batch_idx)

    with pytest.raises(ValueError, match=r"targets of shape \(8, 4\), as mixup .* belongs to no row"):
        fit(LearningWithRetrospection(1), Soft())
    modules = [Foreign(), Soft()]
    fit(LearningWithRetrospection(1), modules[0])
    fit(LearningWithRetrospection(1, soft_targets=True), modules[1])
    torch.testing.assert_close(*map(weights, modules))


@pytest.mark.parametrize(
    ("options", "unrecorded"),
    [({}, 0.0), ({"limit_train_batches": 2}, None), ({"drop_last": True}, None)],
)
def test_the_share_of_rows_never_recorded_is_logged(options: dict[str, Any], unrecorded: float | None) -> None:
    """In the second epoch, of the samples it sees, those that the first left out."""
    drop_last = options.pop("drop_last", False)
    data = IndexedDataset(toy_data())
    loader = DataLoader(data, 8, sampler=KeyedSampler(data, 3), drop_last=drop_last)
    seen: list[set[int]] = []

    class See(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.extend([] if trainer.current_epoch < len(seen) else [set()])
            seen[-1].update(batch.index.tolist())

    callback = LearningWithRetrospection(1, max_epochs=4)
    run = fit(callback, loader=loader, max_epochs=2, callbacks=[callback, See()], **options)
    share = len(seen[1] - seen[0]) / len(seen[1])
    assert run.callback_metrics["retrospection/unrecorded"] == pytest.approx(share)
    assert (share == 0) == (unrecorded == 0)


def test_repeated_augmentation_remembers_the_first_view_and_leaves_the_others() -> None:
    class Repeated(KeyedSampler):
        """Some samples three times in a row, most not at all."""

        def __iter__(self) -> Any:
            for view, index in list(super().__iter__())[:6]:
                yield from [(view, index)] * 3

        def __len__(self) -> int:
            return 18

    data, kept = IndexedDataset(toy_data()), []

    class Keep(LearningWithRetrospection):
        def remember(self, soft_labels: torch.Tensor, epoch: int) -> None:
            kept.append((self._step.index, soft_labels))
            super().remember(soft_labels, epoch)

    callback = Keep(1, max_epochs=3, dtype="float32")
    fit(callback, loader=DataLoader(data, 8, sampler=Repeated(data, 3)), max_epochs=1)
    index, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
    read, there = callback.memory.read(torch.arange(30), epoch=2)
    assert int(there.sum()) == 6
    for row in index.unique().tolist():
        assert torch.equal(read[row], labels[(index == row).nonzero()[0, 0]])


def test_tempered_softmax_is_float32_and_without_gradient() -> None:
    logits = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    soft_labels = tempered_softmax(logits, 5.0)
    assert soft_labels.dtype == torch.float32
    assert not soft_labels.requires_grad
    torch.testing.assert_close(soft_labels, torch.softmax(logits.float() / 5, dim=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"dtype": "int8"}, "dtype must be 'float16' or 'float32', got 'int8'"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningWithRetrospection(**arguments)


def test_recall_and_remember_are_for_steps() -> None:
    with pytest.raises(RuntimeError, match="for mix, within a training step"):
        LearningWithRetrospection().recall(3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [LearningWithRetrospection, ProgressiveSelfDistillation])
def test_a_gpu_trains_the_weights_of_the_cpu(kind: Any) -> None:
    arguments = {"interval": 1} if kind is LearningWithRetrospection else {}
    modules = [Foreign(), Foreign()]
    fit(kind(**arguments), modules[0])
    fit(kind(**arguments), modules[1], accelerator="cuda")
    torch.testing.assert_close(*(weights(module).cpu() for module in modules), rtol=1e-3, atol=1e-3)
