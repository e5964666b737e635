"""Run the CIFAR-10 recipe end to end: the teacher, then three students that differ in their loss alone.

    python benchmarks/cifar10.py FOLDER --teacher_epochs 100 --epochs 200 --seeds 0 1 2 \
        --trainer.devices=1 --trainer.precision=bf16-mixed --output benchmarks/cifar10_full.json

is the whole of it, for a GPU. FOLDER has the images, ``train/<class>/*`` and ``test/<class>/*``. Every run is the
command line with configs/cifar10_teacher.yaml or configs/cifar10.yaml, the folder in place of torchvision's files, and
the test images to validate on: nothing is chosen by them, what counts is the last epoch. Flags that are not listed go
to every run. The curves of a run are in the JSON file as soon as it is done; started again, the same command skips it,
and takes up one that was cut off after its last complete epoch. Logs and checkpoints lie in logs/benchmark_cifar10.
Prints a table in Markdown.
"""

import argparse
from collections.abc import Iterator
import csv
import hashlib
import json
from pathlib import Path
import random
import shutil
import subprocess
import sys
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
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


def classes_of(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return the images of each class, sorted."""
    where = folder / split
    found = sorted(path for path in where.iterdir() if path.is_dir()) if where.is_dir() else []
    if not found:
        raise ValueError(f"{folder} has no {split}/<class>/: expected train/<class>/* and test/<class>/*")
    return {path.name: sorted(p for p in path.iterdir() if not p.name.startswith(".")) for path in found}


def part_of(folder: Path, counts: dict[str, int | None], into: Path) -> Path:
    """Return a folder of links to as many images of each split, drawn class by class; None means all of them."""
    classes = {split: classes_of(folder, split) for split in counts}
    if set(counts.values()) == {None}:
        return folder
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for split, count in counts.items():
        if count is None:
            (into / split).symlink_to(folder / split)
            continue
        for number, (name, images) in enumerate(classes[split].items()):
            wanted = count // len(classes[split]) + (number < count % len(classes[split]))
            if not 0 < wanted <= len(images):
                raise ValueError(f"expected 1 to {len(images)} images of {name!r} in {split}, got {wanted}")
            (into / split / name).mkdir(parents=True)
            for image in random.Random(f"{split}/{name}").sample(images, wanted):
                (into / split / name / image.name).symlink_to(image)
    return into


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
        how = [f"--ckpt_path={last}"] if last else [*flags, *QUIET, *where, f"--trainer.max_epochs={epochs}"]
        print(f"\n== {folder.name}{', resumed' if last else ''}", flush=True)
        ended = subprocess.run([sys.executable, "-P", str(ROOT / "train.py"), "fit", *how])
        code, done = ended.returncode, len(curves_of(folder).get("val/nll", []))
        if code or done < epochs:
            raise ValueError(f"the run {folder.name} ended with exit code {code} after {done} of {epochs} epochs")
    return {"seconds": seconds_of(folder), "curves": curves_of(folder)}


def results(args: argparse.Namespace, work: Path, data: Path, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run what is not done, the teacher first."""
    finished = {(entry["run"], entry["seed"]) for entry in done}
    shared = ["--data=ImageFolderDataModule", f"--data.root={data}", "--data.val=test", "--data.image_size=32"]

    def train(name: str, seed: int, epochs: int, config: str, flags: list[str]) -> Iterator[dict[str, Any]]:
        if (name, seed) not in finished:
            folder = work / f"{name.replace(' + ', ' ').replace(' ', '_')}-{seed}"
            own = [f"--config={ROOT / 'configs' / config}", *shared, f"--seed_everything={seed}", *flags, *args.flags]
            yield {"run": name, "seed": seed, **run(folder, epochs, own)}

    size = f"--model.student.img_size={args.teacher_size}"
    yield from train("teacher", args.teacher_seed, args.teacher_epochs, "cifar10_teacher.yaml", [size])
    teacher = last_checkpoint(work / f"teacher-{args.teacher_seed}")
    for seed in args.seeds:
        for name, flags in students(args.interval).items():
            if teacher is None and (name, seed) not in finished:
                raise ValueError(f"the teacher's checkpoint is gone from {work}: choose another --output to train anew")
            taught_by = f"--model.teacher.model={teacher}"
            yield from train(name, seed, args.epochs, "cifar10.yaml", [taught_by, *flags])


def table(entries: list[dict[str, Any]]) -> str:
    lines = ["| run | seed | " + " | ".join(COLUMNS.values()) + " | seconds |", "|---" * (len(COLUMNS) + 3) + "|"]
    for entry in entries:
        cells = []
        for name in COLUMNS:
            values = entry["curves"].get(f"val/{name}")
            one_head = "train/distillation" not in entry["curves"]
            absent = values is None or (one_head and name in ("accuracy_distill", "accuracy_mean_probs"))
            cells.append("" if absent else f"{values[-1]:.3f}" if name in ("nll", "ece") else f"{100 * values[-1]:.2f}")
        lines.append(f"| {entry['run']} | {entry['seed']} | {' | '.join(cells)} | {entry['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=200, help="of each student")
    parser.add_argument("--teacher_epochs", type=int, default=100)
    parser.add_argument("--teacher_size", type=int, default=128, help="pixels that the teacher enlarges the images to")
    parser.add_argument("--teacher_seed", type=int, default=0)
    parser.add_argument("--interval", type=int, default=5, help="epochs between two recordings of LWR")
    parser.add_argument("--images", type=int, help="training images, as many of each class; by default all")
    parser.add_argument("--test_images", type=int, help="test images; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args, args.flags = parser.parse_known_args()
    settings = {name: value for name, value in vars(args).items() if name not in ("folder", "seeds", "output")}
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    changed = [name for name in settings if found and found["settings"].get(name) != settings[name]]
    if changed:
        then, now = found["settings"].get(changed[0]), settings[changed[0]]
        raise ValueError(f"{args.output} is of a run with {changed[0]}={then}, not {now}: choose another --output")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    content = {"settings": settings, "device": device, "torch": torch.__version__, "runs": [], **found}
    folder = args.folder.resolve()
    digest = hashlib.sha256(json.dumps([settings, str(folder)]).encode()).hexdigest()[:8]
    work = Path("logs", "benchmark_cifar10", digest).resolve()
    data = part_of(folder, {"train": args.images, "test": args.test_images}, work / "images")
    for entry in results(args, work, data, content["runs"]):
        content["runs"].append(entry)
        temporary = args.output.with_name(f".{args.output.name}")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(args.output)
    print(f"\nlast epoch, {args.test_images or 'all'} test images\n\n{table(content['runs'])}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped: the same command goes on from here")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
