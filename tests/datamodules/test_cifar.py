import os
from pathlib import Path
import pickle
import shutil
from types import SimpleNamespace
from typing import Any

from made import cifar, tarred, unpack
import numpy as np
import pytest
import torch
from torchvision import datasets
from toys import in_processes

from lit_distill.datamodules import Augmentation, CIFAR10DataModule, CIFAR100DataModule, Mixing
from lit_distill.fingerprint import digest_of

MODULES = {10: CIFAR10DataModule, 100: CIFAR100DataModule}
SOURCES = {10: datasets.CIFAR10, 100: datasets.CIFAR100}


@pytest.mark.parametrize("classes", [10, 100])
def test_the_images_are_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    unpack(tmp_path, cifar(monkeypatch, classes, train=200, test=150))
    data = MODULES[classes](tmp_path, num_workers=0)
    data.prepare_data()
    data.setup()
    assert (data.num_classes, data.class_names) == (classes, tuple(f"class {k}" for k in range(classes)))
    theirs = SOURCES[classes](tmp_path, train=False)
    for ours in (data.val_set, data.test_set, data.predict_set):
        assert len(ours) == len(theirs) == 150
        for (image, target), (expected, label) in zip(ours, theirs, strict=True):
            assert target == label
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(expected))
    assert data.val_set is data.test_set  # a study asks whether the test images are held out
    assert len(data.train_set) == 200
    batch = next(iter(data.train_dataloader()))
    assert (batch.image.shape, batch.image.dtype) == ((128, 3, 32, 32), torch.uint8)
    assert batch.target.tolist() == [SOURCES[classes](tmp_path).targets[row] for row in batch.index]


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10))
    data = CIFAR10DataModule(tmp_path)
    pixels = datasets.CIFAR10(tmp_path).data / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


def test_a_later_run_takes_mean_and_std_from_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10))
    statistics = CIFAR10DataModule(tmp_path).mean, CIFAR10DataModule(tmp_path).std
    held_out = CIFAR10DataModule(tmp_path, val_fraction=0.5).mean  # of fewer images
    assert held_out != statistics[0]
    assert CIFAR10DataModule(tmp_path).mean == statistics[0]
    monkeypatch.setattr(datasets.CIFAR10, "__init__", None)  # nothing is read
    again = CIFAR10DataModule(tmp_path)
    assert (again.mean, again.std) == statistics
    monkeypatch.undo()
    unpack(tmp_path, cifar(monkeypatch, 10, train=60))
    assert CIFAR10DataModule(tmp_path).mean != statistics[0]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells a process its own memory")
def test_the_ranks_of_a_machine_share_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10, train=2000))

    def work(rank: int) -> dict[str, Any]:
        data = CIFAR10DataModule(tmp_path, num_workers=0)
        splits_read: list[bool] = []
        monkeypatch.setattr(
            data, "_open", lambda train: splits_read.append(train) or CIFAR10DataModule._open(data, train)
        )
        data.trainer = SimpleNamespace(world_size=2, num_devices=2, node_rank=0, local_rank=rank)  # type: ignore[assignment]
        data.setup()
        images = data.train_set.images  # type: ignore[attr-defined]
        inode = os.stat(data.train_set.part.images.path).st_ino  # type: ignore[attr-defined]
        return {
            "reads": len(splits_read),
            "inode": inode,
            "sum": int(images.sum()),
            "names": list(data.class_names or ()),
        }

    first, second = in_processes(2, work)
    assert (first["reads"], second["reads"]) == (2, 0)
    assert {**first, "reads": 0} == second
    assert first["names"] == [f"class {k}" for k in range(10)]


def test_a_copy_in_a_worker_maps_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10, train=500))
    data = CIFAR10DataModule(tmp_path, num_workers=0, augmentation=Augmentation(crop="none", hflip=0))
    data.setup()
    pickled = pickle.dumps(data.train_set)
    assert len(pickled) < 500 * 3072 / 10
    copy = pickle.loads(pickled)
    assert torch.equal(copy[499][0], data.train_set[499][0])
    assert digest_of(copy) == digest_of(data.train_set)  # so that a teacher's cache knows it again


def test_a_part_of_the_training_images_can_be_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10, train=100))
    data = CIFAR10DataModule(tmp_path, val_fraction=0.2, num_workers=0)
    data.setup()
    sizes = [len(part) for part in (data.train_set, data.val_set, data.test_set, data.predict_set)]
    assert sizes == [80, 20, 20, 20]
    assert torch.bincount(torch.tensor([target for _, target in data.val_set])).tolist() == [2] * 10
    everything = {bytes(image) for image in datasets.CIFAR10(tmp_path).data}
    parts = [{bytes(image.numpy()) for image in part.images} for part in (data.train_set, data.val_set)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]
    again = CIFAR10DataModule(tmp_path, val_fraction=0.2, num_workers=0, seed=9)
    again.setup()
    assert torch.equal(again.val_set.images, data.val_set.images)


def test_other_sizes_are_made_of_the_32_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10))
    data = CIFAR10DataModule(tmp_path, image_size=48, num_workers=0)
    data.setup()
    assert data.train_set[0][0].shape == data.val_set[0][0].shape == (3, 48, 48)


def test_it_is_downloaded_when_it_is_not_there_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cifar(monkeypatch, 10)
    archive = tmp_path / "server" / datasets.CIFAR10.filename
    unpack(archive.parent, {archive.name: tarred(files, "gz")})
    monkeypatch.setattr(datasets.CIFAR10, "url", archive.as_uri())
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", None)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda _, target: shutil.copy(archive, target))
    CIFAR10DataModule(tmp_path / "data").prepare_data()
    batch = tmp_path / "data" / datasets.CIFAR10.base_folder / "data_batch_1"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:100])
    data = CIFAR10DataModule(tmp_path / "data", num_workers=0)
    data.setup()
    assert batch.read_bytes() == whole
    assert len(data.train_set) == len(pickle.loads(whole)["labels"]) * 5


def test_images_repeat_as_distinct_views_and_are_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, cifar(monkeypatch, 10, train=60))
    mixing = Mixing(cutmix=1.0)
    data = CIFAR10DataModule(tmp_path, batch_size=60, num_workers=0, repeats=3, mixing=mixing)
    data.setup()
    (batch,) = data.train_dataloader()
    views = {bytes(image.numpy()) for image in batch.image}
    assert len(set(batch.index.tolist())) == 20
    assert len(views) > 50
    assert data.mixing is mixing


@pytest.mark.parametrize("classes", [10, 100])
def test_without_network_one_line_says_what_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    url = SOURCES[classes].url
    cifar(monkeypatch, classes)
    monkeypatch.setattr(SOURCES[classes], "url", "file:///nowhere/cifar.tar.gz")
    assert url.startswith("https://")
    with pytest.raises(
        ValueError, match=rf"^CIFAR{classes} is not in .*: put cifar-{classes}-python\.tar\.gz"
    ) as caught:
        MODULES[classes](tmp_path / "data").setup()
    assert str(caught.value).endswith(f"from file:///nowhere/cifar.tar.gz into {tmp_path / 'data'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"val_fraction": 0}, r"val_fraction must be in \(0, 1\), got 0"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \(0, 1\), got 1\.0"),
        ({"image_size": 0}, "image_size must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CIFAR10DataModule(**arguments)


def test_preprocessing_is_that_of_the_augmentation(tmp_path) -> None:
    data = CIFAR10DataModule(tmp_path, image_size=48)
    assert data.preprocessing == data.augmentation.evaluate(48).as_dict()
    assert (data.preprocessing["resize"], data.preprocessing["crop"]) == (48, [48, 48])
