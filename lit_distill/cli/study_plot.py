"""The plot of a study: each run's accuracy, and how far each row is from the baseline."""

from importlib import import_module
import json
from pathlib import Path
import statistics
import sys

from lit_distill.checks import counted
from lit_distill.files import write_atomically


def draw(table: Path, plot: Path) -> list[Path]:
    """Draw each row's accuracies and its difference from the baseline, if matplotlib is there; return the files."""
    try:
        matplotlib_figure = import_module("matplotlib.figure")  # an extra, and slow to import
    except ImportError:
        print("note: no plot without matplotlib: pip install 'lit-distill[study]'", file=sys.stderr)
        return []
    content = json.loads(table.read_text())
    rows = {name: row for name, row in content["rows"].items() if row["runs"]}
    if not rows:
        return []
    figure = matplotlib_figure.Figure(figsize=(10, 0.36 * len(rows) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.2, 1])
    for place, (name, row) in enumerate(rows.items()):
        is_baseline = name == content["baseline"]
        colour = "tab:gray" if is_baseline else "tab:blue"
        by_seed = [100 * seed["last"]["accuracy"] for seed in row["by_seed"].values()]
        mean = statistics.fmean(by_seed)
        left.plot(by_seed, [place] * len(by_seed), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
        left.plot([mean], [place], "|", color=colour, markersize=14, markeredgewidth=2)
        left.annotate(f"{mean:.1f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        against = row["last"]["accuracy"]["against_baseline"]
        if not is_baseline and against["difference"] is not None:
            middle = 100 * against["difference"]
            reach = 0.0 if against["high"] is None else 100 * against["high"] - middle
            right.errorbar(middle, place, xerr=reach, fmt="o", capsize=3, color=colour)
    names = [f"{name} (baseline)" if name == content["baseline"] else name for name in rows]
    left.set_yticks(range(len(rows)), names)
    left.set_ylim(len(rows) - 0.5, -0.5)
    images = "test" if content["held_out"] else "validation"
    left.set_xlabel(f"accuracy on the {images} images (%), last epoch:\neach seed, and the mean")
    right.axvline(0, color="tab:gray", linewidth=0.8, linestyle="--")
    right.set_xlabel("points above the baseline, seed by seed:\nmean and its 95 % interval")
    for axes in (left, right):
        axes.grid(axis="x", linewidth=0.4, alpha=0.6)
        axes.tick_params(axis="y", length=0)
    teachers = "".join(
        f"; teacher {name} {teacher['accuracy']:.1%}" for name, teacher in content["teachers"].items() if teacher
    )
    length = f"{counted(content['epochs'], 'epoch')}, {counted(len(content['seeds']), 'seed')}"
    head = f"{content['study']}: {length}{teachers}"
    figure.suptitle(head, fontsize=11)
    with write_atomically(plot) as part:
        figure.savefig(part, format="png", dpi=150)
    return [plot]
