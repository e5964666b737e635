"""Compare losses on the digits: one student, one schedule, one augmentation, several seeds.

    python benchmarks/digits.py --seeds 0 1 2 3 4

Every run is the command line of configs/digits.yaml with other flags; what counts is the last epoch. Prints a table in
Markdown, and keeps every run's figures in benchmarks/digits.json.
"""

import argparse
import json
from pathlib import Path
import statistics
import tempfile
import time

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


def run(flags: list[str], seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        where = [f"--trainer.logger.save_dir={folder}", f"--seed_everything={seed}"]
        start = time.perf_counter()
        main(["fit", "--config", "digits", *flags, *quiet, *where])
        seconds = time.perf_counter() - start
        checkpoint = torch.load(next(Path(folder).rglob("last.ckpt")), weights_only=True)
    metrics = checkpoint["callbacks"]["RunSummary"]["last"]
    return {name.removeprefix("val/"): value for name, value in metrics.items()} | {"seconds": seconds}


def spread(values: list[float], scale: float, digits: int) -> str:
    mean = scale * statistics.mean(values)
    deviation = scale * statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for method, flags in METHODS.items():
        for seed in options.seeds:
            results.setdefault(method, []).append(run(flags, seed))
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nmean ± standard deviation over the seeds {options.seeds}, last epoch, 360 held-out images\n")
    print("| loss | accuracy (%) | lowest | NLL (nats) | ECE | seconds |\n|---|---|---|---|---|---|")
    for method, runs in results.items():
        accuracy = [r["accuracy_mean_probs"] for r in runs]
        print(
            f"| {method} | {spread(accuracy, 100, 2)} | {100 * min(accuracy):.2f} "
            f"| {spread([r['nll'] for r in runs], 1, 3)} | {spread([r['ece'] for r in runs], 1, 3)} "
            f"| {statistics.median(r['seconds'] for r in runs):.0f} |"
        )
