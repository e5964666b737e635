from pathlib import Path

import pytest
import torch

from lit_distill.models import choice
from lit_distill.models.choice import fastest, remember, seconds_of_call


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "_remembered", {})


def test_the_first_of_equally_fast_ways_wins() -> None:
    seconds = {"exact": 1.04, "half": 1.0, "slow": 2.0}
    assert fastest(seconds, seconds.__getitem__) == ("exact", 1.04)
    assert fastest(seconds, seconds.__getitem__, tie=0.01) == ("half", 1.0)
    assert fastest(["broken"], lambda way: float("inf"))[0] == "broken"


def test_a_choice_is_made_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remember(["card", [8, 3]], lambda: "first") == "first"
    assert remember(["card", [8, 3]], lambda: pytest.fail("chosen twice")) == "first"
    monkeypatch.setattr(choice, "_remembered", {})  # as in another process
    assert remember(["card", [8, 3]], lambda: pytest.fail("chosen twice")) == "first"
    assert remember(["card", [4, 3]], lambda: "other shape") == "other shape"
    assert len(list(tmp_path.rglob("*.json"))) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}', "\x00\xff"])
def test_a_damaged_file_is_chosen_anew(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remember("facts", lambda: "first")
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    monkeypatch.setattr(choice, "_remembered", {})
    assert remember("facts", lambda: "second") == "second"


def test_does_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert remember("facts", lambda: "chosen") == "chosen"


def test_calls_are_timed_after_some_that_are_not() -> None:
    calls: list[int] = []
    assert 0 <= seconds_of_call(lambda: calls.append(1), torch.device("cpu")) < 1
    assert len(calls) == 12
