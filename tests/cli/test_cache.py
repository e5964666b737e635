"""The command that looks at caches, fills them ahead and throws them away."""

from pathlib import Path

import pytest
import torch

from lit_distill.cli.app import DistillCLI
from lit_distill.cli.cache import run
from lit_distill.models.answers import caches_in

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


def test_info_says_what_is_there(filled, capsys) -> None:
    run(["info", str(filled)])
    printed = capsys.readouterr().out
    assert f"{filled}: 2 caches, 0.0" in printed
    assert ": 2 views of 1437 images, 2 of them whole, 0.05" in printed
    assert ": 1 views of 360 images, 1 of them whole, 0.00" in printed
    for name in ("teacher", "seed", "augmentation", "training set", "validation set"):
        assert f"\n  {name} " in printed


def test_prune_keeps_the_last_and_removes_nothing_of_anybody_else(filled, capsys) -> None:
    (filled / "notes.txt").write_text("mine")
    content = bytearray((file := next(filled.glob("train-*/00001.answers"))).read_bytes())
    content[3] ^= 1  # its header: no row can be used
    file.write_bytes(content)
    run(["prune", str(filled)])
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
