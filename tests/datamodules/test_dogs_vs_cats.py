import csv
import io
from pathlib import Path
import re
import shutil
import zipfile

from made import unpack, zipped
from PIL import Image
import pytest
from sklearn.model_selection import train_test_split
import torch

from lit_distill.datamodules import DogsVsCatsDataModule
from lit_distill.datamodules.zips import ZipFiles

CATS, DOGS, TESTS = 12, 13, 11
SMALL = {"image_size": 16, "num_workers": 0}


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 24), (shade, shade, shade)).save(file, "JPEG")
    return file.getvalue()


def train_files() -> dict[str, bytes]:
    # Not in order, as in Kaggle's archive.
    dogs = {f"train/dog.{number}.jpg": jpeg(100 + number) for number in reversed(range(DOGS))}
    return dogs | {f"train/cat.{number}.jpg": jpeg(number) for number in range(CATS)}


def unlabelled_files(folder: str = "test") -> dict[str, bytes]:
    return {f"{folder}/{number}.jpg": jpeg(200 + number) for number in sorted(range(1, TESTS + 1), key=str)}


def download(test: str = "test", method: int = zipfile.ZIP_STORED) -> bytes:
    inner = {"train.zip": zipped(train_files()), f"{test}.zip": zipped(unlabelled_files(test))}
    return zipped({**inner, "sample_submission.csv": b"id,label\n1,0.5\n"}, method)


def as_it_comes(folder: Path, kind: str) -> Path:
    """Lay out the photos in one of the ways in which people have them, and return the root to give."""
    if kind in ("dogs-vs-cats.zip", "dogs-vs-cats-redux-kernels-edition.zip"):
        (folder / kind).write_bytes(download("test1" if kind == "dogs-vs-cats.zip" else "test"))
        return folder / kind
    if kind == "compressed":
        (folder / "dogs-vs-cats.zip").write_bytes(download("test1", zipfile.ZIP_DEFLATED))
        return folder / "dogs-vs-cats.zip"
    if kind == "folder with the download":
        (folder / "dogs-vs-cats.zip").write_bytes(download())
        return folder
    if kind in ("train.zip", "folder with train.zip"):
        unpack(folder, {"train.zip": zipped(train_files()), "test1.zip": zipped(unlabelled_files("test1"))})
        return folder / "train.zip" if kind == "train.zip" else folder
    if kind == "one zip of both":
        (folder / "all.zip").write_bytes(zipped(train_files() | unlabelled_files()))
        return folder / "all.zip"
    if kind == "unpacked twice":
        return unpack(
            folder, {f"train/{name}": data for name, data in train_files().items()} | unlabelled_files("test/test")
        )
    return unpack(folder, train_files() | unlabelled_files(kind))


KINDS = [
    "dogs-vs-cats.zip",
    "dogs-vs-cats-redux-kernels-edition.zip",
    "compressed",
    "folder with the download",
    "train.zip",
    "folder with train.zip",
    "one zip of both",
    "unpacked twice",
    "test",
    "test1",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_have_the_photos_gives_the_same_splits(tmp_path: Path, kind: str) -> None:
    data = DogsVsCatsDataModule(as_it_comes(tmp_path, kind), **SMALL)
    data.setup()
    ordered = [f"cat.{n}.jpg" for n in range(CATS)] + [f"dog.{n}.jpg" for n in range(DOGS)]
    labels = [name[:3] for name in ordered]
    rows = train_test_split(range(CATS + DOGS), test_size=0.2, stratify=labels, random_state=42)
    for split, chosen in zip(("train", "val"), rows, strict=True):
        assert [Path(name).name for name in data.splits[split].files] == [ordered[row] for row in sorted(chosen)]
    assert [Path(name).name for name in data.names("predict")] == [f"{n}.jpg" for n in range(1, TESTS + 1)]
    for name, (image, target) in zip(data.names("val"), data.val_set, strict=True):
        animal, number = re.fullmatch(r".*/(cat|dog)\.(\d+)\.jpg", name).groups()
        assert target == ["cat", "dog"].index(animal)
        assert image.float().mean().item() == pytest.approx(int(number) + 100 * target, abs=2)
    assert data.predict_set[4][0].float().mean().item() == pytest.approx(205, abs=2)
    zipped = kind.endswith((".zip", "download", "both", "compressed"))
    assert isinstance(data.splits["train"].files, ZipFiles) == zipped


def test_validation_crops_nothing_at_random_and_is_tested_on(tmp_path: Path) -> None:
    data = DogsVsCatsDataModule(as_it_comes(tmp_path, "test"), **SMALL)
    data.setup()
    assert torch.equal(data.val_set[0][0], data.val_set[0][0])
    assert data.names("test") == data.names("val")


def test_without_unlabelled_photos_there_is_no_submission(tmp_path: Path) -> None:
    data = DogsVsCatsDataModule(unpack(tmp_path, train_files()), **SMALL)
    assert data.submission(torch.rand(5, 2)) is None
    assert data.names("predict") == data.names("val")


def test_the_submission_is_kaggles_also_with_a_damaged_photo(tmp_path: Path) -> None:
    root = unpack(tmp_path, train_files() | unlabelled_files())
    (root / "test" / "3.jpg").write_bytes(b"")
    data = DogsVsCatsDataModule(root, **SMALL, max_damaged=0.5)
    with pytest.warns(UserWarning, match=r"1 of 11 files for predict are no readable images: test/3\.jpg"):
        data.setup("predict")
    assert len(data.predict_set) == TESTS - 1
    dog = torch.linspace(0.1, 0.9, TESTS - 1)
    head, rows = data.submission(torch.stack([1 - dog, dog], dim=1))
    assert head == ["id", "label"]
    assert [row[0] for row in rows] == list(range(1, TESTS + 1))
    expected = [*dog[:2].tolist(), 0.5, *dog[2:].tolist()]
    assert [float(row[1]) for row in rows] == pytest.approx(expected)
    with pytest.raises(ValueError, match="expected predictions of all 10 photos, got 4"):
        data.submission(torch.rand(4, 2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, r"photos does not exist: expected Kaggle's dogs-vs-cats\.zip or .*train/cat\.0\.jpg"),
        (lambda root: root.mkdir(), "photos has nothing: expected Kaggle's"),
        (lambda root: root.write_bytes(b"junk"), "photos is no zip archive"),
        (lambda root: root.write_bytes(zipped(unlabelled_files())), r"photos has test/1\.jpg, .*: expected Kaggle's"),
        (lambda root: root.write_bytes(zipped({"train.zip": b"junk"})), "no zip archive"),
        (lambda root: root.write_bytes(zipped({"../train/cat.0.jpg": b""})), "leads out of the archive"),
        (lambda root: unpack(root, {"train/a.txt": b""}), "photos has train: expected Kaggle's"),
        (
            lambda root: unpack(root, {k: v for k, v in train_files().items() if "cat" in k}),
            "photos has 12 cats and 0 dogs: expected 5 or more of each",
        ),
        (
            lambda root: unpack(root, train_files() | {"train/more/cat.3.jpg": jpeg(1)}),
            r"there are .*cat\.3\.jpg and .*cat\.3\.jpg: expected one photo of that number",
        ),
    ],
)
def test_what_is_not_the_photos_is_said_in_one_line(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "photos")
    with pytest.raises(ValueError, match=said) as caught:
        DogsVsCatsDataModule(tmp_path / "photos")
    assert "\n" not in str(caught.value)


def test_near_misses_of_the_root_are_named(tmp_path: Path) -> None:
    root = unpack(tmp_path / "photos", train_files())
    with pytest.raises(ValueError, match=r"\(was .*photos meant\?\)"):
        DogsVsCatsDataModule(root / "train")
    table = tmp_path / "sample_submission.csv"
    table.write_text("id,label\n1,0.5\n")
    with pytest.raises(ValueError, match=r"sample_submission\.csv is no zip archive"):
        DogsVsCatsDataModule(table)
    shutil.rmtree(root)
    with pytest.raises(ValueError, match="does not exist"):
        DogsVsCatsDataModule(root)


def test_what_the_scan_found_is_kept_beside_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_it_comes(tmp_path, "dogs-vs-cats.zip")
    first = DogsVsCatsDataModule(root, **SMALL, decode_memory=0)
    mean = first.mean
    monkeypatch.setattr(ZipFiles, "open", None)  # nothing is read again
    assert DogsVsCatsDataModule(root, **SMALL, decode_memory=0).mean == mean
    assert list(csv.reader((tmp_path / ".lit_distill" / "dogs_vs_cats.json").read_text().splitlines()))
