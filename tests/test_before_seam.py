"""A checkpoint and an export from before batches had a view: their weights load, and answer as they did."""

import csv
from pathlib import Path
import shutil

import pytest
from safetensors.torch import load_file
import torch

from lit_distill import LitDistiller, load_student
from lit_distill.cli import main

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT, EXPORT = FIXTURES / "before_seam.ckpt", FIXTURES / "before_seam_student"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, beside which the commands may write."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(CHECKPOINT, tmp_path / "last.ckpt"))


def test_the_weights_are_those_of_the_file() -> None:
    saved = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    exported = load_file(EXPORT / "student.safetensors")
    module = LitDistiller.load_from_checkpoint(CHECKPOINT)
    assert list(module.state_dict()) == list(saved)
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert exported.keys() == {name.removeprefix("student.") for name in saved}
    for student in (load_student(CHECKPOINT), load_student(EXPORT)):
        assert all(torch.equal(value, exported[name]) for name, value in student.state_dict().items())


def test_test_measures_what_it_measured(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "--ckpt_path", str(checkpoint), *QUIET])
    table = capsys.readouterr().out
    measured = {
        words[0]: float(words[1]) for words in map(str.split, table.splitlines()) if words[:1] and len(words) == 2
    }
    expected = {
        "test/accuracy_class": 0.13611111,
        "test/accuracy_distill": 0.28055555,
        "test/accuracy_mean_logits": 0.25,
        "test/accuracy_mean_probs": 0.25,
        "test/agreement": 0.24722222,
        "test/ece": 0.13957652,
        "test/nll": 2.24897695,
        "test/teacher_accuracy": 0.99444443,
    }
    assert measured == pytest.approx(expected, abs=1e-4)


def test_predict_and_export_answer_as_the_old_export(checkpoint: Path) -> None:
    main(["predict", "--ckpt_path", str(checkpoint), *QUIET])
    with (checkpoint.parent / "predictions.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    assert len(rows) == 360
    assert [float(value) for value in rows[1][2:5]] == pytest.approx([0.111438, 0.093313, 0.111438], abs=1e-5)
    main(["export", "--ckpt_path", str(checkpoint), "--output", "student"])
    old, new = load_student(EXPORT), load_student("student")
    for key in ("class_names", "head", "image_shape", "metrics", "preprocessing", "trained_heads"):
        assert new.card[key] == old.card[key], key
    image = torch.rand(4, 1, 8, 8)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(new(image)[:2], old(image)[:2], strict=True))
