"""The command that finds wrong labels: what it writes, what it leaves out, and what it refuses."""

import csv
from pathlib import Path
import re
import shutil
import subprocess
import sys
from typing import Any

from PIL import Image
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.v2 import functional as F
from toys import Foreign, make_photos, toy_loader, trainer

from lit_distill.callbacks import (
    LearningWithRetrospection,
    ProgressiveSelfDistillation,
    SelfAdaptiveTraining,
    SoftLabelMemory,
)
from lit_distill.callbacks.label_history import LabelHistory
from lit_distill.cli import main
from lit_distill.cli.audit_sheet import picture, write_sheet
from lit_distill.cli.audit_table import Ranking, Remembered, TrainingData
from lit_distill.datamodules import DigitsDataModule

CLASSES, EACH = ("ant", "bee", "cow"), 8
STUDENT = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "dim_head": 8}


def fit(root: Path, *flags: str) -> Path:
    """Train three epochs on photos, all remembered, and return the run's folder."""
    student = [f"--model.student.{name}={value}" for name, value in STUDENT.items()]
    data = ["--data=ImageFolderDataModule", f"--data.root={root}", "--data.image_size=16", "--data.batch_size=8"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    brief = [
        "--retrospection.interval=1",
        "--retrospection.dtype=float32",
        "--trainer.max_epochs=3",
        "--num_threads=1",
    ]
    main(["fit", "--model.student=DistillableViT", *student, *data, *quiet, *brief, *flags])
    return root.parent / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of which a quarter has a wrong label, and a run that was trained on them; tests copy both."""
    folder = tmp_path_factory.mktemp("audited")
    names = [f"train/{name}/{number}.png" for name in CLASSES for number in range(EACH)]
    make_photos(folder / "photos", [*names, *(f"val/{name}/0.png" for name in CLASSES)], (16, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(folder / "photos", "--data.wrong_labels=0.25")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def audit(folder: Path, *flags: str) -> list[dict[str, str]]:
    """Run the command on the folder's run and photos, and return its table."""
    main(["audit", "lightning_logs", f"--data.root={folder / 'photos'}", *flags])
    table = folder / "lightning_logs" / "version_0" / "audit" / "labels.csv"
    return list(csv.DictReader(table.read_text().splitlines()))


def state_of(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("LearningWith"))
    return state


def test_writes_a_table_and_a_sheet_and_says_how_many_of_the_planted_it_found(folder, capsys) -> None:
    rows = audit(folder)
    out = capsys.readouterr().out
    assert list(rows[0])[:5] == ["rank", "index", "file", "given", "suggested"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 25))
    state = state_of(folder)
    means = (state["label_sums"][:, :2] / state["label_counts"][:, None]).tolist()
    assert [float(row["probability"]) for row in rows] == sorted(float(row["probability"]) for row in rows)
    for row in rows:
        probability, margin = means[int(row["index"])]
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)
        assert float(row["margin"]) == pytest.approx(margin, abs=1e-4)
        assert row["epochs"] == "3"
        assert row["given"] == CLASSES[state["targets"][int(row["index"])]] != row["suggested"]
    wrong = [row["file"].split("/")[1] != row["given"] for row in rows]
    assert sum(wrong) == 6
    assert f"planted 6 wrong labels: {sum(wrong[:6])} of them are among the first 6" in out
    assert "ranked 24 labels by their probability, remembered in 3 epochs\n" in out
    assert out.count("train/") == 10
    checkpoint = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)
    accuracy = checkpoint["callbacks"]["RunSummary"]["last"][f"val/accuracy_{checkpoint['lit_distill_about']['head']}"]
    assert accuracy < 0.5
    assert f"\nwarning: the network is right on {accuracy:.1%} of its validation images, where chance is 33.3%: " in out
    sheet = Image.open(folder / "lightning_logs" / "version_0" / "audit" / "worst.png")
    assert sheet.size == (8 * 120 + 8, 3 * 162 + 8)  # three lines: rank and label, the other label, the file
    first = Image.open(folder / "photos" / rows[0]["file"])
    assert sheet.getpixel((12, 12)) == first.convert("RGB").getpixel((0, 0))
    assert not list(folder.rglob("*.part"))


def test_the_class_of_the_data_may_be_named_without_its_module(folder, tmp_path) -> None:
    data = ["--data=ImageFolderDataModule", f"--data.root={folder / 'photos'}", "--data.image_size=16"]
    command = [sys.executable, "-m", "lit_distill.cli", "audit", str(folder / "lightning_logs"), *data]
    # A process of its own: here the class has long been imported.
    done = subprocess.run([*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "labels.csv").is_file()


def test_a_network_that_knows_something_counts_the_wrong_labels(folder, capsys) -> None:
    path = next(folder.rglob("last.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["RunSummary"]["last"]["val/accuracy_class"] = 0.51
    checkpoint["lit_distill_about"]["head"] = "class"
    torch.save(checkpoint, path)
    audit(folder)
    out = capsys.readouterr().out
    assert re.search(r"\nconfident learning counts \d+ to \d+ of 24 labels as wrong \(", out)
    assert "the network is right on 51.0% of its validation images; the weaker " in out


def test_the_planted_labels_of_the_digits_are_counted_too(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    short = ["--trainer.max_epochs=1", "--retrospection.interval=1", "--data.wrong_labels=0.2"]
    main(["fit", "--config", "digits", *quiet, *short])
    main(["audit", "logs"])
    out = capsys.readouterr().out
    assert re.search(
        r"--data.wrong_labels=0.2 has planted 287 wrong labels: \d+ of them are among the first 287 \(", out
    )


def test_overwrites_nothing_unless_told_so(folder, capsys) -> None:
    output = folder / "mine"
    output.mkdir()
    (output / "worst.png").write_text("mine")
    with pytest.raises(SystemExit):
        audit(folder, f"--output={output}")
    assert "worst.png exists and is not overwritten: choose another --output, or say --ov" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["worst.png"]
    assert (output / "worst.png").read_text() == "mine"
    checkpoint = next(folder.rglob("last.ckpt"))
    main(["audit", str(checkpoint), f"--data.root={folder / 'photos'}", f"--output={output}", "--overwrite"])
    assert sorted(path.name for path in output.iterdir()) == ["labels.csv", "worst.png"]


def test_photos_that_came_went_or_were_labelled_anew_are_counted_and_the_others_keep_their_scores(
    folder, capsys
) -> None:
    before = audit(folder)
    photos = folder / "photos" / "train"
    right = [row for row in before if row["file"].split("/")[1] == row["given"]]
    gone, moved, renamed, *kept = right
    (folder / "photos" / gone["file"]).unlink()
    make_photos(photos, ["bee/new.png", "a_new_class/1.png"], (16, 16), seed=99)
    make_photos(folder / "photos", ["val/a_new_class/0.png"], (16, 16))
    (folder / "photos" / moved["file"]).rename(photos / "a_new_class" / "0.png")
    (folder / "photos" / renamed["file"]).rename(photos / renamed["given"] / "renamed.png")
    capsys.readouterr()
    rows = audit(folder, "--overwrite", "--data.wrong_labels=0")  # the labels of the six are right again
    assert "; 2 new since the run; 1 gone since the run; 7 labelled anew since the run\n" in capsys.readouterr().out
    found = {Path(row["file"]).name: (row["given"], row["probability"], row["margin"]) for row in rows}
    assert len(rows) == 24 - 6 - 2
    assert found["renamed.png"] == (renamed["given"], renamed["probability"], renamed["margin"])
    assert [row["probability"] for row in rows] == [row["probability"] for row in (renamed, *kept)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected lit-distill audit RUN, a checkpoint or a run's folder, got -"),
        (["--output=x"], "expected lit-distill audit RUN, a checkpoint or a run's folder, got --output=x"),
        (["nowhere"], "there is no checkpoint at nowhere: give the checkpoint, or the folder, of a run of fit"),
        (["photos"], "there is no checkpoint at photos"),
        (["lightning_logs", "--data.root=nowhere"], "nowhere"),
        (["lightning_logs", "--outptu=x"], "unknown option --outptu: did you mean '--output'?"),
        (["plain.ckpt"], "plain.ckpt has no remembered soft labels: train with --retrospection.interval=5"),
        (["cut.ckpt"], "cut.ckpt"),
    ],
)
def test_what_is_missing_is_said_in_one_line(folder, capsys, args: list[str], message: str) -> None:
    torch.save({"state_dict": {}, "callbacks": {"ModelCheckpoint": {"best": 1}}}, folder / "plain.ckpt")
    (folder / "cut.ckpt").write_bytes(next(folder.rglob("last.ckpt")).read_bytes()[:-900])
    with pytest.raises(SystemExit):
        main(["audit", *args])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not list(folder.rglob("audit"))


def test_photos_of_another_data_set_are_refused(folder, capsys) -> None:
    names = [f"{split}/{name}/{number}.png" for split in ("train", "val") for name in CLASSES for number in range(EACH)]
    make_photos(folder / "others", names, (16, 16), seed=5)
    with pytest.raises(SystemExit):
        main(["audit", "lightning_logs", f"--data.root={folder / 'others'}"])
    assert (
        "error: the run has remembered another data set: of the 24 training samples, 0 are" in capsys.readouterr().err
    )


def checkpoint_of(path: Path, callback: LearningWithRetrospection, epochs: int = 2, **changes: Any) -> dict[str, Any]:
    run = trainer(max_epochs=epochs, callbacks=callback)
    run.fit(Foreign(), toy_loader())
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    (state,) = (state for key, state in content["callbacks"].items() if "Self" in key or "Learning" in key)
    for name, value in changes.items():
        state.pop(name) if value is None else state.update({name: value})
    torch.save(content, path)
    return content


def test_a_run_of_python_code_is_ranked_by_its_rows_alone(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of(Path("a.ckpt"), LearningWithRetrospection(1))
    main(["audit", "a.ckpt"])
    assert sorted(path.name for path in Path("audit").iterdir()) == ["labels.csv"]
    rows = list(csv.DictReader(Path("audit/labels.csv").read_text().splitlines()))
    assert sorted(int(row["index"]) for row in rows) == list(range(30))
    assert list(rows[0]) == ["rank", "index", "given", "suggested", "probability", "margin", "confident", "epochs"]
    assert "worst" not in capsys.readouterr().out


def test_a_checkpoint_of_an_older_version_is_ranked_by_what_it_has(tmp_path) -> None:
    callback = LearningWithRetrospection(1, temperature=3.0, dtype="float32")
    content = checkpoint_of(tmp_path / "a.ckpt", callback, 3, label_sums=None, label_counts=None)
    remembered = Remembered.of(content, tmp_path / "a.ckpt")
    assert remembered.history.counts.tolist() == [2] * 30
    assert "without sums over the epochs: ranked by the last two soft labels alone" in remembered.notes[0]
    expected = LabelHistory(30)
    for epoch in (2, 3):
        expected.add(callback.memory, callback.targets.known, epoch, 3.0)
    assert torch.equal(remembered.history.probability, expected.probability)


def test_averages_that_begin_at_the_given_label_are_ranked_and_not_counted(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of(Path("a.ckpt"), SelfAdaptiveTraining(start=0))
    main(["audit", "a.ckpt"])
    out = capsys.readouterr().out
    assert "ranked 30 labels by their probability" in out
    assert "\nhow many are wrong is not known: self-adaptive training remembers averages that begin at the g" in out
    assert "confident learning counts" not in out


@pytest.mark.parametrize(
    ("callback", "epochs", "changes", "message"),
    [
        (LearningWithRetrospection(1, top_k=1), 2, {}, r"remembers one class of each soft label \(top_k=1\)"),
        (LearningWithRetrospection(2), 1, {}, "cannot be audited: no epoch that remembers is over yet: train on"),
        (
            LearningWithRetrospection(1),
            1,
            {"targets": None},
            "has no labels beside its soft labels, as an older version",
        ),
        (
            LearningWithRetrospection(1),
            1,
            {"targets": torch.full((30,), 2**29), "label_counts": torch.zeros(30)},
            "cannot be audited: its targets are no classes but probabilities",
        ),
    ],
)
def test_runs_that_remember_too_little_are_refused(tmp_path, callback, epochs, changes, message: str) -> None:
    content = checkpoint_of(tmp_path / "a.ckpt", callback, epochs, **changes)
    with pytest.raises(ValueError, match=message):
        Remembered.of(content, tmp_path / "a.ckpt")


def test_a_table_of_the_largest_probabilities_is_ranked_with_a_note(tmp_path) -> None:
    rankings = []
    for top_k in (None, 3):
        callback = ProgressiveSelfDistillation(top_k=top_k, alpha=0.0)
        remembered = Remembered.of(checkpoint_of(tmp_path / "a.ckpt", callback, 5), tmp_path / "a.ckpt")
        assert [note.startswith("the run remembers 3 of 4 classes") for note in remembered.notes] == [True] * bool(
            top_k
        )
        rankings.append(Ranking.of(remembered, TrainingData.of(None, 30)).rows.tolist())
    assert rankings[0][:5] == rankings[1][:5]


def remembered(labels: Tensor, identities: Tensor | None = None) -> Remembered:
    """Soft labels that are sure of class 0, of rows with these labels."""
    memory, history = SoftLabelMemory(len(labels), 3), LabelHistory(len(labels))
    memory.record(torch.arange(len(labels)), torch.tensor([[0.8, 0.15, 0.05]]).repeat(len(labels), 1), epoch=1)
    history.add(memory, labels, epoch=1)
    return Remembered(memory, history, history, labels, identities, [*"abc"], [])


def data_of(labels: Tensor, identities: Tensor | None = None, names: str = "abc") -> TrainingData:
    return TrainingData(None, len(labels), [], labels, [*names], identities)


def test_rows_that_nothing_identifies_are_told_apart_by_their_number_and_their_labels() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    ranking = Ranking.of(remembered(labels), data_of(torch.tensor([0, 1, 2, 0, 2])))
    assert ranking.rows.tolist() == [2, 1, 0, 3]
    assert ranking.given.tolist() == [2, 1, 0, 0]
    assert ranking.suggested.tolist() == [0, 0, 1, 1]
    assert ranking.left_out == {"labelled anew since the run": 1}
    with pytest.raises(ValueError, match="of the 5 training samples, 2 are among its 5 with the same label"):
        Ranking.of(remembered(labels), data_of(torch.tensor([0, 1, 0, 1, 2])))
    rows = torch.tensor([[5, 1], [6, 2], [7, 3]])
    with pytest.raises(ValueError, match="no label is left to rank: 3 labelled anew since the run"):
        Ranking.of(remembered(labels[:3], rows), data_of(labels[:3], rows, "xyz"))
    with pytest.raises(ValueError, match="remembers 5 samples and the training set has 4, which nothing identifies"):
        Ranking.of(remembered(labels), data_of(labels[:4]))


def test_classes_are_known_by_their_names_and_rows_by_what_identifies_them() -> None:
    labels, identities = torch.tensor([0, 1, 2]), torch.tensor([[5, 1], [6, 2], [7, 3]])
    data = data_of(torch.tensor([3, 1, 0]), torch.tensor([[7, 3], [5, 9], [8, 4]]), "xabc")
    ranking = Ranking.of(remembered(labels, identities), data)
    assert (ranking.rows.tolist(), ranking.given.tolist()) == ([0, 1], [2, 0])
    assert ranking.left_out == {"new since the run": 1, "gone since the run": 1}


def test_rows_never_remembered_and_equal_scores(tmp_path) -> None:
    known = remembered(torch.tensor([1, 1, 0, 2]))
    known.history.forget(torch.tensor([True, False, False, False]))
    known.history._sums[1:, 0] = torch.tensor([0.5, 0.5, 0.5])
    ranking = Ranking.of(known, TrainingData.of(None, 4))
    assert ranking.rows.tolist() == [3, 1, 2]  # by margin, where the probabilities are equal
    assert ranking.left_out == {"never remembered": 1}


def test_pictures_are_those_before_augmentation(tmp_path) -> None:
    data = DigitsDataModule()
    data.setup("fit")
    shown = picture(Subset(data.train_set, [5, 7]), 1)
    assert (shown.mode, shown.size) == ("L", (8, 8))
    assert torch.equal(F.pil_to_tensor(shown), (data.train_set.images[7] * 255).byte())
    colour = picture([(torch.full((3, 4, 5), 1.5), 0)], 0)
    assert (colour.mode, colour.size, colour.getpixel((0, 0))) == ("RGB", (5, 4), (255, 255, 255))
    assert picture([{"image": colour}], 0) is colour


def test_words_below_a_picture_are_cut_to_its_width(tmp_path) -> None:
    write_sheet(tmp_path / "a.png", [(Image.new("L", (30, 300)), ["an endless name of a class " * 9, "\udce9"])] * 9)
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.size == (8 * 120 + 8, 2 * 148 + 8)
    right = sheet.crop((8 * 120 + 2, 0, 8 * 120 + 8, sheet.height))
    assert right.getcolors() == [(right.width * right.height, (255, 255, 255))]
