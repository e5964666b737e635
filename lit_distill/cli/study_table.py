"""The table of a study: means, spreads, and paired tests against the baseline."""

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
import statistics
from typing import Any

import numpy as np
from scipy import stats

from lit_distill.checks import counted, listed
from lit_distill.files import write_atomically

Figures = dict[str, Any]  # as JSON has them
Results = Mapping[str, Mapping[int, Figures | None]]  # by row and seed
_METRICS = ("accuracy", "nll", "ece", "aurc")
_CONFIDENCE = 0.95
_COLUMNS = (
    *("row", "last epoch", "against the baseline", "p", "best epoch", "p of the best epoch"),
    *("NLL", "ECE", "AURC", "seconds", "runs"),
)


def are_finite(scores: Figures) -> bool:
    """Tell whether no score is NaN or infinite, as those of a student that has diverged are."""
    return all(map(math.isfinite, scores.values()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number by Holm's step-down method; None stays None.

    Source:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics, 1979.

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, float | None]:
    """Compare a row with the baseline, seed by seed, with Student's t test.

    Args:
        values: A value a seed.
        baseline: The same of the baseline. Seeds that are not in both are left out.

    Returns:
        ``difference``, the mean of the differences; ``low`` and ``high``, its interval of 95 % confidence;
        ``standard_errors``, the mean in standard errors; ``p``, two-sided. None where there are too few seeds, or the
        differences do not vary.

    Example:
        >>> values = paired({0: 3.0, 1: 4.0, 2: 5.0}, {0: 1.0, 1: 1.0, 2: 1.0})
        >>> round(values["difference"], 3), round(values["p"], 4)
        (3.0, 0.0351)
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    keys = ("difference", "low", "high", "standard_errors", "p")
    if not seeds:
        return dict.fromkeys(keys)
    mean = float(differences.mean())
    if len(seeds) < 2 or np.ptp(differences) < 1e-12:
        p = 1.0 if len(seeds) > 1 and abs(mean) < 1e-12 else None
        return dict(zip(keys, (mean, None, None, None, p), strict=True))
    error = float(stats.sem(differences))
    low, high = stats.t.interval(_CONFIDENCE, len(seeds) - 1, loc=mean, scale=error)
    p = float(stats.ttest_rel([values[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
    return dict(zip(keys, (mean, float(low), float(high), mean / error, p), strict=True))


def summary_of(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, standard deviation over the seeds, and the mean's interval of 95 % confidence.

    Example:
        >>> summary_of([1.0, 3.0])["mean"], summary_of([1.0])["deviation"]
        (2.0, None)
    """
    keys = ("mean", "deviation", "low", "high")
    if len(values) < 2:
        return dict(zip(keys, (values[0] if values else None, None, None, None), strict=True))
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    reach = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return {"mean": mean, "deviation": deviation, "low": mean - reach, "high": mean + reach}


def choose_baseline(results: Results, candidates: Sequence[str], seed: int | None = None) -> str:
    """Return the candidate of the highest mean accuracy on the validation images, by the last epoch.

    The accuracy is that of the head that predicts. The test images have no part in it. With ``seed`` that seed alone
    chooses, by default all do. A candidate without a result loses.

    Raises:
        ValueError: If a run was not validated.
    """
    if len(candidates) == 1:
        return candidates[0]

    def mean_validated(row: str) -> float:
        runs = results[row] if seed is None else {seed: results[row].get(seed)}
        values = [_validated(row, result) for result in runs.values() if result]
        return statistics.fmean(values) if values else -1.0

    return max(candidates, key=mean_validated)


def analyse(results: Results, baseline: str) -> Figures:
    """Return the statistics of every row: by ``last`` and by ``best`` epoch, each metric's summary and comparison."""
    rows: Figures = {}
    for row, runs in results.items():
        found = {seed: result for seed, result in runs.items() if result is not None}
        rows[row] = {
            "runs": len(found),
            "seconds": summary_of([result["seconds"] for result in found.values()]),
            "by_seed": {str(seed): {"last": r["last"], "best": r["best"]} for seed, r in found.items()},
        }
        for epoch in ("last", "best"):
            rows[row][epoch] = {
                metric: summary_of([*_values(found, epoch, metric).values()])
                | {"against_baseline": paired(_values(found, epoch, metric), _values(results[baseline], epoch, metric))}
                for metric in _METRICS
            }
    others = [row for row in rows if row != baseline]
    for epoch in ("last", "best"):
        for metric in _METRICS:
            comparisons = [rows[row][epoch][metric]["against_baseline"] for row in others]
            for comparison, p in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
                comparison["p_holm"] = p
    return rows


def write_table(
    folder: Path,
    about: Mapping[str, object],
    results: Results,
    teachers: Mapping[str, Figures | None],
    candidates: Sequence[str],
    chooser: int | None = None,
) -> None:
    """Write ``table.json`` and ``table.md``, each whole or not at all.

    Args:
        folder: Where to.
        about: The study: its name, epochs, seeds, hardware, and ``held_out``: whether the test images are no validation
            images.
        results: Those of each run that is done; None of the others.
        teachers: Those of the teachers.
        candidates: Rows of which the best on the validation images is the baseline.
        chooser: The seed that chooses it; by default all seeds do.
    """
    baseline = choose_baseline(results, candidates, chooser)
    dates = [r["date"] for r in [*teachers.values(), *(r for runs in results.values() for r in runs.values())] if r]
    content = {
        **about,
        "date": max(dates, default=None),
        "baseline": baseline,
        "baseline_candidates": list(candidates),
        "baseline_chosen_by_seed": chooser,
        "teachers": {name: result and result["last"] for name, result in teachers.items()},
        "rows": analyse(results, baseline),
    }
    with write_atomically(folder / "table.json") as part:
        part.write_text(json.dumps(content, indent=1) + "\n")
    with write_atomically(folder / "table.md") as part:
        part.write_text(markdown(content))


def markdown(content: Figures) -> str:
    """Return the table as text, with what it was measured on."""
    rows, baseline = content["rows"], content["baseline"]
    images = (
        "the test images, which choose nothing. The best epoch is the best on the validation images"
        if content["held_out"]
        else "the validation images, as there are no test images, so no epoch is called the best"
    )
    spread = " Mean ± standard deviation over the seeds." if len(content["seeds"]) > 1 else ""
    test = (
        " with its interval of 95 % confidence, which is for that row alone, and p of a paired t test, which Holm's "
        "method has corrected for the number of rows (a dash: too few seeds, or all differ by the same amount)"
        if spread
        else ""
    )
    date = f", {content['date']}" if content["date"] else ""
    lines = [
        f"# {content['study']}",
        "",
        f"{counted(content['epochs'], 'epoch')}, seeds {content['seeds']}. {content['hardware']}, "
        f"torch {content['torch']}{date}.",
        "",
        f"Accuracy in % on {images}.{spread} Against the baseline: the difference in points{test}. By the last epoch: "
        "NLL in nats, ECE, and AURC, the area under the curve of risk by coverage. Seconds are those of one run.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for name, row in rows.items():
        last, best = row["last"], row["best"]
        against = last["accuracy"]["against_baseline"]
        cells = [
            f"{name} (baseline)" if name == baseline else name,
            _spread(last["accuracy"], 100, 2),
            "" if name == baseline else _difference(against),
            "" if name == baseline else _p(against),
            _spread(best["accuracy"], 100, 2),
            "" if name == baseline else _p(best["accuracy"]["against_baseline"]),
            *(_spread(last[metric], 1, 4) for metric in ("nll", "ece", "aurc")),
            _spread({**row["seconds"], "deviation": None}, 1, 0),
            str(row["runs"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if len(content["baseline_candidates"]) > 1:
        chooser = content["baseline_chosen_by_seed"]
        by = "" if chooser is None else f", by seed {chooser} alone"
        names = listed(content["baseline_candidates"])
        lines += [f"The baseline is the best on the validation images of {names}{by}.", ""]
    for name, teacher in content["teachers"].items():
        kind = "test" if content["held_out"] else "validation"
        accuracy = f"{teacher['accuracy']:.2%} on the {kind} images" if teacher else "not trained yet"
        lines += [f"Teacher {name}: {accuracy}.", ""]
    return "\n".join(lines)


def _values(runs: Mapping[int, Figures | None], epoch: str, metric: str) -> dict[int, float]:
    return {seed: result[epoch][metric] for seed, result in runs.items() if result and result[epoch]}


def _validated(row: str, result: Figures) -> float:
    name = f"val/accuracy_{result.get('head', 'class')}"  # earlier versions took this head's, and kept no other
    last = result["validation"].get("last", {})
    if name not in last:
        raise ValueError(
            f"row {row!r} has no {name} to choose the baseline by: have its runs validate, or name the baseline"
        )
    return float(last[name])


def _spread(values: Mapping[str, float | None], scale: float, digits: int) -> str:
    mean, deviation = values["mean"], values["deviation"]
    if mean is None:
        return "-"
    return f"{scale * mean:.{digits}f}" + ("" if deviation is None else f" ± {scale * deviation:.{digits}f}")


def _difference(values: Mapping[str, float | None]) -> str:
    mean, low, high = values["difference"], values["low"], values["high"]
    if mean is None:
        return "-"
    interval = "" if low is None or high is None else f" ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{100 * mean:+.2f}{interval}"


def _p(values: Mapping[str, float | None]) -> str:
    p = values.get("p_holm")
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
