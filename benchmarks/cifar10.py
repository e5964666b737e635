"""Run the CIFAR-10 recipe end to end: the teacher, then three students that differ in their loss alone.

    python benchmarks/cifar10.py FOLDER --teacher_epochs 100 --epochs 200 --seeds 0 1 2 \
        --trainer.devices=1 --trainer.precision=bf16-mixed --output benchmarks/cifar10_full.json

is the whole of it, for a GPU; benchmarks/gpu.py runs it in pieces. FOLDER has the images, ``train/<class>/*`` and
``test/<class>/*``. Every run is the command line with configs/cifar10_teacher.yaml or configs/cifar10.yaml, the folder
in place of torchvision's files, and the test images to validate on: nothing is chosen by them, what counts is the last
epoch. Flags that are not listed go to every run. The curves of a run are in the JSON file as soon as it is done;
started again, the same command skips it, and takes up one that was cut off after its last complete epoch. Logs and
checkpoints lie in logs/benchmark_cifar10.
"""

import argparse
import csv
from pathlib import Path
import subprocess
import sys
from typing import Any

from measure import ROOT, Report, folder_of_runs, options_of, part_of, resumable, scaled

TABLE = "last epoch"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
NO_TEACHER = "--model.distillation=null"  # the teacher stays, to tell how far the student agrees with it
COLUMNS = {
    "accuracy_class": "class head (%)",
    "accuracy_distill": "distillation head (%)",
    "accuracy_mean_probs": "mean of softmaxes (%)",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "agreement": "agreement (%)",
    "teacher_accuracy": "teacher (%)",
}


def students(interval: int) -> dict[str, list[str]]:
    return {
        "cross-entropy alone": [NO_TEACHER],
        "hard distillation": [],
        "hard distillation + LWR": [f"--retrospection.interval={interval}"],
    }


def curves_of(folder: Path) -> dict[str, list[float | None]]:
    """Return the values of each metric, an epoch each, from the CSV logs of a run and of what resumed it."""
    epochs: dict[int, dict[str, float]] = {}
    for log in sorted(folder.glob("version_*/metrics.csv"), key=version):
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if "/" in name and value}
                epochs.setdefault(int(row["epoch"]), {}).update(values)
    names = sorted({name for values in epochs.values() for name in values})
    rounded = [{name: round(value, 5) for name, value in epochs[epoch].items()} for epoch in sorted(epochs)]
    return {name: [values.get(name) for values in rounded] for name in names}


def seconds_of(folder: Path) -> float:
    """Return the seconds from writing the configuration, before the first step, to the last epoch's metrics."""
    ends = [(log.parent / "config.yaml", log) for log in folder.glob("version_*/metrics.csv")]
    return round(sum(log.stat().st_mtime - config.stat().st_mtime for config, log in ends), 1)


def version(path: Path) -> int:
    return next(int(part.removeprefix("version_")) for part in path.parts[::-1] if part.startswith("version_"))


def last_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("version_*/checkpoints/last.ckpt"), key=version, default=None)


def run(folder: Path, epochs: int, flags: list[str]) -> dict[str, Any]:
    """Train, or go on, unless ``folder`` has all epochs; return the curves."""
    # The training loss is logged last, after the checkpoint is written.
    if curves_of(folder).get("train/loss", [])[epochs - 1 : epochs] in ([], [None]):
        last = last_checkpoint(folder)
        where = [f"--trainer.logger.save_dir={folder.parent}", f"--trainer.logger.name={folder.name}"]
        arguments = [f"--ckpt_path={last}"] if last else [*flags, *QUIET, *where, f"--trainer.max_epochs={epochs}"]
        print(f"\n== {folder.name}{', resumed' if last else ''}", flush=True)
        ended = subprocess.run([sys.executable, "-P", str(ROOT / "train.py"), "fit", *arguments])
        code, done = ended.returncode, len(curves_of(folder).get("val/nll", []))
        if code or done < epochs:
            raise ValueError(f"the run {folder.name} ended with exit code {code} after {done} of {epochs} epochs")
    return {"seconds": seconds_of(folder), "curves": curves_of(folder)}


def train_all(args: argparse.Namespace, work: Path, data: Path, report: Report) -> None:
    """Run what is not done, the teacher first."""
    shared = ["--data=ImageFolderDataModule", f"--data.root={data}", "--data.val=test", "--data.image_size=32"]

    def train(name: str, seed: int, epochs: int, config: str, flags: list[str]) -> None:
        folder = work / f"{name.replace(' + ', ' ').replace(' ', '_')}-{seed}"
        run_flags = [f"--config={ROOT / 'configs' / config}", *shared, f"--seed_everything={seed}", *flags, *args.flags]
        key = f"{name}, seed {seed}"
        if not report.has(TABLE, key):
            run_figures = run(folder, epochs, run_flags)
            report.row(TABLE, key, **row_of(run_figures))
            report.content.setdefault("curves", {})[key] = run_figures["curves"]
            report.save()

    size = f"--model.student.img_size={args.teacher_size}"
    train("teacher", args.teacher_seed, args.teacher_epochs, "cifar10_teacher.yaml", [size])
    teacher = last_checkpoint(work / f"teacher-{args.teacher_seed}")
    for seed in args.seeds:
        for name, flags in students(args.interval).items():
            if teacher is None and not report.has(TABLE, f"{name}, seed {seed}"):
                raise ValueError(f"the teacher's checkpoint is gone from {work}: choose another --output to train anew")
            train(name, seed, args.epochs, "cifar10.yaml", [f"--model.teacher.model={teacher}", *flags])


def row_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return the last epoch's figures."""
    row: dict[str, Any] = {}
    one_head = "train/distillation" not in found["curves"]
    for name, heading in COLUMNS.items():
        values = found["curves"].get(f"val/{name}")
        absent = values is None or (one_head and name in ("accuracy_distill", "accuracy_mean_probs"))
        row[heading] = None if absent else values[-1] if name in ("nll", "ece") else 100 * values[-1]
    return {**row, "seconds": found["seconds"]}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--epochs", type=int, default=200, help="of each student")
        parser.add_argument("--teacher_epochs", type=int, default=100)
        parser.add_argument(
            "--teacher_size", type=int, default=128, help="pixels, to which the teacher enlarges images"
        )
        parser.add_argument("--teacher_seed", type=int, default=0)
        parser.add_argument("--interval", type=int, default=5, help="epochs between two recordings of LWR")
        parser.add_argument("--images", type=int, help="training images, as many of each class; by default all")
        parser.add_argument("--test_images", type=int, help="test images; by default all")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0])

    args = options_of(__doc__, add, extra=True)
    if args.length < 1:  # 2 epochs of 500 images take the place of 200 epochs of 50,000
        args.epochs, args.teacher_epochs = scaled(args.epochs, args, 2), scaled(args.teacher_epochs, args)
        args.images, args.test_images = args.images or scaled(50_000, args), args.test_images or scaled(10_000, args)
        args.teacher_size, args.interval, args.seeds = min(32, args.teacher_size), 1, args.seeds[:1]
    # More seeds than before go on in the same file.
    report = Report(__file__, args, "run", place=("folder", "seeds"))
    work = folder_of_runs("benchmark_cifar10", args, ("seeds",))
    data = part_of(args.folder, {"train": args.images, "test": args.test_images}, work / "images")
    train_all(args, work, data, report)
    report.note(f"Last epoch, {args.test_images or 'all'} test images.")
    report.finish()


if __name__ == "__main__":
    resumable(main)
