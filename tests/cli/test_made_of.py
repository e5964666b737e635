"""How two runs differ, in words."""

from pathlib import Path

import pytest

from lit_distill.cli.made_of import differences_in_words, identified


def test_a_file_is_its_content_and_a_folder_its_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("weights.pt").write_text("1")
    first = identified({"root": "photos/", "flags": ["--model.student.weights=weights.pt", "--model.alpha=1"]})
    assert first == {
        "root": str(tmp_path / "photos"),
        "flags": [f"--model.student.weights={tmp_path / 'weights.pt'} (6b86b273ff34fce1)", "--model.alpha=1"],
    }
    Path("weights.pt").write_text("2")
    assert identified({"root": Path("photos")}) == {"root": str(tmp_path / "photos")}
    assert identified(["--model.student.weights=weights.pt"]) != first["flags"]


def test_each_kind_of_difference_is_one_line() -> None:
    then = {
        "photos": {"train": {"a": "1", "b": "2", "c": "3", "d": "4"}, "val": {"e": "5"}},
        "config": {"seed_everything": 1, "model": {"student": {"name": "a"}}},
        "flags": ["--model.alpha=1"],
        "teacher": "t",
    }
    now = {
        "photos": {"train": {"b": "9", "c": "3", "e": "5", "x": "6", "w": "7"}, "val": {"d": "4"}},
        "config": {"seed_everything": 2, "model": {"student": {"name": "b"}}},
        "flags": [],
        "teacher": "u",
    }
    cached = {"config": {"teacher_cache": {"class_path": "C", "init_args": {"views": 30}}}}
    fewer = {"config": {"teacher_cache": {"class_path": "C", "init_args": {"views": 9}}}}
    assert differences_in_words({**fewer, "flags": ["--teacher_cache.views=9"]}, cached, "student") == [
        "--teacher_cache.views is 9 instead of 30"
    ]
    lines = differences_in_words(now, then, "student")
    assert lines == [
        "2 photos are new (such as w)",
        "1 photo is gone (a)",
        "1 photo is changed (b)",
        "2 photos are on the other side of the split (such as d)",
        "the teacher is another",
        "and 3 more",
    ]
    assert differences_in_words({**now, "photos": {}, "teacher": "t"}, {**then, "photos": {}}, "teacher") == [
        "--seed is 2 instead of 1",
        "--teacher_net is b instead of a",
        "--model.alpha is not given instead of 1",
    ]
