"""The statistics of a study, held against scipy and values by hand, and what the table says."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lit_distill.cli.study_table import analyse, choose_baseline, holm, paired, summary_of, write_table

ABOUT = {"study": "toy", "epochs": 3, "seeds": [0, 1, 2], "hardware": "abacus", "torch": "2.0", "held_out": True}


def result(accuracy: float, validation: float = 0.5, best: float | None = None) -> dict[str, Any]:
    last = {"accuracy": accuracy, "nll": 1.0, "ece": 0.1, "aurc": 0.2}
    return {
        "last": last,
        "best": None if best is None else last | {"accuracy": best},
        "validation": {"last": {"val/accuracy_class": validation}},
        "seconds": 12.0,
        "date": "2026-01-02",
    }


RESULTS = {
    "plain": {seed: result(value, best=value + 0.01) for seed, value in enumerate((0.50, 0.52, 0.49))},
    "better": {seed: result(value, 0.9, best=value) for seed, value in enumerate((0.60, 0.61, 0.60))},
    "same": {seed: result(value, best=value + 0.01) for seed, value in enumerate((0.50, 0.52, 0.49))},
    "running": {0: result(0.7), 1: None, 2: None},
}


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_the_paired_test_is_scipys_on_the_seeds_that_both_have() -> None:
    generator = np.random.default_rng(0)
    first, second = (dict(enumerate(generator.normal(size=8).tolist())) for _ in range(2))
    found = paired(first | {99: 3.0}, second)
    expected = stats.ttest_rel([*first.values()], [*second.values()])
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["standard_errors"] == pytest.approx(expected.statistic)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_differences_that_do_not_vary_tell_nothing() -> None:
    assert paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})["p"] == 1.0
    assert paired({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6})["p"] is None
    assert paired({0: 0.6}, {0: 0.5})["p"] is None
    assert paired({}, {0: 0.5})["difference"] is None


def test_the_mean_has_students_interval() -> None:
    values = [0.5, 0.6, 0.8]
    found = summary_of(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert summary_of([])["mean"] is None


def test_the_baseline_is_the_best_on_the_validation_images_whatever_the_test_says() -> None:
    rows = {"a": {0: result(0.9, validation=0.1)}, "b": {0: result(0.1, validation=0.2)}, "c": {0: None}}
    assert choose_baseline(rows, ["a", "b", "c"]) == "b"
    rows["a"][1] = result(0.0, validation=0.9)
    assert choose_baseline(rows, ["a", "b", "c"]) == "a"
    assert choose_baseline(rows, ["a", "b", "c"], seed=0) == "b"


def test_a_distilled_row_is_judged_by_the_head_that_predicts() -> None:
    def of_two_heads(by_class: float, by_mean: float) -> dict[str, Any]:
        values = {"val/accuracy_class": by_class, "val/accuracy_mean_probs": by_mean}
        return result(0.5) | {"head": "mean_probs", "validation": {"last": values}}

    rows = {"a": {0: of_two_heads(0.6, 0.7)}, "b": {0: of_two_heads(0.5, 0.9)}}
    assert choose_baseline(rows, ["a", "b"]) == "b"
    rows["b"][0]["validation"] = {}
    with pytest.raises(ValueError, match="row 'b' has no val/accuracy_mean_probs to choose the baseline by: have its"):
        choose_baseline(rows, ["a", "b"])
    assert choose_baseline(rows, ["b"]) == "b"


def test_a_candidate_without_a_result_loses_even_to_one_that_is_always_wrong() -> None:
    assert choose_baseline({"a": {0: None}, "b": {0: result(0.5, validation=0.0)}}, ["a", "b"]) == "b"


def test_last_and_best_epoch_are_apart_and_each_corrected() -> None:
    rows = analyse(RESULTS, "plain")
    against = rows["better"]["last"]["accuracy"]["against_baseline"]
    assert against["difference"] == pytest.approx(0.1)
    assert against["p_holm"] == pytest.approx(2 * against["p"])  # two rows have a p value
    assert rows["same"]["last"]["accuracy"]["against_baseline"]["p_holm"] == 1.0
    assert rows["better"]["best"]["accuracy"]["against_baseline"]["difference"] == pytest.approx(0.09)
    assert rows["running"]["best"]["accuracy"]["mean"] is None
    assert rows["running"]["runs"] == 1


def test_the_files_say_the_same_and_are_whole(tmp_path) -> None:
    teachers = {"net": result(0.8), "other": None}
    write_table(tmp_path, ABOUT, RESULTS, teachers, ["plain", "same"])
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["baseline"] == "plain"
    assert content["rows"]["better"]["by_seed"]["1"]["last"]["accuracy"] == 0.61
    text = (tmp_path / "table.md").read_text()
    assert "| plain (baseline) | 50.33 ± 1.53 |" in text
    assert "| better | 60.33 ± 0.58 | +10.00 (" in text
    assert "| running | 70.00 | +20.00 | - | - |" in text
    assert "Teacher net: 80.00% on the test images." in text
    assert "Teacher other: not trained yet." in text
    assert ", 2026-01-02.\n" in text
    assert {path.name for path in tmp_path.iterdir()} == {"table.json", "table.md"}
    assert "Accuracy in % on the test images, which choose nothing. The best epoch is the best on the val" in text
    assert "Mean ± standard deviation over the seeds. Against the baseline: the difference in points with its" in text
    write_table(tmp_path, ABOUT | {"held_out": False}, RESULTS, teachers, ["plain"])
    text = (tmp_path / "table.md").read_text()
    assert "Accuracy in % on the validation images, as there are no test images, so no epoch is called the b" in text
    assert "Teacher net: 80.00% on the validation images." in text
    write_table(tmp_path, ABOUT | {"seeds": [0]}, {"plain": {0: result(0.5)}}, {}, ["plain"])
    text = (tmp_path / "table.md").read_text()
    assert "None" not in text
    assert "deviation" not in text
    assert "interval" not in text
    write_table(tmp_path, ABOUT, {"plain": {0: None}}, {}, ["plain"])
    assert f"torch {ABOUT['torch']}.\n" in (tmp_path / "table.md").read_text()
