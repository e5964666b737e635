"""A run among several: what is passed on to it, who may run it, and when it is done."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
import yaml

from lit_distill.cli import signals
from lit_distill.cli.checkpoints import FINISHED
from lit_distill.cli.lock import Lock
from lit_distill.cli.signals import Stopped, stop_signals
from lit_distill.cli.stage import Estimate, Stage

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "configs/digits.yaml").read_text())
CONFIG = {"data": CONFIG["data"], "model": CONFIG["model"]}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, "teacher", CONFIG, 2, [], {})


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alone(stage: Stage, code: str) -> None:
    """Run Python code as the stage's run."""
    with stop_signals, stage.held():
        stage._train([sys.executable, "-c", code])


def test_a_run_that_was_killed_is_said_with_what_it_probably_was(stage: Stage, capfd) -> None:
    for number, printed in ((9, "signal 9 (SIGKILL): out of memory?"), (11, "signal 11 (SIGSEGV): the same")):
        with pytest.raises(SystemExit) as end:
            alone(stage, f"import os; os.kill(os.getpid(), {number})")
        assert end.value.code == 128 + number
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: the teacher's run was killed by ")
        assert printed in line
        assert line.endswith("the same command goes on from here")


WAITING = """
import pathlib, signal, sys, time
signal.signal(signal.{name}, lambda number, frame: sys.exit(128 + number))
pathlib.Path(r"{folder}", "ready").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_passed_on_and_its_code_is_returned(name: str, stage: Stage, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(signals, "_leave_terminal", lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    number = getattr(signal, name)

    def send() -> None:
        until((tmp_path / "ready").exists)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(Stopped) as end:
            alone(stage, WAITING.format(name=name, folder=tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert end.value.code == 128 + number
    assert list(stage.folder.iterdir()) == []  # the lock is gone too


def test_a_folder_in_use_is_named_with_its_holder(stage: Stage) -> None:
    stage.folder.mkdir(parents=True)
    other = Lock(stage.folder / ".lock")
    assert other.acquire()
    with pytest.raises(
        ValueError, match=rf"process {os.getpid()} on .* is at work in .*teacher-.*: wait for it, or stop"
    ):
        stage.run("teacher", CONFIG)
    other.release()


def test_it_waits_for_a_run_whose_command_is_gone(stage: Stage, capfd, monkeypatch) -> None:
    stage.folder.mkdir(parents=True)
    other = Lock(stage.folder / ".lock")
    assert other.acquire()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    about = json.loads((stage.folder / ".lock").read_text())
    (stage.folder / ".lock").write_text(json.dumps({**about, "process": gone.pid}))
    monkeypatch.setattr(time, "sleep", lambda seconds: other.release())
    with stage.held():
        pass
    assert f"waiting for the teacher's run that process {gone.pid} has left behind to stop" in capfd.readouterr().out


def leaves(monkeypatch: pytest.MonkeyPatch, stage: Stage, finished: bool) -> list[Sequence[str]]:
    """Have the stage's next run leave a checkpoint; return the commands that are run."""
    commands: list[Sequence[str]] = []

    def train(self: Stage, command: Sequence[str]) -> None:
        commands.append(command)
        folder = self.folder / f"version_{len(commands)}/checkpoints"
        folder.mkdir(parents=True)
        torch.save({FINISHED: finished}, folder / "last.ckpt")

    monkeypatch.setattr(Stage, "_train", train)
    return commands


def test_it_is_done_only_when_its_run_has_finished(stage: Stage, monkeypatch) -> None:
    leaves(monkeypatch, stage, finished=False)
    with pytest.raises(ValueError, match="the teacher is not trained to its last epoch"):
        stage.run("teacher", CONFIG)
    assert not stage.done
    assert not (stage.folder / "done.json").exists()
    commands = leaves(monkeypatch, stage, finished=True)
    commands.append([])  # the next folder is another one
    stage.run("teacher", CONFIG)
    assert stage.done
    (command,) = commands[1:]
    assert command[command.index("--ckpt_path") + 1] == str(stage.folder / "version_1/checkpoints/last.ckpt")


def test_a_run_that_finished_before_the_command_was_killed_is_not_run_again(stage: Stage, monkeypatch) -> None:
    (stage.folder / "version_0/checkpoints").mkdir(parents=True)
    torch.save({FINISHED: True}, stage.folder / "version_0/checkpoints/last.ckpt")
    assert leaves(monkeypatch, stage, finished=True) == []
    stage.run("teacher", CONFIG)
    assert stage.checkpoint == stage.folder / "version_0/checkpoints/last.ckpt"


def test_a_limit_makes_no_other_run_and_is_lifted_when_it_is_left_out(stage: Stage, tmp_path, monkeypatch) -> None:
    limited = Stage(tmp_path, "teacher", CONFIG, 2, ["--trainer.max_steps=3", "--trainer.max_time=00:00:01:00"], {})
    assert limited.folder == stage.folder
    assert Stage(tmp_path, "teacher", CONFIG, 2, ["--trainer.precision=16-mixed"], {}).folder != stage.folder
    commands = leaves(monkeypatch, limited, finished=False)
    for run in (limited, stage, limited):
        with pytest.raises(ValueError, match="not trained to its last epoch"):
            run.run("teacher", CONFIG)
    free = ["--trainer.max_time=null", "--trainer.max_steps=-1"]
    assert list(commands[1][-2:]) == free
    assert list(commands[2][-4:]) == [*free, *limited.flags]


@pytest.mark.parametrize(
    "flag", ["--trainer.fast_dev_run=true", "--trainer.enable_checkpointing=false", "--checkpoint.dirpath=elsewhere"]
)
def test_a_flag_that_leaves_nothing_to_go_on_from_is_refused(flag: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"{flag} leaves no checkpoint to go on from in .*: leave it out"):
        Stage(tmp_path, "student", CONFIG, 2, [flag], {})
    Stage(tmp_path, "student", CONFIG, 2, ["--trainer.fast_dev_run=false", "--trainer.enable_checkpointing=true"], {})


def test_the_same_path_written_otherwise_is_the_same_and_another_content_is_not(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"1")
    monkeypatch.setattr(Stage, "_check", lambda self, config: None)

    def folder(weights: str) -> str:
        config = {**CONFIG, "data": {**CONFIG["data"], "init_args": {"root": weights}}}
        return Stage(tmp_path, "student", config, 2, [f"--model.student.weights={weights}"], {}).folder.name

    first = folder("weights.pt")
    assert folder("./weights.pt") == folder(str(tmp_path / "weights.pt")) == first
    (tmp_path / "weights.pt").write_bytes(b"2")
    assert folder("weights.pt") != first


def test_what_differs_from_the_nearest_other_run_is_said(tmp_path, monkeypatch, capfd) -> None:
    def stage(epochs: int, flags: list[str], **photos: str) -> Stage:
        return Stage(tmp_path, "teacher", CONFIG, epochs, flags, {"photos": {"train": photos}})

    for made in (
        stage(50, ["--trainer.precision=32"], a="1", b="2"),
        stage(50, ["--trainer.precision=32"], a="1", b="2"),  # done before: nothing differs
        stage(40, ["--trainer.precision=64"], a="1", b="3", c="4"),
        stage(40, [], a="1", c="4"),
    ):
        leaves(monkeypatch, made, finished=True)
        made.run("teacher", CONFIG)
    printed = capfd.readouterr().err.splitlines()
    assert printed == [
        "note: not done before: 1 photo is new (c), 1 photo is changed (b), --teacher_epochs is 40 instead of 50, "
        "--trainer.precision is 64 instead of 32",
        "note: not done before: 1 photo is gone (b), --trainer.precision is not given instead of 64",
    ]


def test_a_dry_run_counts_in_what_the_teachers_cache_saves(tmp_path, monkeypatch) -> None:
    def estimate(views: int, epochs: int) -> Estimate:
        def train(self: Stage, command: Sequence[str], **_: object) -> None:
            folder = self.folder / "version_0/checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            times = {"seconds": 5.0, "steps": 4, "asking": 2.0, "views": views}
            torch.save({"callbacks": {"StepTimes": times}}, folder / "last.ckpt")

        monkeypatch.setattr(Stage, "_train", train)
        return Stage(tmp_path, "student", CONFIG, epochs, [], {}).try_out("student", CONFIG, 4)

    assert estimate(views=0, epochs=100) == Estimate(seconds=500.0, saved=0.0)
    assert estimate(views=30, epochs=100) == Estimate(seconds=360.0, saved=140.0)
    assert estimate(views=30, epochs=20) == Estimate(seconds=100.0, saved=0.0)


def test_the_teachers_cache_is_beside_the_runs_and_no_part_of_what_they_are_made_of(tmp_path) -> None:
    caching = {"class_path": "lit_distill.callbacks.TeacherCaching", "init_args": {"views": 3}}
    stage = Stage(tmp_path, "student", {**CONFIG, "teacher_cache": caching}, 2, [], {})
    text = yaml.safe_load(stage._text({**CONFIG, "teacher_cache": caching}))
    assert text["teacher_cache"]["init_args"] == {"views": 3, "folder": str(tmp_path / "teacher_cache")}
    elsewhere = ["--teacher_cache.folder=elsewhere"]
    same = Stage(tmp_path, "student", {**CONFIG, "teacher_cache": caching}, 2, elsewhere, {})
    assert same.folder == stage.folder
    assert Stage(tmp_path, "student", CONFIG, 2, [], {}).folder != stage.folder
