"""Which command runs, what an error prints, and the exit code."""

from pathlib import Path
import re
import subprocess
import sys

import pytest

from lit_distill.cli import main

ROOT = Path(__file__).parents[2]
FIT = ["fit", "--config", "digits"]


def test_the_command_itself_exits_with_one_line_or_with_the_traceback(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *FIT, "--model.alpha=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: alpha must be in [0, 1], got 2.0\n"
    with pytest.raises(ValueError, match=r"^alpha must be in \[0, 1\], got 2.0$"):  # Python prints its traceback
        main([*FIT, "--model.alpha=2", "--debug"])


def test_a_misspelt_command_names_the_commands(capfd) -> None:
    commands = "fit, validate, test, predict, distill, cache, export, audit, study"
    for word, near in (("fitt", "fit"), ("predit", "predict"), ("distilll", "distill"), ("exprot", "export")):
        with pytest.raises(SystemExit):
            main([word])
        (error,) = capfd.readouterr().err.splitlines()
        assert error == f"error: there is no command {word!r} among {commands}: did you mean {near!r}?"


def test_help_explains(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    listed = re.findall(r"^    (\w+) {2,}\w", out[out.index("subcommands:") :], re.MULTILINE)
    assert listed == ["distill", "cache", "export", "audit", "study", "fit", "validate", "test", "predict"]
    assert "predict STUDENT PHOTO" in " ".join(out.split())
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for option in (
        "--model.alpha",
        "--model.distillation",
        "--retrospection",
        "--data",
        "--checkpoint.monitor",
        "--debug",
    ):
        assert option in out
    assert "Weight of the distillation loss, in 0..1." in out
    assert out.count("\n") < 1000
    with pytest.raises(SystemExit):
        main(["fit", "--model.student.help=DistillableViT"])
    out = capsys.readouterr().out
    assert "--model.student.patch_size" in out
    assert out.count("\n") < 200
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"lit-distill 0\.\S+\n", capsys.readouterr().out)


PHOTOS_PROGRAM = """
import sys
from lit_distill.cli import main

try:
    main(["predict", "no/such/student", "photo.jpg"])
except SystemExit:
    print("lightning" in sys.modules)
"""


def test_photos_are_predicted_without_lightning() -> None:
    done = subprocess.run([sys.executable, "-c", PHOTOS_PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "error: no checkpoint file at no/such/student\n")
