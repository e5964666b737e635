"""The plot of a study: what it shows, and what is said without matplotlib."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_distill.cli import study_plot
from lit_distill.cli.study_plot import draw


def row(accuracies: list[float], difference: float | None, high: float | None) -> dict[str, Any]:
    against = {"difference": difference, "low": None, "high": high}
    return {
        "runs": len(accuracies),
        "by_seed": {str(seed): {"last": {"accuracy": accuracy}} for seed, accuracy in enumerate(accuracies)},
        "last": {"accuracy": {"against_baseline": against}},
    }


TABLE = {
    "study": "toy",
    "held_out": True,
    "epochs": 3,
    "seeds": [0, 1],
    "baseline": "plain",
    "teachers": {"net": {"accuracy": 0.8}, "other": None},
    "rows": {
        "plain": row([0.50, 0.52], 0.0, None),
        "better": row([0.60, 0.61], 0.095, 0.12),
        "one seed": row([0.70], 0.2, None),
        "not yet": row([], None, None),
    },
}


def test_it_shows_each_seed_each_mean_and_each_difference_with_its_interval(tmp_path, monkeypatch) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    made: list[Any] = []

    def keep(**options: Any) -> Any:
        made.append(figures.Figure(**options))
        return made[0]

    monkeypatch.setattr(study_plot, "import_module", lambda _: SimpleNamespace(Figure=keep))
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    unmeasured = TABLE | {"rows": {"not yet": row([], None, None)}}
    (tmp_path / "unmeasured.json").write_text(json.dumps(unmeasured))
    assert draw(tmp_path / "unmeasured.json", tmp_path / "plot.png") == []
    assert draw(tmp_path / "table.json", tmp_path / "plot.png") == [tmp_path / "plot.png"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    left, right = made[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["plain (baseline)", "better", "one seed"]
    assert made[0].get_suptitle() == "toy: 3 epochs, 2 seeds; teacher net 80.0%"
    points = [list(line.get_xdata()) for line in left.lines]
    assert [round(value, 6) for point in points for value in point] == [50, 52, 51, 60, 61, 60.5, 70, 70]
    assert [text.get_text() for text in left.texts] == ["51.0", "60.5", "70.0"]
    differences = [float(bars.lines[0].get_xdata()[0]) for bars in right.containers]
    assert differences == pytest.approx([9.5, 20.0])
    (low, high) = right.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((7.0, 12.0))


def test_without_matplotlib_a_note_says_what_to_install(tmp_path, monkeypatch, capsys) -> None:
    def missing(name: str) -> SimpleNamespace:
        raise ImportError(name)

    monkeypatch.setattr(study_plot, "import_module", missing)
    assert draw(Path("table.json"), tmp_path / "plot.png") == []
    assert "pip install 'lit-distill[study]'" in capsys.readouterr().err
