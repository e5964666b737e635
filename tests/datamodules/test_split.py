import json
import shutil

import pytest
from toys import make_photos, names_by_split, pets, photo_folder


def test_one_folder_is_split_by_class_the_same_way_again_and_again(tmp_path) -> None:
    make_photos(tmp_path, pets(cats=50, dogs=20))
    first = names_by_split(photo_folder(tmp_path))
    assert [sum(name.startswith(kind) for name in first["val"]) for kind in ("cat", "dog")] == [10, 4]
    assert sorted(first["train"] + first["val"]) == pets(cats=50, dogs=20)
    assert names_by_split(photo_folder(tmp_path)) == first
    shutil.rmtree(tmp_path / ".lit_distill")
    assert names_by_split(photo_folder(tmp_path)) == first  # a pure function of seed and names
    shutil.rmtree(tmp_path / ".lit_distill")
    assert names_by_split(photo_folder(tmp_path, split_seed=1)) != first


def test_new_photos_change_no_others_side(tmp_path) -> None:
    make_photos(tmp_path, pets(cats=20, dogs=10))
    before = names_by_split(photo_folder(tmp_path))
    make_photos(tmp_path, [f"cat/new{i}.png" for i in range(20)])
    (tmp_path / "dog/03.png").unlink()
    after = names_by_split(photo_folder(tmp_path))
    for split in ("train", "val"):
        assert {name for name in before[split] if name != "dog/03.png"} <= set(after[split])
    assert sum(name.startswith("cat") for name in after["val"]) == 8  # a fifth of 40
    assert names_by_split(photo_folder(tmp_path)) == after


def test_a_class_of_two_is_on_both_sides_and_one_of_one_is_for_training(tmp_path) -> None:
    make_photos(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png", "bird/1.png", "bird/2.png", "bird/3.png"])
    data = photo_folder(tmp_path)
    assert data.splits["val"].targets.tolist() == [0, 1]
    assert data.splits["train"].targets.tolist() == [0, 0, 1, 2]


def test_a_class_that_has_lost_its_photos_to_train_on_is_an_error(tmp_path) -> None:
    make_photos(tmp_path, pets())
    for name in names_by_split(photo_folder(tmp_path))["train"]:
        if name.startswith("dog"):
            (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"'dog' has no photo to train on, and 1 to validate on by .*split\.json"):
        photo_folder(tmp_path)


def test_a_stored_split_of_other_images_is_refused(tmp_path) -> None:
    make_photos(tmp_path, pets())
    photo_folder(tmp_path)
    stored = tmp_path / ".lit_distill" / "split.json"
    with pytest.raises(
        ValueError, match=r"made with split_seed=42 and val_fraction=0\.2, not with 42 and 0\.5: delete"
    ):
        photo_folder(tmp_path, val_fraction=0.5)
    content = json.loads(stored.read_text())
    content["train"] = [f"other/{i}.png" for i in range(30)]
    stored.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"split\.json is of other images: 3 of its 33 are there; delete it to split"):
        photo_folder(tmp_path)
    stored.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"split\.json is no stored split: delete it"):
        photo_folder(tmp_path)
    with pytest.raises(ValueError, match=r"val_fraction must be in \(0, 1\), got 1"):
        photo_folder(tmp_path, val_fraction=1)


def test_a_folder_that_cannot_be_written_is_split_all_the_same(tmp_path, monkeypatch) -> None:
    make_photos(tmp_path, pets())
    expected = names_by_split(photo_folder(tmp_path))
    shutil.rmtree(tmp_path / ".lit_distill")
    (tmp_path / ".lit_distill").touch()  # in the way: as on a read-only disk nothing can be stored
    data = photo_folder(tmp_path)
    assert names_by_split(data) == expected
    assert data.mean is not None


def test_a_number_of_each_class_is_always_the_same_and_a_larger_one_adds_to_it(tmp_path) -> None:
    make_photos(tmp_path, [*pets("train/", 40, 30), *pets("test/", 9, 8)])
    few, more = (
        names_by_split(photo_folder(tmp_path, train_per_class=n, val_per_class=2, test_per_class=n)) for n in (5, 8)
    )
    whole = names_by_split(photo_folder(tmp_path))
    assert {split: len(names) for split, names in few.items()} == {"train": 10, "val": 4, "test": 10}
    assert few == names_by_split(photo_folder(tmp_path, train_per_class=5, val_per_class=2, test_per_class=5))
    for split in ("train", "test"):
        assert set(few[split]) < set(more[split]) <= set(whole[split])
    assert set(few["val"]) < set(whole["val"])


def test_more_of_a_class_than_there_is_is_an_error(tmp_path) -> None:
    make_photos(tmp_path, pets(cats=20, dogs=10))
    with pytest.raises(ValueError, match=r"train_per_class must be at most 8, the photos of class 'dog', got 9"):
        photo_folder(tmp_path, train_per_class=9)
    with pytest.raises(ValueError, match="val_per_class must be >= 1, got 0"):
        photo_folder(tmp_path, val_per_class=0)


def test_wrong_labels_are_planted_once_and_for_all(tmp_path) -> None:
    make_photos(tmp_path, [*pets(cats=50, dogs=25), *(f"bird/{i}.png" for i in range(25))])
    clean, wrong, more = (photo_folder(tmp_path, wrong_labels=share) for share in (0.0, 0.2, 0.4))
    labels = [
        dict(zip(data.splits["train"].files, data.splits["train"].targets.tolist(), strict=True))
        for data in (clean, wrong, more)
    ]
    planted, planted_more = ({name for name in labels[0] if labels[0][name] != other[name]} for other in labels[1:])
    assert [sum(name.startswith(kind) for name in planted) for kind in ("bird", "cat", "dog")] == [4, 8, 4]
    assert len(planted_more) == 32
    assert planted < planted_more
    assert all(labels[1][name] == labels[2][name] for name in planted)
    assert {labels[2][name] for name in planted_more if name.startswith("cat")} == {0, 2}
    assert names_by_split(wrong)["val"] == names_by_split(clean)["val"]
    assert wrong.splits["val"].targets.tolist() == clean.splits["val"].targets.tolist()
    with pytest.raises(ValueError, match=r"wrong_labels must be in \[0, 1\], got 2"):
        photo_folder(tmp_path, wrong_labels=2)
