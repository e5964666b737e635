"""What a user sees of a run that diverges, and of a student whose weights are lost."""

from pathlib import Path
import re
from typing import Any

import pytest
import torch
from toys import SMALL_DIGITS, make_photos

from lit_distill.cli import main

FIT = ["fit", "--config", SMALL_DIGITS, "--trainer.limit_train_batches=4"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_of(args: list[str], capsys: Any) -> str:
    """Run a command that must fail, and return what it says on standard error."""
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


RATE = ["--model.scheduler=null", "--model.optimizer.lr=1e25"]


def test_a_diverged_run_is_an_error_that_names_the_epoch_and_the_last_good_checkpoint(capsys) -> None:
    line = error_of([*FIT, *RATE], capsys)
    assert re.search(r"the run has diverged: in epoch 0, batch [12] \(counted from 0\) the loss became NaN", line)
    assert line.endswith("no checkpoint was saved before")
    assert not list(Path().rglob("*.ckpt"))

    main([*FIT, "--model.scheduler=null"])
    (last,) = Path("logs").rglob("last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["lr"] = 1e25  # as if it had grown
    torch.save(checkpoint, last)
    before = last.read_bytes()
    capsys.readouterr()
    line = error_of(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=3"], capsys)
    assert "the run has diverged: in epoch 1, batch" in line
    assert line.endswith(f"the last checkpoint before is {last}")
    assert last.read_bytes() == before


@pytest.fixture
def lost(digits_run: Any) -> str:
    """The checkpoint of a student whose weights are lost."""
    checkpoint = torch.load(digits_run.last, weights_only=True)
    checkpoint["state_dict"]["student.cls_token"].fill_(float("nan"))
    torch.save(checkpoint, "lost.ckpt")
    return "lost.ckpt"


@pytest.mark.parametrize("command", ["predict", "test", "validate", "export"])
def test_a_student_whose_weights_are_lost_is_refused(lost: str, command: str, capsys) -> None:
    line = error_of([command, f"--ckpt_path={lost}"], capsys)
    assert line.startswith("error: the student's weights are not finite (cls_token): its run has diverged; take an")
    assert not list(Path().rglob("predictions*.csv"))
    assert not Path("student").exists()


def test_resuming_from_lost_weights_ends_at_once(lost: str, capsys) -> None:
    line = error_of(["fit", f"--ckpt_path={lost}", "--trainer.max_epochs=3"], capsys)
    assert line == "error: the weights to begin from are not finite (student.cls_token): take an earlier checkpoint"


@pytest.mark.parametrize("command", ["predict", "test", "validate"])
def test_outputs_that_are_not_finite_are_refused(command: str, digits_run: Any, capsys) -> None:
    """Finite weights whose products overflow."""
    checkpoint = torch.load(digits_run.last, weights_only=True)
    head = next(key for key in checkpoint["state_dict"] if "head" in key and key.endswith("weight"))
    checkpoint["state_dict"][head].fill_(3e38)
    torch.save(checkpoint, "large.ckpt")
    line = error_of([command, "--ckpt_path=large.ckpt"], capsys)
    assert "NaN or infinite" in line
    assert "--trainer.precision=32" in line
    assert not list(Path().rglob("predictions*.csv"))


@pytest.mark.slow
def test_distill_ends_with_the_run_that_diverged(capfd) -> None:
    make_photos(Path("photos"), [f"{kind}/{i}.png" for kind in "ab" for i in range(10)])
    command = ["distill", "--data.root=photos", "--data.image_size=8", "--teacher_net=resnet10t", "--teacher_epochs=2"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--epochs=2", "--trainer.accelerator=cpu", "--num_threads=1", *RATE])
    assert end.value.code not in (0, None)
    assert "diverged" in capfd.readouterr().err
    assert not list(Path("distilled").rglob("student-*/done.json"))
