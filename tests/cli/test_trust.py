"""What files may name on the command line: a stranger's nothing of their own, one's own run all that it was made of."""

from collections.abc import Callable
import itertools
import json
from pathlib import Path
import re
import shutil
import sys
from typing import Any

import pytest
import torch
from toys import SMALL_DIGITS

from lit_distill import load_student
from lit_distill.cli import main

# What a user's package may hold, and what leaves a trace when it is run.
PACKAGE = """
from pathlib import Path
import torch
from torch import nn
from lit_distill.datamodules import DigitsDataModule

class Data(DigitsDataModule):
    pass

class Net(nn.Module):
    def __init__(self, num_classes: int, width: int = 4):
        super().__init__()
        Path("trace").touch()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, image):
        return self.net(image.float() / 255)

Path("trace").touch()
"""


@pytest.fixture
def run(digits_run: Any) -> Path:
    """The last checkpoint of a short run of the digits."""
    path: Path = digits_run.last
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package beside the user, not imported yet; the file that is there once it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somebodys_package", raising=False)
    Path("somebodys_package.py").write_text(PACKAGE)
    return tmp_path / "trace"


def hostile(run: Path, change: Callable[[dict[str, Any]], None], signed: bool = True) -> str:
    """A checkpoint of a real run whose configuration somebody has changed."""
    state = torch.load(run, weights_only=True)
    for config in (state["lit_distill_config"], {"model": state["hyper_parameters"]}):
        change(config)
    if not signed:
        state.pop("lit_distill_signature")
    torch.save(state, "hostile.ckpt")
    return "hostile.ckpt"


TOUCH = {"command": "touch trace"}
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a student that is a function": lambda c: c["model"].update(
        student={"class_path": "os.system", "init_args": TOUCH}
    ),
    "a student that is a teacher that is a function": lambda c: c["model"].update(
        student={"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": "os.system", "model_args": TOUCH}}
    ),
    "a teacher that is a function": lambda c: c["model"].update(
        teacher={"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": "os.system", "model_args": TOUCH}}
    ),
    "a package beside": lambda c: c["model"].update(student={"class_path": "somebodys_package.Net"}),
    "a criterion beside": lambda c: c["model"].update(criterion="somebodys_package.Net"),
    "an optimizer that is a function": lambda c: c["model"].update(optimizer="somebodys_package.Net"),
}
# Where the student is all that is read, the rest of the description is read by nobody.
STUDENTS = [name for name in CHANGES if "student" in name or name == "a package beside"]


@pytest.mark.parametrize(
    ("command", "change"),
    [
        *itertools.product(["fit", "test"], CHANGES),  # signed and not
        *(
            pytest.param(command, change, marks=pytest.mark.slow if place else ())
            for command in ("validate", "predict")
            for place, change in enumerate(CHANGES)
        ),
    ],
)
def test_a_strangers_checkpoint_runs_nothing(run: Path, package: Path, capsys, command: str, change: str) -> None:
    path = hostile(run, CHANGES[change], signed=command != "test")
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit, match="1"):
        main([command, "--ckpt_path", path])
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert re.match("error: refused hostile.ckpt: (it names|LitDistiller.* is the text) ", line)
    assert not package.exists()
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("change", STUDENTS)
@pytest.mark.parametrize(
    "command", ["export --ckpt_path {}", "distill --data.root=photos --teacher={}", "predict {} photo.jpg"]
)
def test_nor_does_it_elsewhere(run: Path, package: Path, capsys, command: str, change: str) -> None:
    path = hostile(run, CHANGES[change])
    with pytest.raises(SystemExit, match="1"):
        main(command.format(path).split())
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: refused hostile.ckpt: it names ")
    assert not package.exists()
    flags = ["--model.teacher=FrozenTeacher", f"--model.teacher.model={path}"]
    with pytest.raises(SystemExit, match="1"):
        main(["fit", "--config", SMALL_DIGITS, *flags])
    assert "refused hostile.ckpt: it names " in capsys.readouterr().err
    assert not package.exists()


@pytest.mark.filterwarnings("ignore:the teacher is right on")
def test_ones_own_run_goes_on_tests_and_predicts_with_ones_own_classes(package: Path, capsys) -> None:
    class_flags = ["--data=somebodys_package.Data", "--model.student=somebodys_package.Net", "--model.student.width=5"]
    main(["fit", "--config", SMALL_DIGITS, *class_flags])
    path = "logs/digits/version_0/checkpoints/last.ckpt"
    main(["fit", "--ckpt_path", path, "--trainer.max_epochs=2"])
    main(["test", "--ckpt_path", path])
    main(["predict", "--ckpt_path", path])
    # It may be moved, but not changed; to serve it is to say whose it is.
    shutil.copy(path, "moved.ckpt")
    main(["validate", "--ckpt_path", "moved.ckpt"])
    state = torch.load(path, weights_only=True)
    state["lit_distill_config"]["seed_everything"] = 7
    torch.save(state, "changed.ckpt")
    for args in (["export", "--ckpt_path", path], ["test", "--ckpt_path", "changed.ckpt"]):
        with pytest.raises(SystemExit, match="1"):
            main(args)
        assert "add trust=['somebodys_package'] to the call, or --trust somebodys_package" in capsys.readouterr().err
        main([*args, "--trust", "somebodys_package"])
    student = load_student("logs/digits/version_0/checkpoints/student", trust=["somebodys_package"])
    assert student.net[1].out_features == 5  # type: ignore[index,union-attr]
    card = json.loads(Path("logs/digits/version_0/checkpoints/student/student.json").read_text())
    assert str(Path.cwd()) not in json.dumps(card)
    # As a teacher it needs the word too, once: the run remembers it.
    flags = ["--model.teacher=FrozenTeacher", f"--model.teacher.model={path}", "--trust=somebodys_package"]
    main(["fit", "--config", SMALL_DIGITS, *flags])
    main(["test", "--ckpt_path", "logs/digits/version_1/checkpoints/last.ckpt"])
    assert "going on without the teacher" not in capsys.readouterr().out


def test_a_run_of_another_machine_goes_on_here_with_what_is_built_in(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", SMALL_DIGITS, f"--trainer.logger.save_dir={tmp_path / 'elsewhere/theirs'}"])
    (run,) = Path("elsewhere").rglob("last.ckpt")
    capsys.readouterr()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    main(["test", "--ckpt_path", str(run)])
    main(["predict", "--ckpt_path", str(run), "--output=p.csv"])
    assert capsys.readouterr().err == ""
    main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs=2"])
    assert "note: using theirs, not /" in capsys.readouterr().err
    assert Path("theirs/digits/version_0/checkpoints/last.ckpt").is_file()  # and not where the other machine has it
    assert not (run.parents[2] / "version_1").exists()


def test_no_file_that_a_checkpoint_names_is_removed(run: Path, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for name in ("mine/precious.ckpt", "mine/notes.txt"):
        Path(name).touch()
    state = torch.load(run, weights_only=True)
    (key,) = (key for key in state["callbacks"] if key.startswith("BestCheckpoint"))
    for place in (f"local://{tmp_path}/mine", f"{tmp_path}/mine/precious.ckpt", f"{tmp_path}/mine"):
        best = {"best_model_path": place, "kth_best_model_path": place, "dirpath": str(Path(place).parent)}
        worst = torch.tensor(-1.0)
        best |= {"best_k_models": {place: worst}, "kth_value": worst, "best_model_score": worst}
        state["callbacks"][key] |= best
        torch.save(state, "hostile.ckpt")
        main(["fit", "--ckpt_path", "hostile.ckpt", "--trainer.max_epochs=3"])
    assert sorted(path.name for path in Path("mine").iterdir()) == ["notes.txt", "precious.ckpt"]


def test_an_error_message_imports_nothing(run: Path, package: Path, capsys) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["head"] = "module 'somebodys_package' has no attribute 'Net'"

    for args in (
        ["test", "--ckpt_path", hostile(run, change)],
        ["predict", str(run), "module 'somebodys_package' has no attribute 'Net'.png"],
    ):
        with pytest.raises(SystemExit, match="1"):
            main(args)
        assert capsys.readouterr().err.startswith("error: ")
        assert not package.exists()


def test_trusting_what_is_not_there_is_one_line(run: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["export"], ["test"], ["fit"]):
        with pytest.raises(SystemExit, match="1"):
            main([*command, "--ckpt_path", str(run), "--trust=no_such_package", "--trust", "os"])
        (line,) = capsys.readouterr().err.strip().split("\n")
        assert line.startswith("error: cannot trust 'no_such_package': there is no such package, neither installed nor")
    with pytest.raises(SystemExit, match="0"):
        main(["export", "--help"])
    assert "--trust" in capsys.readouterr().out
