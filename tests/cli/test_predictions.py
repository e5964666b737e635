"""What `predict` writes, of one and of two processes."""

import csv
import os
from pathlib import Path
import shutil
import subprocess
import sys
from typing import Any

from lightning.pytorch import Trainer, seed_everything
import numpy as np
from PIL import Image
import pytest
import torch
from torch.utils.data import DataLoader
from toys import QUIET as QUIETLY

from lit_distill import DistillableViT, LitDistiller
from lit_distill.cli import main
from lit_distill.cli.predictions import write_predictions
from lit_distill.datamodules import DogsVsCatsDataModule, ImageFolderDataModule

ROOT = Path(__file__).parents[2]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
STUDENT = {"image_size": 16, "patch_size": 8, "dim": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "dim_head": 8}
TESTS = 11


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    names = [f"train/{name}.{number}.jpg" for name in ("cat", "dog") for number in range(5)]
    for name in [*names, *(f"test/{number}.jpg" for number in range(1, TESTS + 1))]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def predict(data: str, root: Path, *flags: str) -> list[str]:
    student = [f"--model.student.{name}={value}" for name, value in STUDENT.items()]
    what = ["--model.student=DistillableViT", *student, f"--data={data}", f"--data.root={root}"]
    sizes = ["--data.image_size=16", "--data.eval_batch_size=2", "--data.num_workers=0"]
    return ["predict", "--seed_everything=1", *what, *sizes, *QUIET, *flags]


def table(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def direct(data: Any) -> torch.Tensor:
    """The probabilities of the network that the command makes, image by image."""
    seed_everything(1, verbose=False)
    student = DistillableViT(**STUDENT, num_classes=data.num_classes, mean=data.mean, std=data.std)
    module = LitDistiller(student).eval()
    data.setup("predict")
    with torch.no_grad():
        return torch.cat([module.predict_step(image[None]) for image, _ in data.predict_set])


def test_dogs_and_cats_are_written_as_kaggle_wants_them(photos: Path) -> None:
    main(predict("DogsVsCatsDataModule", photos, "--output=mine.csv"))
    rows = table("mine.csv")
    assert list(rows[0]) == ["id", "label"]
    assert [row["id"] for row in rows] == [str(number) for number in range(1, TESTS + 1)]
    dog = direct(DogsVsCatsDataModule(photos, image_size=16, num_workers=0))[:, 1].tolist()
    assert [float(row["label"]) for row in rows] == pytest.approx(dog, abs=1e-6)
    assert len(set(dog)) == TESTS


def test_files_are_named_and_a_damaged_one_shifts_no_row(photos: Path) -> None:
    (photos / "train" / "cat").mkdir()
    (photos / "train" / "dog").mkdir()
    for path in (photos / "train").glob("*.jpg"):
        path.rename(path.parent / path.name[:3] / path.name)
    (photos / "test" / "3.jpg").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="left out: 1 of 11 files for predict"):
        main(predict("ImageFolderDataModule", photos, "--output=mine.csv", "--data.max_damaged=0.5"))
    rows = table("mine.csv")
    assert list(rows[0]) == ["index", "file", "class", "probability", "p(cat)", "p(dog)"]
    names = sorted(f"test/{number}.jpg" for number in range(1, TESTS + 1) if number != 3)
    assert [row["file"] for row in rows] == names
    with pytest.warns(UserWarning, match="left out"):
        expected = direct(ImageFolderDataModule(photos, image_size=16, num_workers=0, max_damaged=0.5))
    assert [float(row["p(dog)"]) for row in rows] == pytest.approx(expected[:, 1].tolist(), abs=1e-6)


def test_a_name_that_is_no_utf_8_loses_no_prediction(photos: Path) -> None:
    (photos / "unsorted").mkdir()
    for path, name in zip(sorted((photos / "test").iterdir()), (b"caf\xe9.jpg", "ü.jpg".encode()), strict=False):
        path.rename(photos / "unsorted" / os.fsdecode(name))
    for kind in ("cat", "dog"):
        (photos / "train" / kind).mkdir()
        for path in (photos / "train").glob(f"{kind}*.jpg"):
            path.rename(path.parent / kind / path.name)
    shutil.rmtree(photos / "test")
    main(predict("ImageFolderDataModule", photos, "--output=mine.csv", f"--data.predict_root={photos / 'unsorted'}"))
    rows = list(csv.DictReader(Path("mine.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["file"] for row in rows] == ["caf\\xe9.jpg", "ü.jpg"] or [row["file"] for row in rows] == [
        "ü.jpg",
        "caf\\xe9.jpg",
    ]


def test_rows_are_those_of_the_data_set_whatever_order_a_loader_has(photos: Path) -> None:
    class Backwards(DogsVsCatsDataModule):
        def predict_dataloader(self) -> DataLoader[Any]:
            return self._loader(super().predict_dataloader().dataset, 2, sampler=[*reversed(range(TESTS)), 0, 1])

    data = Backwards(photos, image_size=16, num_workers=0)
    expected = direct(data)[:, 1].tolist()
    torch.manual_seed(1)
    module = LitDistiller(DistillableViT(**STUDENT, num_classes=2, mean=data.mean, std=data.std))
    write_predictions(Trainer(**QUIETLY), Path("mine.csv"), model=module, datamodule=data)
    assert [float(row["label"]) for row in table("mine.csv")] == pytest.approx(expected, abs=1e-6)


def test_part_of_the_photos_is_no_submission(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(predict("DogsVsCatsDataModule", photos, "--output=mine.csv", "--trainer.limit_predict_batches=2"))
    assert "error: expected predictions of all 11 photos, got 4" in capsys.readouterr().err
    assert not Path("mine.csv").exists()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(photos: Path) -> None:
    main(predict("DogsVsCatsDataModule", photos, "--output=one.csv"))
    two = predict("DogsVsCatsDataModule", photos, "--output=two.csv", "--trainer.devices=2", "--trainer.strategy=ddp")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *two],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 11 predictions to two.csv") == 1
    assert [row["id"] for row in table("two.csv")] == [row["id"] for row in table("one.csv")]
    ours, theirs = ([float(row["label"]) for row in table(name)] for name in ("two.csv", "one.csv"))
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow
def test_two_processes_predict_a_single_photo(photos: Path) -> None:
    for number in range(2, TESTS + 1):
        (photos / "test" / f"{number}.jpg").unlink()
    main(predict("DogsVsCatsDataModule", photos, "--output=one.csv"))
    two = predict("DogsVsCatsDataModule", photos, "--output=two.csv", "--trainer.devices=2", "--trainer.strategy=ddp")
    command = [sys.executable, str(ROOT / "train.py"), *two]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    ours, theirs = (table(name) for name in ("two.csv", "one.csv"))
    assert len(ours) == 1
    assert float(ours[0]["label"]) == pytest.approx(float(theirs[0]["label"]), abs=1e-6)
