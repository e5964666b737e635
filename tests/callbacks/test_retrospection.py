"""The callback against Algorithm 1 written out, and against every mistake that the public versions make."""

from functools import cache
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from toys import Foreign, toy_data, toy_loader, trainer, weights

from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import IndexedDataset, KeyedSampler

EPOCHS = 20


@cache
def algorithm_1(interval: int, tau: float, smoothing: float, storage: torch.dtype, rate: float = 0.9) -> Foreign:
    """Deng and Zhang's Algorithm 1, line by line, on the same batches and from the same start."""
    module = Foreign(label_smoothing=smoothing)
    optimizer = module.configure_optimizers()
    loader = toy_loader()
    past: dict[int, torch.Tensor] = {}
    for i in range(1, EPOCHS + 1):
        loader.sampler.set_epoch(i - 1)
        new: dict[int, torch.Tensor] = {}
        for x, y, index in loader:
            z = module.net(x)
            ce = F.cross_entropy(z, y, label_smoothing=smoothing)
            if i <= interval:
                loss = ce
            else:
                a = 1 - rate * (i // interval) * interval / EPOCHS
                p = torch.stack([past[row] for row in index.tolist()]).float()
                log_q = torch.log_softmax(z / tau, dim=1)
                kl = (torch.xlogy(p, p) - p * log_q).sum(dim=1).mean()
                loss = a * ce + (1 - a) * tau**2 * kl
            if i % interval == 0:
                new |= dict(zip(index.tolist(), torch.softmax(z.detach() / tau, 1).to(storage), strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        past |= new
    return module


@cache
def plain(smoothing: float) -> Foreign:
    """Return the module that is trained without the method."""
    return fit(None, Foreign(label_smoothing=smoothing))


def fit(callback: LearningWithRetrospection | None, module: Foreign | None = None, **kwargs: Any) -> Foreign:
    module = module or Foreign()
    callbacks = [callback] if callback is not None else []
    trainer(max_epochs=EPOCHS, callbacks=callbacks, **kwargs).fit(module, toy_loader(), toy_loader(12, seed=9))
    return module


@pytest.mark.parametrize("interval", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_twenty_epochs_equal_algorithm_1(interval: int, smoothing: float) -> None:
    exact = algorithm_1(interval, 5.0, smoothing, torch.float32)
    ours = fit(LearningWithRetrospection(interval, dtype="float32"), Foreign(label_smoothing=smoothing))
    torch.testing.assert_close(weights(ours), weights(exact), rtol=1e-5, atol=1e-5)
    half = fit(LearningWithRetrospection(interval, temperature=5.0), Foreign(label_smoothing=smoothing))
    torch.testing.assert_close(weights(half), weights(exact), rtol=1e-3, atol=1e-3)
    # ... while leaving the method out, or another interval, is far outside of that.
    assert (weights(plain(smoothing)) - weights(exact)).abs().max() > 0.1
    other = algorithm_1(interval + 1, 5.0, smoothing, torch.float32)
    assert (weights(other) - weights(exact)).abs().max() > 0.01


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_other_temperatures_and_update_rates_equal_algorithm_1(temperature: float) -> None:
    ours = fit(LearningWithRetrospection(3, temperature, update_rate=0.5))
    torch.testing.assert_close(
        weights(ours), weights(algorithm_1(3, temperature, 0.0, torch.float16, 0.5)), rtol=1e-3, atol=1e-4
    )


class Watch(LearningWithRetrospection):
    """Keeps, for every step, its epoch, the weight in use, the rows it read and whether they were recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        epoch = trainer.current_epoch + 1
        read, recorded = self.memory.read(batch[2], epoch) if self.memory is not None else (None, None)
        step = {"epoch": epoch, "weight": self.weight(epoch), "index": batch[2], "read": read, "recorded": recorded}
        self.steps.append(step)


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_no_defect_of_the_public_versions(interval: int) -> None:
    """The weight never freezes, falls too fast or below zero; every row is written and refreshed at every boundary."""
    watch = Watch(interval)
    module = Foreign()
    seen: dict[int, dict[int, torch.Tensor]] = {}

    def record(_: nn.Module, args: tuple[torch.Tensor, torch.Tensor], __: torch.Tensor) -> None:
        if module.training and module.trainer.training:
            tempered = torch.softmax(args[0].detach() / 5.0, dim=1).half().float()
            index = watch._step.index
            seen.setdefault(module.current_epoch + 1, {}).update(zip(index.tolist(), tempered, strict=True))

    module.criterion.register_forward_hook(record)
    fit(watch, module)
    by_epoch = {s["epoch"]: s["weight"] for s in watch.steps}
    assert by_epoch == {
        i: pytest.approx(1.0 if i <= interval else 1 - 0.9 * (i // interval) * interval / EPOCHS)
        for i in range(1, EPOCHS + 1)
    }
    for step in watch.steps:
        if step["epoch"] <= interval:
            continue
        assert step["recorded"].all()
        last = (step["epoch"] - 1) // interval * interval
        expected = torch.stack([seen[last][row] for row in step["index"].tolist()])
        torch.testing.assert_close(step["read"], expected, rtol=0, atol=1e-3)


def test_validation_and_the_sanity_check_neither_read_nor_write_nor_count() -> None:
    with_validation = fit(LearningWithRetrospection(3), num_sanity_val_steps=2, val_check_interval=2)
    module = Foreign()
    trainer(max_epochs=EPOCHS, callbacks=LearningWithRetrospection(3)).fit(module, toy_loader())
    assert torch.equal(weights(with_validation), weights(module))


def test_validation_loss_is_the_plain_criterion() -> None:
    module, run = Foreign(), trainer(max_epochs=6, callbacks=LearningWithRetrospection(1))
    loader = toy_loader(12, seed=9)
    run.fit(module, toy_loader(), loader)
    rows = torch.cat([F.cross_entropy(module.net(x), y, reduction="none") for x, y, _ in loader])
    torch.testing.assert_close(run.callback_metrics["val_loss"], rows.mean())


def test_shuffling_never_gives_a_sample_the_label_of_another() -> None:
    """Rows are keyed on the sample: with a net that tells samples apart, what is remembered names its own sample."""

    class Teller(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Identity()
            self.scale = nn.Parameter(torch.ones(()))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.criterion(self.scale * batch[0], batch[1])

    class OneHots(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return 50 * F.one_hot(torch.tensor(i), 10).float(), i

    callback, data = LearningWithRetrospection(1, temperature=1.0), IndexedDataset(OneHots())
    loader = DataLoader(data, batch_size=3, sampler=KeyedSampler(data, seed=1))
    trainer(max_epochs=4, callbacks=callback).fit(Teller(), loader)
    read, _ = callback.memory.read(torch.arange(10), epoch=5)
    assert read.argmax(dim=1).tolist() == list(range(10))


def test_a_row_that_nobody_recorded_keeps_its_full_weight_on_the_truth() -> None:
    """Half of the rows are seen in the recording epoch; the others' second term is their cross-entropy."""
    callback, module = LearningWithRetrospection(1, max_epochs=4), Foreign()
    data = IndexedDataset(toy_data(8))
    order = [[0, 1, 2, 3], [4, 5, 2, 3]]  # epoch 1, epoch 2
    sampler = type("Order", (list,), {"__iter__": lambda self: iter(order[module.current_epoch])})(order[0])
    losses = []
    module.criterion.register_forward_hook(lambda m, a, out: losses.append((a[0].detach(), a[1])))
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    total: list[torch.Tensor] = []
    module.on_before_backward = lambda loss: total.append(loss.detach())  # type: ignore[method-assign]
    run = trainer(max_epochs=2, callbacks=callback)
    run.fit(module, DataLoader(data, batch_size=4, sampler=sampler))
    logits, target = losses[1]
    past = torch.softmax(losses[0][0] / 5, dim=1)
    kl = 25 * (past * (past.log() - torch.log_softmax(logits / 5, dim=1))).sum(dim=1)
    truth = F.cross_entropy(logits, target, reduction="none")
    a = 1 - 0.9 * 2 / 4
    second = (truth[0] + truth[1] + kl[2:][0] + kl[2:][1]) / 4
    # epoch 1 saw 0, 1, 2, 3 in this order, epoch 2 reads 4, 5 (never recorded) and 2, 3
    torch.testing.assert_close(total[1], a * truth.mean() + (1 - a) * second, rtol=1e-3, atol=1e-4)
    assert run.callback_metrics["retrospection/unrecorded"] == pytest.approx(0.5)
    assert run.callback_metrics["retrospection/weight"] == pytest.approx(a)
    torch.testing.assert_close(run.callback_metrics["retrospection/kl"], kl[2:].mean(), rtol=1e-3, atol=1e-4)


def test_resume_equals_an_uninterrupted_run(tmp_path) -> None:
    whole = fit(LearningWithRetrospection(3))
    first = trainer(max_epochs=7, callbacks=LearningWithRetrospection(3, max_epochs=EPOCHS))
    first.fit(Foreign(), toy_loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again, callback = Foreign(seed=5), LearningWithRetrospection(3)
    loader = toy_loader()
    trainer(max_epochs=EPOCHS, callbacks=callback).fit(
        again, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert torch.equal(weights(again), weights(whole))


def test_a_second_fit_remembers_nothing_of_the_first() -> None:
    callback = LearningWithRetrospection(3)
    fit(callback)
    again = fit(callback)
    assert torch.equal(weights(again), weights(fit(LearningWithRetrospection(3))))


def test_averaging_the_weights_copies_neither_callback_nor_memory() -> None:
    callback, average = LearningWithRetrospection(3), EMAWeightAveraging(decay=0.9)
    module = Foreign()
    trainer(max_epochs=EPOCHS, callbacks=[callback, average]).fit(module, toy_loader(), toy_loader(12, seed=9))
    plain = Foreign()
    averages = EMAWeightAveraging(decay=0.9)
    trainer(max_epochs=EPOCHS, callbacks=[averages, LearningWithRetrospection(3)]).fit(plain, toy_loader())
    assert torch.equal(weights(module), weights(plain))
    assert not module.criterion._forward_hooks


def test_a_fit_that_failed_leaves_nothing_behind() -> None:
    module = Foreign()
    run, unwrapped = trainer(max_epochs=3, callbacks=LearningWithRetrospection(3)), DataLoader(toy_data(), 8)
    with pytest.raises(ValueError, match="wrap the training set"):
        run.fit(module, unwrapped)
    assert not module.criterion._forward_hooks

    class Fails(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            raise KeyError

    with pytest.raises(KeyError):
        trainer(max_epochs=3, callbacks=[LearningWithRetrospection(3), Fails()]).fit(module, toy_loader())
    assert torch.equal(weights(fit(LearningWithRetrospection(3), module)), weights(fit(LearningWithRetrospection(3))))


def test_hooks_nothing_but_the_fit_it_is_in() -> None:
    module = fit(LearningWithRetrospection(1))
    assert not module.criterion._forward_hooks
    z, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    assert torch.equal(module.criterion(z, y), F.cross_entropy(z, y))


@pytest.mark.parametrize("kind", ["dict", "position", "attribute"])
def test_finds_the_index_wherever_the_batch_has_it(kind: str) -> None:
    where: dict[str, Any] = {"dict": "row", "position": -1, "attribute": "index"}

    class Reads(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = (batch["x"], batch["y"]) if kind == "dict" else batch[:2]
            return self.criterion(input=self.net(x), target=y) if kind == "dict" else self.criterion(self.net(x), y)

    def collate(samples: list[Any]) -> Any:
        batch = torch.utils.data.default_collate(samples)
        return {"x": batch[0], "y": batch[1], "row": batch[2]} if kind == "dict" else list(batch)

    data = IndexedDataset(toy_data())
    loader = DataLoader(
        data, batch_size=8, sampler=KeyedSampler(data, 3), collate_fn=None if kind == "attribute" else collate
    )
    module = Reads()
    trainer(max_epochs=EPOCHS, callbacks=LearningWithRetrospection(3, index=where[kind])).fit(module, loader)
    assert torch.equal(weights(module), weights(fit(LearningWithRetrospection(3))))


def test_accumulation_and_autocast_run() -> None:
    module = Foreign()
    trainer(
        max_epochs=3, precision="bf16-mixed", accumulate_grad_batches=2, callbacks=LearningWithRetrospection(1)
    ).fit(module, toy_loader())
    assert weights(module).isfinite().all()


def test_reading_and_recording_never_wait_for_the_device() -> None:
    def waits(self: torch.Tensor, *args: Any) -> Any:
        raise AssertionError("a value was read on the host")

    class Strict(LearningWithRetrospection):
        def _mix(self, *args: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
                    patch.setattr(torch.Tensor, name, waits)
                return super()._mix(*args)

    module = Foreign()
    trainer(max_epochs=4, callbacks=Strict(1)).fit(module, toy_loader())
    assert weights(module).isfinite().all()


class Plain(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(6), 1)] * 8)


def check_refused(
    message: str, callback: Any, module: Foreign | None = None, loader: Any = None, **kwargs: Any
) -> None:
    module = module or Foreign()
    before = weights(module)
    callbacks = callback if isinstance(callback, list) else [callback]
    with pytest.raises(ValueError, match=message):
        trainer(**{"max_epochs": 3, "callbacks": callbacks, **kwargs}).fit(
            module, toy_loader() if loader is None else loader
        )
    assert torch.equal(before, weights(module))  # no step was taken


def test_says_before_the_first_step_what_is_missing() -> None:
    lwr = LearningWithRetrospection
    check_refused(
        "no submodule 'loss' to hook; name its criterion with criterion=, of its submodules net, criterion",
        lwr(criterion="loss"),
    )
    check_refused("needs the number of epochs .* got max_epochs=-1", lwr(), max_epochs=-1, max_steps=3)
    with pytest.raises(RuntimeError, match="more than one stateful callback"):  # Lightning's own refusal
        trainer(callbacks=[lwr(), lwr(temperature=3.0)])
    check_refused("two callbacks replace the value of criterion", [lwr(), Watch()])
    unwrapped = DataLoader(toy_data(), batch_size=8)
    check_refused(
        "a list, has no tensor at index='index': wrap the training set in .*IndexedDataset", lwr(), loader=unwrapped
    )
    check_refused("has no tensor at index=5", lwr(index=5))
    check_refused("index must be integers of shape", lwr(index=0))
    check_refused("no length and so no sample indices", lwr(), loader=DataLoader(Plain(), batch_size=4))
    check_refused(
        r"index must be in 0..3, the training set's rows, got 0..29", lwr(num_samples=4), loader=toy_loader(30, 30)
    )


def test_says_what_the_criterion_must_be() -> None:
    per_sample = Foreign()
    per_sample.criterion = nn.CrossEntropyLoss(reduction="none")
    check_refused(
        r"criterion that returns a scalar, got \(8,\): set its reduction", LearningWithRetrospection(), per_sample
    )


def test_says_when_the_step_computes_its_loss_without_the_criterion() -> None:
    class Otherwise(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    with pytest.raises(ValueError, match="the training step did not call 'criterion': have it compute the loss with"):
        trainer(max_epochs=3, callbacks=LearningWithRetrospection(1)).fit(Otherwise(), toy_loader())


def test_says_when_the_interval_leaves_it_nothing_to_do(caplog) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(max_epochs=2, callbacks=LearningWithRetrospection(2)).fit(Foreign(), toy_loader())
    assert "retrospection has no effect: its interval 2 is not below the run's 2 epochs" in caplog.text


def test_an_iterable_data_set_with_rows_in_its_batches_needs_only_their_number() -> None:
    class Rows(IterableDataset):
        def __iter__(self) -> Any:
            return ((*toy_data()[i], i) for i in range(30))

    callback = LearningWithRetrospection(1, index=2, num_samples=30)
    trainer(max_epochs=3, callbacks=callback).fit(Foreign(), DataLoader(Rows(), batch_size=8))
    assert callback.memory.read(torch.arange(30), epoch=4)[1].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"temperature": -1.0}, "temperature must be > 0, got -1.0"),
        ({"update_rate": 1.5}, r"update_rate must be in \[0, 1\], got 1.5"),
        ({"max_epochs": 0}, "max_epochs must be >= 1, got 0"),
        ({"num_samples": 0}, "num_samples must be >= 1, got 0"),
        ({"dtype": "int8"}, "dtype must be 'float16' or 'float32', got 'int8'"),
    ],
)
def test_refuses_at_construction_what_is_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningWithRetrospection(**arguments)
