"""The answers that are served are those that were measured: in table, CSV file, Python, terminal and ONNX Runtime."""

import csv
import os
from pathlib import Path
import re
import subprocess
import sys
from typing import Any

import numpy as np
from oracles import onnx_says
from PIL import Image
import pytest
from toys import make_photos

from lit_distill import load_student
from lit_distill.cli import main
from lit_distill.models.output import HEADS

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
QUICK = [*QUIET, "--teacher_net=resnet10t", "--teacher_epochs=1", "--epochs=3", "--num_threads=1"]


def run(*args: str) -> str:
    command = [sys.executable, "-m", "lit_distill.cli", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def odd_photos(root: Path, count: int = 6) -> Path:
    """Photos of three kinds and of many sizes, formats and modes: blobs of colour that are hard to tell apart."""
    draws = np.random.default_rng(0)
    for kind in ("bird", "cat", "dog"):
        (root / kind).mkdir(parents=True)
        for n in range(count):
            low = draws.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            low[..., ("bird", "cat", "dog").index(kind)] //= 2
            sides = tuple(draws.integers(40, 700, 2).tolist())
            image = Image.fromarray(low).resize(sides, Image.Resampling.BICUBIC)
            noise = draws.integers(0, 30, (sides[1], sides[0], 3), dtype=np.uint8)
            image = Image.fromarray(np.asarray(image) // 2 + noise)
            if n % 6 == 0:
                image.convert("RGBA").save(root / kind / f"{n}.png")
            elif n % 6 == 1:
                image.convert("P").save(root / kind / f"{n}.gif")
            elif n % 6 == 2:
                exif = Image.Exif()
                exif[274] = 6
                image.save(root / kind / f"{n}.jpg", exif=exif)
            else:
                image.save(root / kind / f"{n}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with odd photos, where all runs have one teacher."""
    folder = tmp_path_factory.mktemp("one")
    odd_photos(folder / "my_photos")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--model.distillation=null"], *([f"--model.head={head}"] for head in HEADS)],
    ids=["no distillation", *HEADS],
)
def test_one_answer_everywhere(flags: list[str], one_folder: Path, monkeypatch, capfd, unforked: Any) -> None:
    monkeypatch.chdir(one_folder)
    # Of 64 px, so that photos are shrunk; a third of them is measured.
    data = ["--data.root=my_photos", "--data.image_size=64", "--data.val_fraction=0.34"]
    out = run("distill", *data, *QUICK, "--onnx=true", *flags)
    table = float(re.findall(r"^student +([\d.]+)%", out, re.MULTILINE)[-1])
    exported, checkpoint = (
        Path(re.findall(rf"^{name} +(\S*/\S+)$", out, re.MULTILINE)[0]) for name in ("student", "checkpoint")
    )
    run("predict", "--ckpt_path", str(checkpoint), *QUIET)
    rows = list(csv.DictReader(checkpoint.with_name("predictions.csv").read_text().splitlines()))
    right = [row["class"] == Path(row["file"]).parent.name for row in rows]
    assert f"{100 * sum(right) / len(right):.2f}" == f"{table:.2f}"

    served: dict[str, Any] = {"export": load_student(exported), "checkpoint": load_student(checkpoint)}
    capfd.readouterr()
    for name, student in served.items():
        files = [Path("my_photos", row["file"]) for row in rows]
        classes, probabilities = student.predict(files)
        assert classes == [row["class"] for row in rows], name
        for row, values in zip(rows, probabilities.tolist(), strict=True):
            shown = [float(row[f"p({kind})"]) for kind in ("bird", "cat", "dog")]
            assert values == pytest.approx(shown, abs=2e-5)
    for row in rows:
        places = (path.resolve() for path in (exported / "student.onnx", Path("my_photos", row["file"])))
        kind, values = unforked(onnx_says, *places)
        assert kind == row["class"]
        assert values == pytest.approx([float(row[f"p({kind})"]) for kind in ("bird", "cat", "dog")], abs=1e-4)
    main(["predict", str(exported), *(f"my_photos/{row['file']}" for row in rows)])
    lines = capfd.readouterr().out.strip().split("\n")
    assert [line.split()[:2] for line in lines] == [[f"my_photos/{row['file']}", row["class"]] for row in rows]
    # Nothing of this machine in what is given away.
    for path in exported.iterdir():
        assert str(one_folder).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
        assert b"my_photos" not in path.read_bytes()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, unforked: Any) -> Path:
    """A checkpoint of a short run on photos."""
    folder = tmp_path_factory.mktemp("served")
    root = make_photos(folder / "photos", [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(6)])
    vit = [f"--model.student.{key}={value}" for key, value in {"patch_size": 8, "dim": 16, "depth": 1}.items()]
    vit += ["--model.student.heads=1", "--model.student.mlp_dim=16", f"--trainer.default_root_dir={folder}"]
    data = ["--data=ImageFolderDataModule", f"--data.root={root}", "--data.image_size=16", "--data.batch_size=4"]
    short = ["--trainer.max_epochs=1", "--model.student=DistillableViT"]
    unforked(main, ["fit", *data, *short, *vit, *QUIET])
    (path,) = folder.glob("lightning_logs/version_0/checkpoints/last.ckpt")
    return path


def test_photos_and_folders_are_predicted_and_written(student: Path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(Path("new"), ["a/1.png", "a/b/2.jpg", "3.bmp"])
    (tmp_path / "new" / "notes.txt").write_text("no photo, and no mistake")
    (tmp_path / "new" / "4.png").write_text("no photo, but it says so")
    main(["predict", str(student), "new", "new/3.bmp"])
    printed = capsys.readouterr()
    files = [line.split()[0] for line in printed.out.strip().split("\n")]
    assert files == ["new/3.bmp", "new/a/1.png", "new/a/b/2.jpg", "new/3.bmp"]
    assert re.search(r"^new/3.bmp +(cat|dog) \d+\.\d\d%  (cat|dog) \d+\.\d\d%$", printed.out, re.MULTILINE)
    assert "left out: cannot read the photo new/4.png" in printed.err
    main(["predict", str(student), "new", "--output=out.csv"])
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["new/3.bmp", "new/a/1.png", "new/a/b/2.jpg"]
    assert set(rows[0]) == {"file", "class", "probability", "p(cat)", "p(dog)"}
    card = load_student(student).card
    assert card["preprocessing"]["crop"] == [16, 16]  # type: ignore[index]


def test_no_name_and_no_pipe_loses_the_other_predictions(student: Path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(Path("new"), ["a.png", "b.png"])
    Path("new/a.png").rename(os.fsdecode(b"new/caf\xe9.png"))
    Path("new/up").symlink_to("..")
    Path("new/gone.png").symlink_to("nowhere")
    os.mkfifo("new/pipe.png")
    main(["predict", str(student), "new"])
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["new/b.png", "new/caf\\xe9.png"]
    assert printed.err == (
        "new: left out: broken link: gone.png; pipe, socket or device: pipe.png; link to what is read already: up\n"
    )
    main(["predict", str(student), "new", "--output=out.csv"])
    rows = list(csv.DictReader(Path("out.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["file"] for row in rows] == ["new/b.png", "new/caf\\xe9.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("no_such_export {photo}", "no checkpoint file at no_such_export"),
        ("{student} no/such.jpg", "there is no photo no/such.jpg; looked in"),
        ("{student} empty", "there are no images in the folder empty"),
        ("{student} broken", "none of the 1 files can be read as a photo"),
        ("{student} broken/1.png", "cannot read the photo broken/1.png"),
        ("{student}", "name a photo or a folder after the student: predict STUDENT photo.jpg"),
        ("{student} {photo} --output=there.csv", "there.csv exists and is not overwritten"),
        ("{student} {photo} --outptu=x.csv", "unknown option --outptu: did you mean '--output'?"),
        ("{student} {photo} --trust=no_such_package", "cannot trust 'no_such_package'"),
    ],
)
def test_a_mistake_is_one_line(student: Path, tmp_path, monkeypatch, capsys, args: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path, ["photo.png"])
    for folder in ("empty", "broken"):
        Path(folder).mkdir()
    Path("empty/readme.txt").touch()
    Path("broken/1.png").touch()
    Path("there.csv").touch()
    with pytest.raises(SystemExit, match="1"):
        main(["predict", *args.format(student=student, photo="photo.png").split()])
    printed = capsys.readouterr()
    assert printed.err.strip().split("\n")[-1].startswith(f"error: {message}")
    assert printed.out == ""
