"""The command that looks at caches, fills them ahead and throws them away."""

from contextlib import suppress
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
import torch

from lit_distill import FrozenTeacher, TeacherOutput
from lit_distill.batch import Batch
from lit_distill.cli.app import DistillCLI
from lit_distill.cli.cache import run
from lit_distill.models.answers import MADE_OF, Answers, caches_in

FLAGS = ["--config=digits", "--num_threads=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FLAGS += ["--model.student.depth=1", "--data.batch_size=256", "--teacher_cache.views=2"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def filled(tmp_path, capsys) -> Path:
    run(["fill", "cache", *FLAGS])
    capsys.readouterr()
    return tmp_path / "cache"


def test_a_cache_that_is_filled_ahead_is_warm(filled, caplog) -> None:
    train, val = (caches_in(filled, kind)[0] for kind in ("train", "val"))
    assert [train.share(view) for view in (0, 1)] == [1, 1] == [val.share(0), val.num_rows / 360]
    assert not Path("logs").exists()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        DistillCLI(["fit", *FLAGS, "--teacher_cache.folder=cache", "--trainer.max_epochs=1"])
    assert "teacher cache: 2 of 2 views are in cache/train-" in caplog.text
    assert len(caches_in(filled)) == 2


FORWARD = FrozenTeacher.forward


class Asked:
    """Counts the images that teachers are asked about, and stops after so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: float = float("inf")) -> None:
        self.images = 0

        def counted(teacher: FrozenTeacher, batch: Batch) -> TeacherOutput:
            if self.images >= most:
                raise ZeroDivisionError
            self.images += len(batch.image)
            return FORWARD(teacher, batch)

        monkeypatch.setattr(FrozenTeacher, "forward", counted)


def test_a_fill_that_was_stopped_goes_on_and_fit_takes_what_is_there(tmp_path, monkeypatch, capsys) -> None:
    whole = Asked(monkeypatch)
    run(["fill", "whole", *FLAGS])
    assert whole.images == 2 * 1437 + 360
    for most, expected in ((700, 3 * 256), (1300, 2 * 256 + 157 + 360 + 2 * 256)):  # batches of 256, the last of 157
        asked = Asked(monkeypatch, most)
        with pytest.raises(ZeroDivisionError):
            run(["fill", "cache", *FLAGS])
        assert asked.images == expected
    (train,) = caches_in(Path("cache"), "train")
    assert [train.share(view) for view in (0, 1)] == [1, 512 / 1437]
    rest = Asked(monkeypatch)
    unchecked = ["--trainer.max_epochs=2", "--trainer.num_sanity_val_steps=0"]
    DistillCLI(["fit", *FLAGS, "--teacher_cache.folder=cache", *unchecked])
    assert rest.images == 1437 - 512
    nothing = Asked(monkeypatch)
    run(["fill", "cache", *FLAGS])
    assert nothing.images == 0
    for one in caches_in(Path("cache")):
        other = Answers.at(Path("whole", one.folder.name))
        assert all(torch.equal(one.table(view), other.table(view)) for view in other.views())


def _fill_on_two_ranks(folder: Path) -> None:
    os.chdir(folder)
    run(["fill", "cache", *FLAGS, "--trainer.devices=2", "--trainer.strategy=ddp_fork"])


def test_two_ranks_share_the_work(filled, fresh) -> None:
    one = {answers.folder.name: answers for answers in caches_in(filled)}
    other_folder = filled.parent / "other"
    other_folder.mkdir()
    fresh(_fill_on_two_ranks, other_folder)
    for other in caches_in(other_folder / "cache"):
        for view in other.views():
            torch.testing.assert_close(  # batches of other sizes
                other.table(view).view(torch.float16), one[other.folder.name].table(view).view(torch.float16)
            )


@pytest.mark.slow
def test_a_fill_of_two_processes_that_is_killed_goes_on(tmp_path, monkeypatch) -> None:
    flags = [*FLAGS[:-1], "--teacher_cache.views=40", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "lit_distill.cli", "cache", "fill", "cache", *flags]
    whole_views = 0
    for _ in range(2):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 300
        while len(list(Path("cache").glob("train-*/*.answers"))) < whole_views + 3:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (train,) = caches_in(Path("cache"), "train")
        assert train.damaged == 0
        before, whole_views = whole_views, sum(train.table(view) is not None for view in range(40))
        assert before < whole_views < 40
    known = sum(round(train.share(view) * 1437) for view in train.views())
    asked = Asked(monkeypatch)
    run(["fill", "cache", *FLAGS[:-1], "--teacher_cache.views=40"])
    assert 40 * 1437 - known <= asked.images <= (40 - whole_views) * 1437
    assert all(Answers.at(train.folder).table(view) is not None for view in range(40))


def test_info_says_what_is_there(filled, capsys) -> None:
    run(["info", str(filled)])
    printed = capsys.readouterr().out
    assert f"{filled}: 2 caches, 0.0" in printed
    assert ": 2 views of 1437 images, 2 of them whole, 0.05" in printed
    assert ": 1 view of 360 images, 1 of them whole, 0.00" in printed
    for name in ("teacher", "seed", "augmentation", "training set", "validation set"):
        assert f"\n  {name} " in printed
    assert printed.count("\n  of                DigitsCNN, DigitsDataModule\n") == 2
    with pytest.raises(ValueError, match=f"no cache of a teacher's answers in {filled.parent}: look in {filled}$"):
        run(["info", str(filled.parent)])


def test_prune_keeps_the_last_and_removes_nothing_of_anybody_else(filled, capsys) -> None:
    (filled / "notes.txt").write_text("mine")
    content = bytearray((file := next(filled.glob("train-*/00001.answers"))).read_bytes())
    content[3] ^= 1  # its header: no row can be used
    file.write_bytes(content)
    run(["prune", str(filled)])
    assert "used last; --keep=0 removes all" in capsys.readouterr().out
    assert not file.exists()
    assert [answers.views() for answers in caches_in(filled, "train")] == [[0]]
    (caches_in(filled, "val")[0].folder / "mine.txt").write_text("mine")
    run(["prune", str(filled), "--keep=0"])
    assert "removed" in capsys.readouterr().out
    assert sorted(path.name for path in filled.rglob("*.*")) == ["mine.txt", "notes.txt"]
    with pytest.raises(ValueError, match="there is no cache of a teacher's answers in"):
        run(["info", str(filled)])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], r"expected lit-distill cache info\|fill\|prune FOLDER"),
        (["info"], r"expected lit-distill cache info\|fill\|prune FOLDER"),
        (["look", "cache"], "got lit-distill cache look cache"),
        (["info", "nowhere"], "there is no cache of a teacher's answers in nowhere"),
        (["prune", "nowhere"], "there is no cache of a teacher's answers in nowhere"),
        (["prune", "nowhere", "--keep=-1"], "keep must be >= 0, got -1"),
        (["fill", "cache"], "needs the flags of the run of fit whose teacher is to be asked"),
        (["fill", "cache", "--config=digits"], "teacher_cache: required: views"),
        (
            ["fill", "cache", *FLAGS, "--teacher_cache.views=1"],
            "views=1 shows the student every image in one form only",
        ),
    ],
)
def test_what_is_missing_is_said(args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(args)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_cache_whose_description_is_damaged_is_described_again_or_pruned(filled, content: bytes, capsys) -> None:
    (train,) = caches_in(filled, "train")
    (train.folder / MADE_OF).write_bytes(content)
    assert not caches_in(filled, "train")
    train.describe()
    assert [answers.folder for answers in caches_in(filled, "train")] == [train.folder]
    (train.folder / MADE_OF).write_bytes(content)
    run(["prune", str(filled)])
    assert f"removed {train.folder}" in capsys.readouterr().out
    assert not train.folder.exists()


def test_a_fill_takes_the_flags_of_a_run_that_accumulates_and_clips(tmp_path) -> None:
    flags = ["--trainer.gradient_clip_val=1.0", "--trainer.accumulate_grad_batches=2"]
    run(["fill", "cache", *FLAGS, *flags, "--trainer.check_val_every_n_epoch=5"])
    train, val = (caches_in(Path("cache"), kind)[0] for kind in ("train", "val"))
    assert [train.share(view) for view in (0, 1)] == [1, 1] == [val.share(0), val.num_rows / 360]


def test_a_fill_without_room_on_disk_ends(tmp_path, monkeypatch) -> None:
    def is_full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Answers, "write", is_full)
    asked = Asked(monkeypatch)
    with pytest.raises(OSError, match="no room"), pytest.warns(UserWarning, match="cannot be written"):
        run(["fill", "cache", *FLAGS])
    assert asked.images < 2 * 1437


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--help"], "prune: Throw away the caches that were not used last"),
        (["info", "--help"], "Print what the caches in a folder hold"),
        (["prune", "--help"], "--keep KEEP"),
        (["fill", "--help"], "and the flags of that run"),
        (["fill", "cache", "--help"], "and the flags of that run"),
    ],
)
def test_help_is_there(args: list[str], text: str, capsys) -> None:
    with suppress(SystemExit):
        run(args)
    assert text in " ".join(capsys.readouterr().out.split())
