import os
from pathlib import Path
import shutil

from PIL import Image
import pytest
import torch
from toys import make_photos, names_by_split, pets, photo_folder, trainer

from lit_distill.datamodules import Augmentation, walk


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders(tmp_path, val: str) -> None:
    make_photos(tmp_path, pets("train/") + pets(f"{val}/", 3, 2))
    data = photo_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert names_by_split(data) == {"train": pets("train/"), "val": pets(f"{val}/", 3, 2)}
    assert data.splits["train"].targets.tolist() == [0] * 10 + [1] * 6
    assert not (tmp_path / ".lit_distill" / "split.json").exists()


def test_a_test_folder_is_held_out_unless_it_is_asked_for(tmp_path) -> None:
    make_photos(tmp_path, pets("train/", 20, 10) + pets("test/", 3, 2))
    data = photo_folder(tmp_path)
    assert {split: len(names) for split, names in names_by_split(data).items()} == {"train": 24, "val": 6, "test": 5}
    assert not any(name.startswith("test") for split in ("train", "val") for name in names_by_split(data)[split])
    told = photo_folder(tmp_path, val="test")
    assert names_by_split(told) == {
        "train": pets("train/", 20, 10),
        "val": pets("test/", 3, 2),
        "test": pets("test/", 3, 2),
    }
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / ".lit_distill")
    make_photos(tmp_path, pets(cats=20, dogs=10))  # beside the classes
    beside = photo_folder(tmp_path)
    assert beside.class_names == ("cat", "dog")
    assert len(names_by_split(beside)["test"]) == 5


def test_images_without_class_folders_are_to_be_predicted(tmp_path) -> None:
    make_photos(tmp_path, [*pets("train/"), *pets("val/"), "test/9.png", "test/10.png"])
    data = photo_folder(tmp_path)
    assert names_by_split(data)["predict"] == ["test/10.png", "test/9.png"]
    assert data.splits["predict"].targets.tolist() == [-1, -1]
    make_photos(tmp_path / "elsewhere", ["a/1.png", "b/c/2.png", "3.png"])
    data = photo_folder(tmp_path, predict_root=tmp_path / "elsewhere")
    data.setup("predict")
    assert data.names("predict") == ["3.png", "a/1.png", "b/c/2.png"]
    assert [len(batch.image) for batch in data.predict_dataloader()] == [3]


def test_deeper_folders_belong_to_their_class_and_hidden_files_to_none(tmp_path) -> None:
    make_photos(tmp_path, ["cat/2020/a.png", "cat/b.png", "dog/x/y/c.png", "dog/d.png"])
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "dog" / "Thumbs.db").touch()
    (tmp_path / ".git" / "x").mkdir(parents=True)
    data = photo_folder(tmp_path, val_fraction=0.5)
    found = {name for names in names_by_split(data).values() for name in names}
    assert found == {"cat/2020/a.png", "cat/b.png", "dog/d.png", "dog/x/y/c.png"}
    assert data.class_names == ("cat", "dog")


def test_a_folder_of_links_is_followed(tmp_path) -> None:
    make_photos(tmp_path / "real", pets())
    (tmp_path / "linked").mkdir()
    for kind in ("cat", "dog"):
        (tmp_path / "linked" / kind).symlink_to(tmp_path / "real" / kind)
    assert len(names_by_split(photo_folder(tmp_path / "linked"))["train"]) == 13


def test_a_link_to_a_parent_brings_no_photo_twice(tmp_path) -> None:
    make_photos(tmp_path, pets())
    expected = names_by_split(photo_folder(tmp_path))
    (tmp_path / "cat" / "up").symlink_to("..")
    (tmp_path / "all").symlink_to(".")
    (tmp_path / "dog" / "gone.png").symlink_to("nowhere.png")
    data = photo_folder(tmp_path)
    assert names_by_split(data) == expected
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize("layout", ["", "train/"])
def test_a_small_folder_with_other_files_is_trained_on_and_they_are_said_once(tmp_path, layout, caplog) -> None:
    make_photos(tmp_path, pets(layout))
    expected = names_by_split(photo_folder(tmp_path))
    for name in ("README.txt", "00.png.json", "LICENSE"):
        (tmp_path / layout / "cat" / name).write_text("no photo")
    make_photos(tmp_path / layout, ["notes/a.png"])
    (tmp_path / layout / "notes" / "a.png").rename(tmp_path / layout / "notes" / "a.txt")
    data = photo_folder(tmp_path)
    assert names_by_split(data) == expected
    with caplog.at_level("INFO"):
        data.setup()
        data.setup("fit")
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line == (
        f"left out: no image by its name: {layout}cat/00.png.json and 2 more; "
        f"folder without an image, taken for no class: {layout}notes"
    )


def test_outputs_of_a_run_are_no_class(tmp_path) -> None:
    make_photos(tmp_path, pets())
    for name in ("lightning_logs/version_0/checkpoints/last.ckpt", "distilled/x/teacher-1/made_of.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "logs/version_1").mkdir(parents=True)
    assert photo_folder(tmp_path).class_names == ("cat", "dog")


def test_photos_in_a_format_that_nothing_here_reads_are_said_with_what_does(tmp_path, monkeypatch) -> None:
    make_photos(tmp_path, pets())
    (tmp_path / "cat" / "IMG_1.HEIC").touch()
    monkeypatch.setattr(walk, "photo_suffixes", lambda: frozenset({".png"}))
    with pytest.warns(UserWarning, match=r"HEIC, which is read after pip install 'lit-distill\[heif\]'"):
        photo_folder(tmp_path).setup("fit")
    (tmp_path / "fox").mkdir()
    (tmp_path / "cat" / "IMG_1.HEIC").rename(tmp_path / "fox" / "IMG_1.HEIC")
    with pytest.raises(ValueError, match=r"no images of class 'fox' in .*HEIC, .*lit-distill\[heif\]"):
        photo_folder(tmp_path)


def test_what_is_odd_is_one_line_each(tmp_path) -> None:
    make_photos(tmp_path, [*pets("train/", 30, 3), "train/fox/1.png", *pets("val/", 2, 2)])
    shutil.copy(tmp_path / "train/cat/01.png", tmp_path / "train/dog/9.png")
    shutil.copy(tmp_path / "train/cat/02.png", tmp_path / "val/cat/9.png")
    data = photo_folder(tmp_path)
    with pytest.warns(UserWarning) as caught:  # noqa: PT030  # the messages are compared below
        data.setup("fit")
    assert [str(warning.message).partition(", such as")[0].partition(": 3")[0] for warning in caught] == [
        "photos in two classes: 1",
        "photos trained on and validated: 1",
        "classes with one photo to train on: 1 of 3",
        "strong imbalance",
    ]
    with pytest.warns(UserWarning) as again:  # noqa: PT030  # from what is stored
        photo_folder(tmp_path, decode_memory=0).setup("fit")
    assert [str(warning.message) for warning in again] == [str(warning.message) for warning in caught]


def test_names_that_are_no_utf_8(tmp_path) -> None:
    make_photos(tmp_path, pets())
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / "dog").rename(tmp_path / odd)
    (tmp_path / odd / "00.png").rename(tmp_path / odd / f"{odd}.png")
    data = photo_folder(tmp_path)
    assert data.class_names == ("caf\\xe9", "cat")
    assert f"{odd}/{odd}.png" in [name for found in names_by_split(data).values() for name in found]
    data.setup("fit")
    assert names_by_split(photo_folder(tmp_path)) == names_by_split(data)  # from what is stored


MISTAKES = {
    "nothing": (["other/cat/1.png"], "photos does not exist: expected train/<class>/ with"),
    "a file": (["photos"], "photos is a file: expected train/<class>/"),
    "no folders": (
        ["photos/1.png", "photos/2.png"],
        "photos has no folders of classes: expected train/<class>/",
    ),
    "splits only": (
        ["photos/val/cat/1.png"],
        "photos has no folders of classes: expected train/<class>/ with val/<class>/, or <class>/",
    ),
    "no class folders": (["photos/train/1.png"], "train has no folders of classes"),
    "one class": (["photos/cat/1.png", "photos/cat/2.png"], "one class only, 'cat': expected train/<class>/"),
    "one deeper": (["photos/all/cat/1.png", "photos/all/dog/2.png"], "was all meant as the root?"),
    "a class that val alone has": (
        [*pets("photos/train/"), *pets("photos/val/"), "photos/val/dogs/1.png"],
        "class 'dogs' has images to evaluate on and none to train on: did you mean 'dog'?",
    ),
    "two names of a split": (
        [*pets("photos/train/"), *pets("photos/val/"), *pets("photos/valid/")],
        "has val and valid, both for val: keep one",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_folders_is_one_line(tmp_path, mistake: str) -> None:
    photos, message = MISTAKES[mistake]
    for name in photos:
        if Path(name).suffix:
            make_photos(tmp_path, [name])
        else:
            (tmp_path / name).touch()
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is compared below, as a text
        photo_folder(tmp_path / "photos")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_class_folder_is_named(tmp_path) -> None:
    make_photos(tmp_path, pets())
    (tmp_path / "horse").mkdir()
    with pytest.raises(ValueError, match=r"no images of class 'horse' in .*: fill or remove its folder"):
        photo_folder(tmp_path)


def test_a_misspelt_root_is_hinted_at(tmp_path) -> None:
    make_photos(tmp_path / "my_photos", pets())
    with pytest.raises(ValueError, match=r"my_fotos does not exist: .*did you mean 'my_photos'\?"):
        photo_folder(tmp_path / "my_fotos")


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch) -> None:
    make_photos(tmp_path, pets())
    import os

    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot read the folder .*dog: Permission denied"):
        photo_folder(tmp_path)


def test_statistics_are_the_training_images(tmp_path) -> None:
    make_photos(tmp_path, pets())
    for name in ("cat", "dog"):
        for path in (tmp_path / name).iterdir():
            Image.new("RGB", (40, 32), (51, 102, 204)).save(path)
    data = photo_folder(tmp_path)
    assert data.mean == [0.2, 0.4, 0.8]
    assert data.std == [0.001] * 3  # not 0: something divides by it
    assert photo_folder(tmp_path, channels=1).mean == pytest.approx([0.386], abs=0.002)


def test_a_fit_runs_on_it(tmp_path) -> None:
    from lit_distill import DistillableViT, LitDistiller

    make_photos(tmp_path, pets())
    data = photo_folder(tmp_path, augmentation=Augmentation(policy="three-augment", erasing=0.5))
    student = DistillableViT(16, 8, data.num_classes, 16, 1, 1, 16, mean=data.mean, std=data.std)
    run = trainer(max_epochs=2)
    run.fit(LitDistiller(student), datamodule=data)
    assert run.global_step == 8
    assert "val/accuracy_class" in run.callback_metrics
    assert torch.isfinite(run.callback_metrics["train/loss"])


def test_a_folder_of_its_own_is_tested_whole(tmp_path) -> None:
    make_photos(tmp_path / "photos", pets())
    make_photos(tmp_path / "later", pets(cats=3, dogs=2))
    data = photo_folder(tmp_path / "photos", test_root=tmp_path / "later")
    data.setup("test")
    assert [len(batch.image) for batch in data.test_dataloader()] == [4, 1]
    assert names_by_split(data)["test"] == pets(cats=3, dogs=2)
    assert not (tmp_path / "later" / ".lit_distill").exists()
    make_photos(tmp_path / "other", ["mouse/1.png"])
    with pytest.raises(ValueError, match=r"class 'mouse' has images to evaluate on and none to train on"):
        photo_folder(tmp_path / "photos", test_root=tmp_path / "other")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"there are no images for test in .*none"):
        photo_folder(tmp_path / "photos", test_root=tmp_path / "none")
