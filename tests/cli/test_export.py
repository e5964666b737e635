"""``export``: from a checkpoint to a folder that answers as the student did, and one line for every mistake."""

import json
from pathlib import Path
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from lit_distill import LitDistiller, StudentOutput, load_student
from lit_distill.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(digits_run: Any, tmp_path: Path) -> Path:
    """The last checkpoint of a short run, in a folder beside which a test may write."""
    (tmp_path / "run").mkdir()
    return Path(shutil.copy(digits_run.last, tmp_path / "run"))


def test_writes_the_student_and_what_is_known_of_it(run: Path, tmp_path, capsys) -> None:
    main(["export", "--ckpt_path", str(run), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert f"wrote student.safetensors, student.json to {tmp_path / 'out'}: 2,436 parameters, each file checked" in out
    assert f"lit_distill.load_student({str(tmp_path / 'out')!r})" in out
    student, image = load_student(tmp_path / "out"), torch.rand(5, 1, 8, 8)
    module = LitDistiller.load_from_checkpoint(run).eval()
    for ours, theirs in zip(
        StudentOutput.of(student(image)).heads, StudentOutput.of(module.student(image)).heads, strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(module.predict_step(image), student(image).log_probs("mean_logits").exp())
    card = json.loads((tmp_path / "out" / "student.json").read_text())
    assert card["class_names"] == [str(k) for k in range(10)]
    assert (card["head"], card["image_shape"]) == ("mean_logits", [1, 8, 8])
    assert card["student"]["init_args"]["mean"] == [0.3]
    assert 0 <= card["metrics"]["val/accuracy_mean_probs"] <= 1
    assert (card["trained"]["epochs"], card["trained"]["steps"]) == (2, 6)
    assert card["trained"]["config"]["model"]["distillation"]["class_path"] == "lit_distill.HardDistillation"
    # An export may be exported again, with another head or as ONNX.
    main(["export", "--ckpt_path", str(tmp_path / "out"), "--output", str(tmp_path / "again"), "--head=distill"])
    again = load_student(tmp_path / "again")
    assert torch.equal(again(image).logits, student(image).logits)
    assert again.card == {**card, "head": "distill"}
    # By default beside the checkpoint; and only the last export is replaced, if that is wanted.
    main(["export", "--ckpt_path", str(run)])
    main(["export", "--ckpt_path", str(run), "--overwrite", "--head=class"])
    assert load_student(run.parent / "student").card["head"] == "class"


@pytest.mark.slow
def test_writes_onnx_too(run: Path, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    command = [sys.executable, str(ROOT / "train.py"), "export", "--ckpt_path", str(run), "--output", "out", "--onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "wrote student.safetensors, student.json, student.onnx to out" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


# fmt: off
CASES = {
    "": "error: required: --ckpt_path",
    "--ckpt_path nowhere.ckpt": "no checkpoint file at nowhere.ckpt",
    "--ckpt_path {folder}": "{folder} is a directory without student.json",
    "--ckpt_path {export}": "{export} is an export already: give its run's checkpoint, or --output for another export",
    "--ckpt_path {foreign}": "{foreign} is no checkpoint of a LitDistiller: it has no student",
    "--ckpt_path {python}": "{python} was saved by Python code and does not say how to make its student",
    "--ckpt_path {truncated}": "truncated or not a checkpoint file",
    "--ckpt_path {run} --output {folder}": "{folder} exists and is not overwritten: choose another folder",
    "--ckpt_path {run} --output {folder} --overwrite": "{folder} is not an earlier export and is not overwritten",
    "--ckpt_path {run} --output no/such/folder": "there is no folder no/such for folder: make it first",
    "--ckpt_path {run} --onx": "unknown option --onx: did you mean '--onnx'?",
    "--ckpt_path {run} --head=best": "head: expected one of 'class', 'distill', 'mean_logits', 'mean_probs'",
}
# fmt: on


@pytest.mark.parametrize("flags", CASES)
def test_one_line_names_the_mistake(flags: str, run: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint: dict[str, Any] = torch.load(run, weights_only=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    files = {"folder": folder, "run": run, "export": tmp_path / "export"}
    files["export"].mkdir()
    (files["export"] / "student.json").touch()
    files |= {name: tmp_path / f"{name}.ckpt" for name in ("foreign", "python", "truncated")}
    state = {key.replace("student.", "net."): value for key, value in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": state}, files["foreign"])
    torch.save({**checkpoint, "hyper_parameters": {"alpha": 0.5}}, files["python"])
    files["truncated"].write_bytes(run.read_bytes()[:10_000])

    def filled(text: str) -> str:
        for name, path in files.items():
            text = text.replace(f"{{{name}}}", str(path))
        return text

    def there() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}

    before = there()
    with pytest.raises(SystemExit) as exit_:
        main(["export", *filled(flags).split()])
    errors = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 1
    assert len(errors) == 1, errors
    assert filled(CASES[flags]) in errors[0]
    assert there() == before
