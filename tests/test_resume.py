"""A run that was cut off and resumed ends with the same bits as one that was not."""

from functools import partial
import importlib.util
import os
from pathlib import Path
import random
import sys
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script() -> Any:
    """The benchmark that kills runs: its run and its comparison are the test's."""
    path = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"
    spec: Any = importlib.util.spec_from_file_location("kill_and_resume", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_and_resume"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder and the seconds of a case's run that nobody kills."""
    runs: dict[Any, tuple[Path, float]] = {}

    def run(*case: Any) -> tuple[Any, Path, float]:
        case = script.Case(*case)
        if case not in runs:
            runs.update(script.references(tmp_path_factory.mktemp("reference"), [case]))
        return case, *runs[case]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", [(1, 0, None), (1, 2, 3), (2, 0, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_from_outside_at_a_random_moment(script: Any, reference: Any, tmp_path, case: Any, seed: int) -> None:
    case, whole, seconds = reference(*case)
    _, found = script.trial(case, whole, seconds, random.Random(seed), tmp_path / "run")
    assert found == []


@pytest.mark.parametrize(
    ("case", "deaths"),  # 6 steps an epoch, a checkpoint every 2 and at the end of each; v: in the validation after it
    [
        ((1, 0, None), ["5"]),
        ((1, 0, 3), ["6"]),
        ((1, 0, None), ["6v", "9", "12v", "16", "20v"]),
        ((1, 2, None), ["8"]),
        pytest.param((1, 2, 3), ["12v", "16"], marks=pytest.mark.slow),
        ((2, 0, None), ["15"]),
        pytest.param((2, 2, 3), ["18v", "20v"], marks=pytest.mark.slow),
    ],
)
def test_cut_off_after_some_steps(script: Any, reference: Any, tmp_path, case: Any, deaths: list[str]) -> None:
    case, whole, _ = reference(*case)
    for death in [*deaths, None]:
        more = [] if death is None else [script.Die(int(death.rstrip("v")), death.endswith("v"))]
        pid = script.forked(partial(script.train, tmp_path, case, *more), tmp_path / "log.txt")
        _, status = os.waitpid(pid, 0)
        assert (status == 0) == (death is None), (tmp_path / "log.txt").read_text()
        assert (tmp_path / "end.ckpt").exists() == (death is None)
        while not script.gone(pid):
            pass
    assert script.compare(case, tmp_path, whole) == []


def test_the_comparison_finds_what_differs(script: Any, reference: Any) -> None:
    case, whole, _ = reference(1, 0, None)
    _, other, _ = reference(1, 0, 3)
    found = script.compare(case, other, whole)
    assert any(path.startswith("/state_dict/student") for path in found)
    assert any(path.startswith("/memory") for path in found)
