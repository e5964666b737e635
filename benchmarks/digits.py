"""Compare losses on the digits: one student, one schedule, one augmentation, several seeds.

    python benchmarks/digits.py --seeds 0 1 2 3 4

Every run is the command line of configs/digits.yaml with other flags; what counts is the last epoch. The table has the
mean and the standard deviation over the seeds, on the 360 held-out images. A run that is done is not made again when
the command is started once more.
"""

import argparse
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

from measure import Report, options_of, quiet, scaled
import torch

from lit_distill.cli import main

NO_LWR, NO_TEACHER = "--retrospection=null", "--model.distillation=null"
METHODS = {
    "cross-entropy alone": [NO_LWR, NO_TEACHER],
    "label smoothing 0.1": [
        NO_LWR,
        NO_TEACHER,
        "--model.criterion=torch.nn.CrossEntropyLoss",
        "--model.criterion.label_smoothing=0.1",
    ],
    "LWR": [NO_TEACHER],
    "soft distillation, T = 3": [
        NO_LWR,
        "--model.distillation=SoftDistillation",
        "--model.distillation.temperature=3",
    ],
    "hard distillation": [NO_LWR],
    "hard distillation + LWR (the main job)": [],
}


def run(flags: list[str], seed: int, epochs: int | None = None) -> dict[str, float]:
    """Return the last epoch's figures of a run."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        silent = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        where = [f"--trainer.logger.save_dir={folder}", f"--seed_everything={seed}"]
        length = [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
        start = time.perf_counter()
        main(["fit", "--config", "digits", *flags, *length, *silent, *where])
        seconds = time.perf_counter() - start
        checkpoint = torch.load(next(Path(folder).rglob("last.ckpt")), weights_only=True)
    metrics = checkpoint["callbacks"]["RunSummary"]["last"]
    return {name.removeprefix("val/"): value for name, value in metrics.items()} | {"seconds": seconds}


def spread(values: list[float], scale: float, digits: int) -> str:
    mean = scale * statistics.mean(values)
    deviation = scale * statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def compare() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])

    options = options_of(__doc__, add)
    seeds = options.seeds[: scaled(len(options.seeds), options)]
    epochs = None if options.length == 1 else scaled(60, options, 2)
    report = Report(__file__, options, "loss", place=("seeds",))
    for method, flags in METHODS.items():
        runs: list[dict[str, Any]] = []
        for seed in seeds:
            runs.append(report.once("runs", f"{method}, seed {seed}", lambda f=flags, s=seed: run(f, s, epochs)))
        accuracy = [figures["accuracy mean probs"] for figures in runs]
        columns = {
            "accuracy (%)": spread(accuracy, 100, 2),
            "lowest": f"{100 * min(accuracy):.2f}",
            "NLL (nats)": spread([figures["nll"] for figures in runs], 1, 3),
            "ECE": spread([figures["ece"] for figures in runs], 1, 3),
            "seconds": round(statistics.median(figures["seconds"] for figures in runs)),
        }
        report.row(f"mean ± standard deviation over the seeds {seeds}", method, **columns)
    report.finish()


if __name__ == "__main__":
    compare()
