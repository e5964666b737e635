"""``lit-distill study`` from its file to the table: resumed after kills, in parallel, and with bad input."""

from contextlib import suppress
import json
import math
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from toys import make_photos
import yaml

from lit_distill.cli import main
from lit_distill.cli.checkpoints import FINISHED
from lit_distill.cli.lock import Lock
from lit_distill.cli.study import Study
from lit_distill.cli.study_measure import result_of
from lit_distill.cli.study_plan import read_plan
from lit_distill.cli.study_stage import RunFailedError, StudyStage
from lit_distill.models.trust import build

STUDENT = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "channels": 1}
STUDY = {
    "base": {
        "model": {
            "student": {"class_path": "lit_distill.DistillableViT", "init_args": STUDENT},
            "teacher": {
                "class_path": "lit_distill.FrozenTeacher",
                "init_args": {"model": {"class_path": "lit_distill.DigitsCNN", "init_args": {"pretrained": True}}},
            },
        },
        "data": {"class_path": "lit_distill.datamodules.DigitsDataModule", "init_args": {"val_fraction": 0.2}},
    },
    "epochs": 2,
    "seeds": 1,
    "rows": ["cross-entropy", "soft + LWR"],
}
TWO_SEEDS = STUDY | {"seeds": 2}
CPU = ["--trainer.accelerator=cpu"]


def write(study: dict[str, Any], folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def command(path: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "lit_distill.cli", "study", str(path), "--jobs=2", f"--output={output}", *CPU]


def numbers(output: Path) -> dict[str, Any]:
    """Return all of the table but how long it took."""
    table: dict[str, Any] = json.loads((output / "table.json").read_text())
    for row in table["rows"].values():
        del row["seconds"]
    return table


def never_stopped(study: dict[str, Any], folder: Path) -> Path:
    """Return the folder of a study that was never stopped."""
    line = command(write(study, folder), folder / "out")
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_stopped(STUDY, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_of_two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_stopped(TWO_SEEDS, tmp_path_factory.mktemp("whole_of_two_seeds"))


def kept(output: Path) -> set[tuple[Path, int]]:
    """Return the last checkpoints and results of a study's runs, with the time when each was written."""
    files = [*output.glob("runs/*/version_*/checkpoints/last.ckpt"), *output.glob("runs/*/result.json")]
    return {(file, file.stat().st_mtime_ns) for file in files}


def kill_until_done(path: Path, output: Path, kills: int, draw: random.Random) -> int:
    """Run the study, killing it and its runs at random moments, at most ``kills`` times; return how often it was.

    Three of four times it is killed a moment after it has kept something, so that it gets somewhere also where the
    machine is slow; else while it starts.
    """
    for count in range(kills + 1):
        process = subprocess.Popen(command(path, output), start_new_session=True, stdout=subprocess.DEVNULL)
        if count < kills:
            before, is_begun = kept(output), draw.random() < 0.25
            while process.poll() is None and not is_begun and kept(output) == before:
                time.sleep(0.02)
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, 10 if is_begun else 2))
        if count == kills or process.poll() is not None:
            assert process.wait(500) == 0
            return count
        if draw.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)  # the runs too
        else:
            process.kill()  # the runs are told by the system, or waited for
        process.wait()
    raise AssertionError("it did not end")


def test_a_study_that_is_killed_has_the_same_table(whole: Path, tmp_path) -> None:
    assert kill_until_done(write(STUDY, tmp_path), tmp_path / "out", kills=1, draw=random.Random(1)) == 1
    assert numbers(tmp_path / "out") == numbers(whole / "out")
    assert len(list((tmp_path / "out/runs").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_study_that_is_killed_again_and_again_has_the_same_table(
    seed: int, whole_of_two_seeds: Path, tmp_path
) -> None:
    assert kill_until_done(write(TWO_SEEDS, tmp_path), tmp_path / "out", kills=10, draw=random.Random(seed)) > 0
    assert numbers(tmp_path / "out") == numbers(whole_of_two_seeds / "out")


def test_it_prints_progress_and_where_the_table_is(whole: Path) -> None:
    printed = (whole / "printed.txt").read_text()
    assert "2 rows of 2 epochs, 1 seed, 2 runs, 0 of them done, 2 at a time" in printed
    assert "[2/2] " in printed
    assert f"table  {whole / 'out/table.md'}" in printed
    assert (whole / "out/table.md").read_text() in printed
    table = numbers(whole / "out")
    assert table["baseline"] == "cross-entropy"
    assert {row["runs"] for row in table["rows"].values()} == {1}
    for by_seed in table["rows"]["soft + LWR"]["by_seed"].values():
        assert set(by_seed["last"]) == {"accuracy", "nll", "ece", "aurc"}
        assert by_seed["best"]["accuracy"] > 0.05


def test_again_it_trains_nothing_and_a_result_that_was_cut_off_is_measured_anew(
    whole: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(StudyStage, "_train", lambda *_: pytest.fail("something ran again"))
    before = numbers(whole / "out")
    result = next((whole / "out/runs").glob("*/result.json"))
    result.write_text(result.read_text()[:20])
    for name in ("table.json", "table.md"):
        (whole / "out" / name).write_text("cut o")
    main(["study", str(whole / "tiny.yaml"), "--jobs=2", f"--output={whole / 'out'}", *CPU])
    assert "2 runs, 1 of them done and 1 cut off, 2 at a time" in capsys.readouterr().out
    assert numbers(whole / "out") == before


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, capsys, monkeypatch) -> None:
    def fail(self: StudyStage, *_: object) -> None:
        raise RunFailedError("no luck; see log.txt")

    monkeypatch.setattr(StudyStage, "_train", fail)
    with pytest.raises(SystemExit) as end:
        main(["study", str(write(STUDY, tmp_path)), "--jobs=1", f"--output={tmp_path / 'out'}", *CPU])
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert "[2/2] soft + LWR, seed 0: failed: no luck; see log.txt" in printed.out
    assert printed.err.splitlines()[-1] == (
        "error: 2 of 2 runs have failed, and the table is without them; cross-entropy, seed 0: no luck; see log.txt"
    )


@pytest.mark.parametrize("flag", ["--output", "--runs"])
def test_a_file_in_the_place_of_its_folder_is_named(flag: str, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    line = ["study", str(write(STUDY, tmp_path)), "--jobs=1", f"--output={tmp_path / 'out'}", *CPU]
    with pytest.raises(SystemExit):
        main([*line, f"{flag}={tmp_path / 'file'}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot use {tmp_path / 'file'}" in error
    assert error.endswith("a file is where a folder is needed: choose another folder")


def pretend_to_train(stage: StudyStage, *_: object) -> None:
    stage.folder.mkdir(parents=True, exist_ok=True)
    (stage.folder / "last.ckpt").touch()
    (stage.folder / "done.json").write_text('{"checkpoint": "last.ckpt"}')


def pretend_to_measure(monkeypatch: pytest.MonkeyPatch, validated: dict[str, float]) -> None:
    """Have runs train nothing and be validated as said, by row; one with NaN has diverged at its last step."""

    def measured(last: Path, images: Any, device: str) -> dict[str, Any]:
        value = validated.get(last.parent.name.rpartition("-seed")[0], 0.5)
        if math.isnan(value):
            raise RunFailedError("the run has diverged at its last step")
        figures = {"accuracy": value, "nll": 1.0, "ece": 0.1, "aurc": 0.2}
        validation = {"last": {"val/accuracy_class": value}}
        others = {"validation": validation, "seconds": 1.0, "best": None, "date": "2026-01-02", "head": "class"}
        return {"test": images.test_digest(), "last": figures, **others}

    monkeypatch.setattr(StudyStage, "run", pretend_to_train)
    monkeypatch.setattr("lit_distill.cli.study.result_of", measured)


RATES = {
    name: {"loss": "cross-entropy", "model.optimizer": "SGD", "model.optimizer.lr": rate}
    for rate, name in enumerate(("low", "high", "middle"), 1)
}


def test_a_candidate_that_fails_loses_and_the_best_of_the_others_trains_with_all_seeds(
    tmp_path, monkeypatch, capsys
) -> None:
    pretend_to_measure(monkeypatch, {"low": 0.6, "high": float("nan"), "middle": 0.7})
    study = STUDY | {"seeds": 2, "choose": [*RATES], "rows": {**RATES, "soft": {}}}
    line = ["study", str(write(study, tmp_path)), "--jobs=1", f"--output={tmp_path / 'out'}", *CPU]
    for _ in range(2):  # the failed run is tried again
        with pytest.raises(SystemExit):
            main(line)
        assert capsys.readouterr().err.splitlines()[-1] == (
            "error: 1 of 6 runs have failed, and the table is without them; high, seed 0: "
            "the run has diverged at its last step"
        )
        table = json.loads((tmp_path / "out/table.json").read_text())
        assert table["baseline"] == "middle"
        assert {name: row["runs"] for name, row in table["rows"].items()} == {
            **{"low": 1, "high": 0, "middle": 2},
            "soft": 2,
        }


def test_scores_of_a_diverged_run_that_an_earlier_version_kept_are_not_used(tmp_path, monkeypatch, capsys) -> None:
    pretend_to_measure(monkeypatch, {})
    line = ["study", str(write(TWO_SEEDS, tmp_path)), "--jobs=1", f"--output={tmp_path / 'out'}", *CPU]
    main(line)
    kept = next((tmp_path / "out/runs").glob("soft*/result.json"))
    kept.write_text(kept.read_text().replace('"nll": 1.0', '"nll": NaN'))
    pretend_to_measure(monkeypatch, {"soft-lwr": float("nan")})
    with pytest.raises(SystemExit):
        main(line)
    assert "1 of 4 runs have failed" in capsys.readouterr().err
    assert numbers(tmp_path / "out")["rows"]["soft + LWR"]["runs"] == 1


def test_a_teacher_that_has_diverged_teaches_nobody(tmp_path, monkeypatch, capsys) -> None:
    pretend_to_measure(monkeypatch, {"teacher-net": float("nan")})
    base: Any = {**STUDY["base"], "model": {"student": STUDY["base"]["model"]["student"]}}  # type: ignore[index]
    path = write(STUDY | {"base": base, "teachers": {"net": {"base": base, "epochs": 1}}}, tmp_path)
    with pytest.raises(SystemExit):
        main(["study", str(path), "--jobs=2", f"--output={tmp_path / 'out'}", *CPU])
    printed = capsys.readouterr().out
    assert "soft + LWR, seed 0: failed: teacher 'net' is not trained" in printed
    assert "cross-entropy, seed 0: 50.00% on the test images" in printed


def test_without_test_images_progress_says_that_the_validation_images_measure(tmp_path, monkeypatch, capsys) -> None:
    pretend_to_measure(monkeypatch, {})
    base: Any = {**STUDY["base"], "data": {"class_path": "lit_distill.datamodules.DigitsDataModule"}}  # type: ignore[dict-item]
    main(["study", str(write(STUDY | {"base": base}, tmp_path)), "--jobs=2", f"--output={tmp_path / 'out'}", *CPU])
    printed = capsys.readouterr().out
    assert "cross-entropy, seed 0: 50.00% on the validation images" in printed
    assert "on the test images" not in printed


def test_the_test_images_do_not_choose_the_baseline(tmp_path, capsys) -> None:
    base: Any = {**STUDY["base"], "data": {"class_path": "lit_distill.datamodules.DigitsDataModule"}}  # type: ignore[dict-item]
    path = write(STUDY | {"base": base, "rows": RATES, "choose": [*RATES]}, tmp_path)
    with pytest.raises(SystemExit):
        main(["study", str(path), f"--output={tmp_path / 'out'}", *CPU])
    assert capsys.readouterr().err == (
        "error: choose needs validation images other than the test images, which are to choose nothing: set "
        "data.val_fraction for digits or CIFAR, or for photos data.test_root or a folder test\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_baseline_is_not_chosen_without_validation(tmp_path, capsys) -> None:
    path = write(STUDY | {"rows": RATES, "choose": [*RATES]}, tmp_path)
    with pytest.raises(SystemExit):
        main(["study", str(path), f"--output={tmp_path / 'out'}", *CPU, "--trainer.check_val_every_n_epoch=3"])
    assert capsys.readouterr().err == (
        "error: choose needs validation images, which row 'low' would see every 3 epochs, and it has 2 epochs: "
        "give --trainer.check_val_every_n_epoch=2 or less, or more --epochs\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_run_that_another_study_trains_is_waited_for_and_its_result_is_used(tmp_path, monkeypatch, capsys) -> None:
    study = Study(read_plan(write(STUDY, tmp_path), {}, CPU), "tiny", tmp_path / "out")
    stage = study.tasks[0].stage
    stage.folder.mkdir(parents=True)
    other = Lock(stage.folder / ".lock")
    assert other.acquire()
    waited = []

    def sleep(_: float) -> None:
        waited.append(stage.done)
        if len(waited) == 3:
            (stage.folder / "version_0/checkpoints").mkdir(parents=True)
            torch.save({FINISHED: True}, stage.folder / "version_0/checkpoints/last.ckpt")
            other.release()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(StudyStage, "_train", lambda *_: pytest.fail("it was trained again"))
    stage.run("cross-entropy", study.tasks[0].run.config)
    assert waited == [False] * 3
    assert stage.done
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"waiting for process {os.getpid()} on ")
    assert ", which trains cross-entropy-seed0 since 2" in line


def test_a_checkpoint_that_was_cut_off_is_said_with_the_file_to_delete(tmp_path) -> None:
    study = Study(read_plan(write(STUDY, tmp_path), {}, CPU), "tiny", tmp_path / "out")
    stage = study.tasks[0].stage
    last = stage.folder / "version_0/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({FINISHED: True}, last)
    last.write_bytes(last.read_bytes()[:-100])
    message = f"cannot read {last}, truncated or not a checkpoint file: .*; delete {last}, and the same command goes on"
    with pytest.raises(ValueError, match=message):
        stage.run("cross-entropy", study.tasks[0].run.config)
    with pytest.raises(ValueError, match=message):
        result_of(last, study.tasks[0].images, "cpu")


def test_what_is_trusted_is_trusted_where_runs_are_measured(tmp_path, monkeypatch) -> None:
    def measured(last: Path, images: Any, device: str) -> dict[str, Any]:
        build({"class_path": "timm.layers.SwiGLU", "init_args": {"in_features": 4}}, last)
        figures = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1, "aurc": 0.2}
        others = {"validation": {"last": {"val/accuracy_class": 0.5}}, "seconds": 1.0, "best": None}
        return {"test": images.test_digest(), "last": figures, "date": "2026-01-02", **others}

    monkeypatch.setattr(StudyStage, "run", pretend_to_train)
    monkeypatch.setattr("lit_distill.cli.study.result_of", measured)
    line = ["study", str(write(STUDY, tmp_path)), "--jobs=2", f"--output={tmp_path / 'out'}", *CPU]
    with pytest.raises(SystemExit):
        main(line)
    main([*line, "--trust=timm"])
    assert [row["runs"] for row in numbers(tmp_path / "out")["rows"].values()] == [1, 1]


@pytest.mark.slow
def test_a_student_of_the_users_own_is_measured_if_it_is_trusted(tmp_path, monkeypatch) -> None:
    lines = [
        "from lit_distill import DistillableViT",
        "class Own(DistillableViT):",
        f"    def __init__(self, num_classes): super().__init__(num_classes=num_classes, **{STUDENT})",
    ]
    (tmp_path / "own_net.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    base = {"model": {"student": {"class_path": "own_net.Own"}}, "data": STUDY["base"]["data"]}
    path = write(STUDY | {"base": base, "epochs": 1, "rows": ["cross-entropy"]}, tmp_path)
    line = [*command(path, tmp_path / "out"), "--trust=own_net"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "out")["rows"]["cross-entropy"]["runs"] == 1


def test_the_first_seed_chooses_the_baseline_and_the_others_stop_there(tmp_path, monkeypatch, capsys) -> None:
    validated = {"slow": 0.7, "right": 0.8, "fast": 0.6}

    def measured(last: Path, images: Any, device: str) -> dict[str, Any]:
        name, _, seed = last.parent.name.rpartition("-")[0].rpartition("-seed")
        # On the test images, and by a seed that does not choose, another one is better.
        value = validated.get(name, 0.5) if seed == "0" else 0.0
        figures = {"accuracy": 1 - value, "nll": 1.0, "ece": 0.1, "aurc": 0.2}
        validation = {"last": {"val/accuracy_class": value}}
        others = {"validation": validation, "seconds": 1.0, "best": None, "date": "2026-01-02"}
        return {"test": images.test_digest(), "last": figures, **others}

    monkeypatch.setattr(StudyStage, "run", pretend_to_train)
    monkeypatch.setattr("lit_distill.cli.study.result_of", measured)
    rates = {
        name: {"loss": "cross-entropy", "model.optimizer": "SGD", "model.optimizer.lr": rate}
        for rate, name in enumerate(validated, 1)
    }
    study = STUDY | {"seeds": 3, "choose": [*validated], "rows": {**rates, "soft": {}}}
    main(["study", str(write(study, tmp_path)), "--jobs=2", f"--output={tmp_path / 'out'}", *CPU])
    table = json.loads((tmp_path / "out/table.json").read_text())
    assert table["baseline"] == "right"
    assert {name: row["runs"] for name, row in table["rows"].items()} == {"slow": 1, "right": 3, "fast": 1, "soft": 3}
    printed = capsys.readouterr().out
    assert "tiny: 4 rows of 2 epochs, 3 seeds, 8 runs, 0 of them done" in printed
    assert "[8/8] " in printed
    assert "best on the validation images of 'slow', 'right' or 'fast', by seed 0 alone." in printed
    main(["study", str(tmp_path / "tiny.yaml"), "--jobs=2", f"--output={tmp_path / 'out'}", *CPU])
    assert "8 runs, 8 of them done" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/table.json").read_text()) == table


def test_all_rows_that_cache_their_teacher_share_a_folder_that_is_no_part_of_them(tmp_path) -> None:
    rows = {"live": {"loss": "soft"}, "V = 3": {"loss": "soft", "teacher_cache.views": 3}}
    path = write(STUDY | {"rows": rows}, tmp_path)
    here, there = (Study(read_plan(path, {}, CPU), "tiny", tmp_path / name) for name in ("here", "there"))
    live, cached = here.tasks
    assert f"--teacher_cache.folder={tmp_path / 'here/teacher_cache'}" in cached.stage.flags
    assert not [flag for flag in live.stage.flags if "teacher_cache" in flag]
    assert [task.stage.folder.name for task in here.tasks] == [task.stage.folder.name for task in there.tasks]
    shared = Study(read_plan(path, {}, CPU), "tiny", tmp_path / "there", runs=tmp_path / "here/runs")
    assert [task.stage.folder for task in shared.tasks] == [task.stage.folder for task in here.tasks]
    assert shared.tasks[1].stage.flags == cached.stage.flags


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ["cross-entropy", "sft"]}, "row 'sft' has an unknown loss 'sft': did you mean 'soft'?"),
        (
            {"rows": {"soft": {}, "T = 4": {"loss": "soft", "model.distillation.temperature": 4.0}}},
            "rows 'soft' and 'T = 4' are the same run: change or remove one",
        ),
        (
            {"rows": {"soft": {"model.distillation.temprature": 2}}},
            "row 'soft': model.distillation: SoftDistillation has no argument 'temprature': did you mean 'temperat",
        ),
        ({"rows": {"soft": {"teacher_cache.views": 1}}}, "row 'soft': views=1 shows the student every image in"),
    ],
)
def test_a_wrong_grid_is_said_before_anything_runs(changed: Any, message: str, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["study", str(write(STUDY | changed, tmp_path)), f"--output={tmp_path / 'out'}"])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_class_that_a_seeds_split_lacks_is_named(tmp_path, capsys) -> None:
    make_photos(tmp_path / "photos", [*(f"cat/{i}.png" for i in range(6)), "dog/0.png"], size=(8, 8))
    data = {
        "class_path": "lit_distill.datamodules.ImageFolderDataModule",
        "init_args": {"image_size": 8, "channels": 1},
    }
    base = STUDY["base"] | {"data": data}  # type: ignore[operator]
    path = write(STUDY | {"base": base, "rows": ["cross-entropy"], "seeds": [3]}, tmp_path)
    with pytest.raises(SystemExit):
        main(["study", str(path), f"--output={tmp_path / 'out'}", f"--data.root={tmp_path / 'photos'}"])
    assert "error: seed 3: class 'dog' has no image in the split 'val': add some" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_stops_its_runs_and_the_same_command_goes_on(tmp_path) -> None:
    path = write(STUDY | {"epochs": 500}, tmp_path)
    process = subprocess.Popen(command(path, tmp_path / "out"), stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 200
    while len(list((tmp_path / "out").glob("runs/*/version_0/checkpoints/last.ckpt"))) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 128 + signal.SIGTERM
    assert printed.rstrip().endswith("Stopped. The same command goes on from here.")
    logs = [path.read_text() for path in (tmp_path / "out").glob("runs/*/log.txt")]
    assert all("Stopped by SIGTERM" in log for log in logs)
