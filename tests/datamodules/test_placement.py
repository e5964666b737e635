"""Where images are is decided by what is possible, said, and kept to when a run is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Collect, make_photos, photos_on_device, small_photos, train_on, trainer

from lit_distill.datamodules import Augmentation, DigitsDataModule, ImageDataModule
from lit_distill.datamodules.placement import Placement
from lit_distill.datamodules.resident import ResidentDataset


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return small_photos(tmp_path_factory.mktemp("photos"))


def is_on_device(data: ImageDataModule) -> bool:
    data.setup("fit")
    return isinstance(data.train_dataloader().dataset, ResidentDataset)


@pytest.mark.parametrize(("storage", "expected"), [("auto", True), ("device", True), ("host", False), ("files", False)])
def test_storage_says_where_images_are(root, storage: str, expected: bool, caplog) -> None:
    data = photos_on_device(root, storage=storage)
    assert is_on_device(data) == expected
    assert ("45 training images, 0.0346 MB, are augmented on cpu as batches" in caplog.text) == expected
    assert (data.train_set.decoded is None) == (storage == "files")


def sized(root: Path, *sizes: tuple[int, int]) -> Path:
    for number, size in enumerate(sizes * 4):
        for split, seed in (("train", number), ("val", 100 + number)):
            make_photos(root, [f"{split}/c{number % 2}/{number}.png"], size, seed)
    return root


def test_images_of_several_sizes_are_no_one_tensor(tmp_path, caplog) -> None:
    data = photos_on_device(sized(tmp_path, (16, 16), (20, 16), (16, 16)))
    data.setup("fit")
    with pytest.raises(
        ValueError, match=r"one size, and they have several sizes, such as 16 x 16 and 16 x 20: set .*'host'"
    ):
        data.train_dataloader()
    assert not is_on_device(photos_on_device(tmp_path, storage="auto"))
    assert "training images are augmented one by one: they have several sizes" in caplog.text


def test_a_transform_of_ones_own_is_called_sample_by_sample_and_that_is_said_once() -> None:
    data = DigitsDataModule(train_transform=torch.nn.Flatten(0), storage="device")
    data.setup()
    with pytest.warns(UserWarning, match="augmented one by one: the transform Flatten has no form for batches"):
        data.train_dataloader()
    batch = next(iter(data.train_dataloader()))  # a warning now would be an error
    assert batch.image.shape == (64, 64)


def test_a_policy_without_a_form_for_batches_is_applied_sample_by_sample(root, caplog) -> None:
    assert not is_on_device(photos_on_device(root, storage="auto", augmentation=Augmentation(policy="augmix-m3-w3")))
    assert "augmented one by one: the policy 'augmix-m3-w3' has no form for batches" in caplog.text


def test_a_device_without_room_leaves_the_images_where_they_are(root, monkeypatch) -> None:
    data = photos_on_device(root)
    data.setup("fit")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100_000, 1_000_000))
    place = Placement("device", "train", None)
    place.device = torch.device("cuda")
    with pytest.warns(UserWarning, match=r"one by one: they take 0.0346 MB, and cuda has 0.1 MB free"):
        assert place.stack(data.train_set) is None


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("side", [1, 2, 16])
def test_images_of_any_size_and_colour(tmp_path, mode: str, side: int) -> None:
    channels = 3 if mode == "RGB" else 1
    data = photos_on_device(sized(tmp_path, (side, side)), image_size=side, channels=channels)
    assert is_on_device(data)
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (4, channels, side, side)


def test_damaged_images_are_left_out_and_the_others_keep_their_row(tmp_path) -> None:
    sized(tmp_path, (16, 16), (16, 16))
    plain = Augmentation("none", hflip=0, crop_pct=1.0)
    before = {}
    for batch in train_on(photos_on_device(tmp_path, augmentation=plain), max_epochs=1):
        before |= dict(zip(batch.index.tolist(), batch.image, strict=True))
    (tmp_path / "train/c0/0.png").write_bytes(b"damaged")
    data = photos_on_device(tmp_path, augmentation=plain, max_damaged=0.5)
    with pytest.warns(UserWarning, match="left out: 1 of 8"):
        after = train_on(data, max_epochs=1)
    rows = [int(row) for batch in after for row in batch.index]
    assert sorted(rows) == [1, 2, 3, 4, 5, 6, 7]
    assert data.splits["train"].files[0] == "train/c0/0.png"
    for batch in after:
        for image, row in zip(batch.image, batch.index.tolist(), strict=True):
            assert torch.equal(image, before[row])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.parametrize(("then", "now"), [("device", "host"), ("host", "device"), ("device", "files")])
def test_a_resume_that_would_draw_other_numbers_is_refused_in_one_line(root, tmp_path, then: str, now: str) -> None:
    path = saved(photos_on_device(root, storage=then), tmp_path)
    with pytest.raises(ValueError, match=f"images .*: resume with storage='{then}'") as error:
        train_on(photos_on_device(root, storage=now), path, max_epochs=3)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
def test_auto_goes_on_as_the_run_that_it_resumes(root, tmp_path, caplog) -> None:
    path = saved(photos_on_device(root, storage="host"), tmp_path)
    whole = train_on(photos_on_device(root, storage="host"), max_epochs=3)
    rest = train_on(photos_on_device(root, storage="auto"), path, max_epochs=3)
    assert "augmented one by one, as in the run that is resumed" in caplog.text
    assert all(torch.equal(a.image, b.image) for a, b in zip(rest, whole[-len(rest) :], strict=True))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
def test_where_nothing_is_drawn_any_storage_resumes_any_other(root, tmp_path) -> None:
    settings: dict[str, Any] = {"train_transform": torch.nn.Identity(), "seed": 1}
    path = saved(DigitsDataModule(storage="host", **settings), tmp_path)
    assert train_on(DigitsDataModule(storage="device", **settings), path, max_epochs=3)


def saved(data: ImageDataModule, folder: Path) -> Path:
    first = trainer(max_epochs=2)
    first.fit(Collect(), datamodule=data)
    first.save_checkpoint(folder / "half.ckpt")
    return folder / "half.ckpt"


def test_an_unknown_storage_is_one_line() -> None:
    with pytest.raises(ValueError, match="storage must be 'auto', 'device', 'host' or 'files', got 'gpu'"):
        DigitsDataModule(storage="gpu")  # type: ignore[arg-type]
