"""A run that was cut off and resumed ends with the same bits as one that was not."""

from collections.abc import Callable
from pathlib import Path
import random
from typing import Any

import kill_and_resume as script
from kill_and_resume import Case
import pytest


@pytest.fixture(scope="module")
def reference(fresh: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder and the seconds of a case's run that nobody kills."""
    runs: dict[Case, tuple[Path, float]] = {}

    def run(case: Case) -> tuple[Path, float]:
        if case not in runs:
            runs.update(fresh(script.references, tmp_path_factory.mktemp("reference"), [case]))
        return runs[case]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(1, 0, None), Case(1, 2, 3), Case(2, 0, 3)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_from_outside_at_a_random_moment(fresh: Any, reference: Any, tmp_path, case: Case, seed: int) -> None:
    _, found = fresh(script.trial, case, *reference(case), random.Random(seed), tmp_path / "run")
    assert found == []


@pytest.mark.parametrize(
    ("case", "deaths"),  # 6 steps an epoch, a checkpoint every 2 and at the end of each; v: in the validation after it
    [
        (Case(1, 0, None), ["5"]),
        (Case(1, 0, 3), ["6"]),
        (Case(1, 0, None), ["6v", "9", "12v", "16", "20v"]),
        (Case(1, 2, None), ["8"]),
        pytest.param(Case(1, 2, 3), ["12v", "16"], marks=pytest.mark.slow),
        (Case(2, 0, None), ["15"]),
        pytest.param(Case(2, 2, 3), ["18v", "20v"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cut_off_after_some_steps(fresh: Any, reference: Any, tmp_path, case: Case, deaths: list[str]) -> None:
    whole, _ = reference(case)
    for death in [*deaths, None]:
        more = [] if death is None else [script.Die(int(death.rstrip("v")), death.endswith("v"))]
        status = fresh(script.run, case, tmp_path, *more)
        assert (status == 0) == (death is None), (tmp_path / "log.txt").read_text()
        assert (tmp_path / "end.ckpt").exists() == (death is None)
    assert script.compare(case, tmp_path, whole) == []


def test_the_comparison_finds_what_differs(reference: Any) -> None:
    case = Case(1, 0, None)
    (whole, _), (other, _) = reference(case), reference(Case(1, 0, 3))
    found = script.compare(case, other, whole)
    assert any(path.startswith("/state_dict/student") for path in found)
    assert any(path.startswith("/memory") for path in found)
