from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import pytest
import torch
from toys import QUIET, Collect, FewDigits, assert_same, epochs_of, trainer


def test_a_resumed_run_goes_on_with_the_views_of_its_epoch(tmp_path) -> None:
    for workers in (0, 2):
        whole = epochs_of(epochs=4, num_workers=workers)
        first, data = Collect(), FewDigits(batch_size=10, seed=7, num_workers=workers)
        run = trainer(max_epochs=2)
        run.fit(first, datamodule=data)
        run.save_checkpoint(tmp_path / "half.ckpt")
        second = Collect()
        trainer(max_epochs=4).fit(
            second, datamodule=FewDigits(batch_size=10, seed=7, num_workers=workers),
            ckpt_path=tmp_path / "half.ckpt", weights_only=True,
        )  # fmt: skip
        assert_same(first.batches + second.batches, whole)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.parametrize(("workers", "repeats"), [(0, 1), (2, 1), (0, 3)])
def test_a_run_resumed_within_an_epoch_goes_on_with_its_next_batch(tmp_path, workers: int, repeats: int) -> None:
    options: dict[str, Any] = {"num_workers": workers, "repeats": repeats}
    whole = epochs_of(epochs=3, **options)
    first = Collect()
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(max_epochs=3, callbacks=checkpoint, enable_checkpointing=True).fit(
        first, datamodule=FewDigits(batch_size=10, seed=7, **options)
    )
    for step in (1, 3, 5, 7, 10):  # of 5 an epoch
        second, data = Collect(), FewDigits(batch_size=10, seed=7, **options)
        path = tmp_path / f"step={step}.ckpt"
        trainer(max_epochs=3).fit(second, datamodule=data, ckpt_path=path, weights_only=True)
        assert_same(second.batches, whole[step:])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("first", "then"), [((1, 8), (2, 8)), ((2, 8), (1, 8)), ((2, 4), (1, 3)), ((1, 5), (2, 7))])
@pytest.mark.parametrize("rows", [48, 45])
def test_another_number_of_ranks_takes_up_the_rest_of_the_epoch(tmp_path, first, then, rows: int, caplog) -> None:
    def run(ranks: int, batch_size: int, **kwargs: Any) -> Any:
        folder = tmp_path / ("then" if kwargs else "first")
        callbacks = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto", "max_epochs": 2}
        options = {**QUIET, **strategy, "callbacks": callbacks, "enable_checkpointing": True}
        Trainer(**options).fit(Collect(str(tmp_path)), FewDigits(rows, batch_size=batch_size, seed=7), **kwargs)
        parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
        steps = zip(*parts, strict=True)
        return [(epoch, i) for step in steps for epoch, _, _, index, _ in step for i in index.tolist()]

    whole, done = run(*first), 2 * first[0] * first[1]
    rest = run(*then, ckpt_path=tmp_path / "first" / "step=2.ckpt", weights_only=True)
    seen = {i for epoch, i in whole[:done] if epoch == 0}
    now = [i for epoch, i in rest if epoch == 0]
    assert seen.isdisjoint(now[: rows - done])
    assert seen | set(now) == set(range(rows))
    assert len(now) - (rows - done) < 4  # but for what pads it
    assert {i for epoch, i in rest if epoch == 1} == set(range(rows))
    if then[0] == 1:
        assert f"epoch 0 goes on after {done} of {rows} samples" in caplog.text


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("sizes", [(4, 12, 8), (4, 8, 4), (12, 4, 5), (5, 5, 5)])
def test_batches_may_change_their_size_again_and_again_within_an_epoch(tmp_path, sizes: tuple[int, ...]) -> None:
    seen: list[int] = []
    before = None
    for size, stop in zip(sizes, (3, 5, None), strict=True):  # steps of the whole run
        folder = tmp_path / f"{stop}"
        callbacks = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        run, module = trainer(max_epochs=1, callbacks=callbacks, enable_checkpointing=True), Collect()
        run.fit(module, FewDigits(47, batch_size=size, seed=7), ckpt_path=before, weights_only=True)
        steps = None if stop is None else stop - run.global_step + len(module.batches)
        seen += [row for _, batch in module.batches[:steps] for row in batch.index.tolist()]
        before = folder / f"step={stop}.ckpt"
    assert sorted(seen) == list(range(47))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_set_that_grows_within_an_epoch_is_trained_once(tmp_path) -> None:
    first, second = Collect(), Collect()
    for module, rows, before in ((first, 40, None), (second, 47, tmp_path / "0" / "step=3.ckpt")):
        callbacks = ModelCheckpoint(
            tmp_path / str(int(module is second)), "{step}", every_n_train_steps=1, save_top_k=-1
        )
        run = trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
        run.fit(module, FewDigits(rows, batch_size=8, seed=7), ckpt_path=before, weights_only=True)
    done = [row for epoch, batch in first.batches[:3] for row in batch.index.tolist()]
    rest = [row for epoch, batch in second.batches if epoch == 0 for row in batch.index.tolist()]
    assert sorted(done + rest) == list(range(47))
    again = [row for epoch, batch in second.batches if epoch == 1 for row in batch.index.tolist()]
    assert sorted(again) == list(range(47))
