from pathlib import Path
import pickle
import shutil

from made import WNIDS, imagenet_archives, imagenet_folder, unpack
import pytest
import torch

from lit_distill.datamodules import ImageNetDataModule

SMALL = {"image_size": 16, "num_workers": 0}
NAMES = ("tench", "crane (n02012849)", "tabby", "crane (n03126707)")


def test_an_unpacked_folder_is_read_as_it_is(tmp_path: Path) -> None:
    root = unpack(tmp_path, imagenet_folder())
    data = ImageNetDataModule(root, **SMALL)
    data.setup()
    assert (data.class_names, data.num_classes) == (NAMES, 4)
    assert list(data.splits["train"].files) == [f"train/{w}/{w}_{n}.JPEG" for w in WNIDS for n in range(3)]
    assert [target for _, target in data.val_set] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.names("predict") == data.names("test") == data.names("val")
    image, _ = data.train_set[0]
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
    assert not (root / ".lit_distill").exists()  # nothing was read ahead
    assert (data.mean, data.std) == (None, None)


def test_archives_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack(tmp_path, imagenet_archives(monkeypatch))
    data = ImageNetDataModule(root, **SMALL)
    data.setup()
    assert data.class_names == NAMES
    folder = imagenet_folder()
    content = {w: {(root / name).read_bytes() for name in data.names("val") if f"/{w}/" in name} for w in WNIDS}
    assert content == {w: {v for name, v in folder.items() if name.startswith(f"val/{w}")} for w in WNIDS}
    assert [(root / name).read_bytes() for name in data.splits["train"].files] == [
        content for name, content in folder.items() if name.startswith("train/")
    ]
    for archive in root.glob("*.tar*"):
        archive.unlink()
    assert ImageNetDataModule(root, **SMALL).names("val") == data.names("val")


def test_a_worker_is_given_no_list_of_names(tmp_path: Path) -> None:
    sizes = []
    for count in (3, 30):
        data = ImageNetDataModule(unpack(tmp_path / str(count), imagenet_folder(count)), **SMALL)
        data.setup("fit")
        assert not any(isinstance(value, list) for value in vars(data.train_set.files).values())
        sizes.append(len(pickle.dumps(data.train_set)))
    assert sizes[1] - sizes[0] < 27 * len(WNIDS) * 60


def missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()


def damaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(root, imagenet_archives(monkeypatch) | {"ILSVRC2012_img_train.tar": b"cut off"})


def no_devkit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(root, imagenet_archives(monkeypatch))
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()


def cut_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(root, imagenet_folder() | {"train/n01440764.tar": b""})


def flat(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(root, imagenet_folder(val=0) | {"val/ILSVRC2012_val_00000001.JPEG": b""})


def empty_class(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(root, imagenet_folder())
    shutil.rmtree(root / "train" / WNIDS[1])
    (root / "train" / WNIDS[1]).mkdir()


def other_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(root, imagenet_folder())
    shutil.rmtree(root / "val" / WNIDS[1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root, _: None, "imagenet does not exist: expected train/<class>"),
        (lambda root, _: root.touch(), "imagenet is a file: expected train/<class>"),
        (missing, r"The archive ILSVRC2012_devkit_t12\.tar\.gz is not present .*\(expected train/<class>"),
        (damaged, r"The archive ILSVRC2012_img_train\.tar is not present in the root directory or is corrupted"),
        (no_devkit, r"The archive ILSVRC2012_devkit_t12\.tar\.gz is not present"),
        (cut_off, r"train has n01440764\.tar in no class folder: unpacking was cut off"),
        (flat, r"val has ILSVRC2012_val_00000001\.JPEG in no class folder: unpacking was cut off"),
        (empty_class, r"there are no images of class n02012849 in .*train"),
        (other_classes, r"imagenet has 1 classes in one of train and val only, such as n02012849"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make, said: str) -> None:
    make(tmp_path / "imagenet", monkeypatch)
    with pytest.raises(ValueError, match=said) as caught:
        ImageNetDataModule(tmp_path / "imagenet")
    assert "\n" not in str(caught.value)
