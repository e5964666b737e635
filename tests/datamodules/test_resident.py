"""Batches made on the device are a pure function of (seed, view, index), whatever else is in them."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import pytest
import torch
from toys import QUIET, Collect, photos_on_device, small_photos, train_on

from lit_distill.datamodules import (
    Augmentation,
    Batch,
    DigitsDataModule,
    Mixing,
)
from lit_distill.datamodules.resident import ResidentDataset, ResidentLoader

ROWS = 45

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return small_photos(tmp_path_factory.mktemp("photos"), ROWS)


def joined(batches: list[Batch]) -> Batch:
    return Batch(*map(torch.cat, zip(*batches, strict=True)))


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "repeats": {"repeats": 3},
    "mixing": {"mixing": Mixing(mixup=0.8, cutmix=1.0)},
    "both": {"mixing": Mixing(mixup=0.8, cutmix=1.0), "repeats": 3},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_order_and_pixels_are_the_same_for_batches_of_any_size(root, recipe: str) -> None:
    whole = joined(train_on(photos_on_device(root, batch_size=128, **RECIPES[recipe])))
    assert len(whole.image) == 2 * ROWS
    assert len(whole.image.unique(dim=0)) == 2 * ROWS
    for size in (1, 7):
        assert_equal(joined(train_on(photos_on_device(root, batch_size=size, **RECIPES[recipe]))), whole)


@pytest.mark.parametrize("recipe", RECIPES)
def test_ranks_see_together_what_one_sees(root, tmp_path, recipe: str) -> None:
    whole = joined(train_on(photos_on_device(root, **RECIPES[recipe]), max_epochs=1))
    images = {(int(view), int(row)): image for image, _, row, view in zip(*whole, strict=True)}
    for ranks in (2, 4):
        options = {**QUIET, "devices": ranks, "strategy": "ddp_fork", "max_epochs": 1}
        Trainer(**options).fit(Collect(str(tmp_path)), photos_on_device(root, batch_size=8 // ranks, **RECIPES[recipe]))
        parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
        for steps in zip(*parts, strict=True):
            for _, image, _, rows, views in steps:
                for pixels, row, view in zip(image, rows.tolist(), views.tolist(), strict=True):
                    assert torch.equal(pixels, images[view, row])
        keys = [torch.stack([views, rows], dim=1) for part in parts for *_, rows, views in part]
        assert {(view, row) for view, row in torch.cat(keys).tolist()} == set(images)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_resumed_within_an_epoch_goes_on_with_its_next_batch(root, tmp_path, recipe: str) -> None:
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = train_on(photos_on_device(root, **RECIPES[recipe]), callbacks=saves, enable_checkpointing=True)
    for step in (1, 6, 8):
        rest = train_on(photos_on_device(root, **RECIPES[recipe]), tmp_path / f"step={step}.ckpt")
        assert_equal(joined(rest), joined(whole[step:]))


def test_evaluation_sees_the_pixels_that_it_sees_from_files(root) -> None:
    batches, shrunk = {}, Augmentation(crop="none", crop_pct=0.8)
    for storage in ("device", "host", "files"):
        data = photos_on_device(root, storage=storage, image_size=12, augmentation=shrunk)
        data.setup("validate")
        batches[storage] = [torch.cat(part) for part in zip(*data.val_dataloader(), strict=True)]
        assert isinstance(data.val_dataloader().dataset, ResidentDataset) == (storage == "device")
    for storage in ("host", "files"):
        for ours, theirs in zip(batches["device"], batches[storage], strict=True):
            assert torch.equal(ours, theirs)


def test_small_batches_are_made_several_at_once(root, monkeypatch) -> None:
    data = photos_on_device(root, batch_size=2)
    data.setup("fit")
    loader, sizes = data.train_dataloader(), []
    assert isinstance(loader, ResidentLoader)
    make = loader.dataset.make
    monkeypatch.setattr(loader.dataset, "make", lambda keys: (sizes.append(len(keys)), make(keys))[1])
    assert [len(batch.image) for batch in loader] == [2] * 22 + [1]
    assert sizes == [ROWS]
    assert len(loader) == 23


def test_a_loader_without_a_trainer_gives_whole_batches(root) -> None:
    data = photos_on_device(root)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (8, 3, 16, 16)
    assert batch.image.dtype == torch.uint8
    assert batch.view.tolist() == [0] * 8


def test_a_subset_keeps_its_rows_and_is_read_sample_by_sample_too() -> None:
    data = DigitsDataModule(train_transform=torch.nn.Identity(), batch_size=4)
    data.setup()
    data.train_set = torch.utils.data.Subset(data.train_set, [9, 3, 5])
    batch = next(iter(data.train_dataloader()))
    assert isinstance(data.train_dataloader().dataset, ResidentDataset)
    assert sorted(batch.index.tolist()) == [0, 1, 2]
    for image, target, index in zip(*batch[:3], strict=True):
        sample = data.train_dataloader().dataset[int(index)]
        assert torch.equal(image, sample.image)
        assert target == sample.target
        assert torch.equal(image, data.train_set[int(index)][0])


def test_overfitting_repeats_the_first_images(root) -> None:
    with pytest.warns(UserWarning, match="You requested to overfit"):
        batches = train_on(photos_on_device(root), overfit_batches=1)
    assert [batch.index.tolist() for batch in batches] == [[*range(8)]] * 2
