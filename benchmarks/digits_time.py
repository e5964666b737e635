"""Time the digits job beside a bare PyTorch loop that does the same work, or two versions of the job.

    python benchmarks/digits_time.py
    python benchmarks/digits_time.py --versions BEFORE/bin/python AFTER/bin/python

Both are processes of their own, which run in turn, in an order drawn anew each round, with one torch thread: the whole
job, start-up, 60 epochs with validation and a checkpoint an epoch; and one epoch of it. The difference of the two is
what the epochs take without the start-up. The bare loop has the same network, teacher, losses (hard labels and Learning
with Retrospection), optimizer and schedule, written by hand; the same augmentation, done for a batch at a time; the
metrics of the validation split, a line of CSV and ``torch.save`` an epoch. It imports this project's networks alone.

With ``--versions``, each argument is the Python of a virtual environment with one version, and their jobs are compared
instead. Unknown options go to the job. Processor time is the steadier figure on a machine that is shared.
"""

import argparse
import csv
from functools import partial
import math
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

from measure import Report, Timing, child_seconds, interleave, median_of, options_of, ratio, scaled
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill import DigitsCNN, DistillableViT

JOB = ["-m", "lit_distill.cli", "fit", "--config", "digits", "--trainer.enable_progress_bar=false"]
EPOCHS, BATCH, INTERVAL, TEMPERATURE, RATE = 60, 64, 5, 5.0, 0.9
SPREAD = torch.tensor([10, 0.8, 0.8, 0.1, 5])  # degrees, pixels right and down, size, degrees
CENTRES = torch.linspace(-3.5, 3.5, 8)


def augment(images: Tensor) -> Tensor:
    """Move, turn, shear and scale images ``(B, 1, 8, 8)``, as the digits' data module does one by one."""
    draws = (2 * torch.rand(len(images), 5) - 1) * SPREAD
    turn, scale, lean = draws[:, 0].deg2rad(), 1 + draws[:, 3], draws[:, 4].deg2rad().tan()
    x, y = draws[:, 1].round(), draws[:, 2].round()
    cos, sin = turn.cos() / (4 * scale), turn.sin() / (4 * scale)
    a, b, c, d = cos - lean * sin, sin + lean * cos, -sin, cos
    rows = torch.stack([a, b, -a * x - b * y, c, d, -c * x - d * y], dim=1).view(-1, 2, 3)
    y_grid, x_grid = torch.meshgrid(CENTRES, CENTRES, indexing="ij")
    pixels = torch.stack([x_grid, y_grid, torch.ones(8, 8)], dim=-1).view(1, 64, 3)
    grid = (pixels @ rows.transpose(1, 2)).view(-1, 8, 8, 2)
    inside = torch.ones_like(images)
    sampled = F.grid_sample(torch.cat([images, inside], dim=1), grid, padding_mode="zeros", align_corners=False)
    return sampled[:, :1] * sampled[:, 1:]


def validate(student: nn.Module, teacher: nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    student.eval()
    with torch.no_grad():
        logits, distill_logits, *_ = student(images)
        taught = teacher(images).argmax(dim=1)
        probabilities = (logits.softmax(dim=1) + distill_logits.softmax(dim=1)) / 2
        confidence, decisions = probabilities.max(dim=1)
        right = (decisions == targets).float()
        bins = (confidence * 15).long().clamp(max=14)
        gaps = torch.zeros(15).index_add(0, bins, right - confidence)
        metrics = {
            "accuracy": right.mean(),
            "accuracy_class": (logits.argmax(dim=1) == targets).float().mean(),
            "accuracy_distill": (distill_logits.argmax(dim=1) == targets).float().mean(),
            "agreement": (decisions == taught).float().mean(),
            "nll": F.nll_loss(probabilities.log(), targets),
            "ece": gaps.abs().sum() / len(targets),
        }
    student.train()
    return {name: float(value) for name, value in metrics.items()}


def bare_loop(epochs: int, seed: int, folder: Path) -> None:
    """Train as configs/digits.yaml says, and print the accuracy of the last epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    targets = torch.tensor(digits.target, dtype=torch.int64)
    train, held_out = train_test_split(range(len(targets)), test_size=0.2, stratify=targets, random_state=42)
    sizes = {"dim": 64, "depth": 4, "heads": 4, "mlp_dim": 128, "dim_head": 16, "channels": 1}
    student = DistillableViT(8, 4, 10, **sizes, patch_norm=False, mean=[0.3], std=[0.38])
    teacher = DigitsCNN(pretrained=True).eval().requires_grad_(False)
    tokens = ("cls_token", "distillation_token", "pos_embedding")
    decayed = [p for name, p in student.named_parameters() if p.ndim > 1 and name not in tokens]
    undecayed = [p for p in student.parameters() if all(p is not other for other in decayed)]
    groups = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.05, fused=True)
    images_train, targets_train = images[train], targets[train]
    images_val, targets_val = images[held_out], targets[held_out]
    steps = EPOCHS * math.ceil(len(train) / BATCH)
    warm_up = steps // 10

    def rate_of(step: int) -> float:
        done = (step - warm_up) / (steps - warm_up)
        return (step + 1) / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_of)
    soft_labels = torch.zeros(len(train), 10)
    metrics: dict[str, float] = {}
    with (folder / "metrics.csv").open("w", newline="") as file:
        for number in range(1, epochs + 1):
            weight = 1 - RATE * (number // INTERVAL) * INTERVAL / EPOCHS
            loss_sum = torch.zeros(())
            for index in torch.randperm(len(train)).split(BATCH):
                image, target = augment(images_train[index]), targets_train[index]
                with torch.no_grad():
                    taught = teacher(image).argmax(dim=1)
                logits, distill_logits, *_ = student(image)
                loss = F.cross_entropy(logits, target)
                if number > INTERVAL:
                    softened = F.log_softmax(logits / TEMPERATURE, dim=1)
                    divergence = F.kl_div(softened, soft_labels[index], reduction="batchmean")
                    loss = weight * loss + (1 - weight) * TEMPERATURE**2 * divergence
                if number % INTERVAL == 0:
                    soft_labels[index] = (logits.detach() / TEMPERATURE).softmax(dim=1)
                loss = 0.5 * loss + 0.5 * F.cross_entropy(distill_logits, taught)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.detach()
            metrics = validate(student, teacher, images_val, targets_val) | {"loss": float(loss_sum)}
            writer = csv.DictWriter(file, metrics)
            writer.writerow(metrics)
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "soft_labels": soft_labels}
            torch.save(state, folder / "last.ckpt")
    print(f"accuracy {metrics['accuracy']:.4f}")


def run(command: list[str]) -> Timing:
    """Return the time of a process; its thread's time is that of all its threads."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = child_seconds(), time.perf_counter()
        place = f"--trainer.logger.save_dir={folder}" if JOB[1] in command else f"--bare={folder}"
        ended = subprocess.run([*command, place], cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(f"error: {' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        processor = child_seconds() - before
        return Timing(time.perf_counter() - start, processor, processor)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--versions", nargs=2, metavar="PYTHON", help="compare the jobs of two environments")
        parser.add_argument("--epochs", type=int, default=EPOCHS, help=argparse.SUPPRESS)
        parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)  # the folder of the loop's own process

    options = options_of(__doc__, add, extra=True)
    if options.bare is not None:
        bare_loop(options.epochs, options.seed, options.bare)
        return
    report = Report(__file__, options, "run", place=("bare", "versions"))
    epochs = scaled(options.epochs, options, 2)
    here, script = sys.executable, str(Path(__file__).resolve())

    def job(python: str, count: int) -> list[str]:
        return [python, *JOB, f"--seed_everything={options.seed}", f"--trainer.max_epochs={count}", *options.flags]

    def bare(count: int) -> list[str]:
        return [here, script, f"--epochs={count}", f"--seed={options.seed}"]

    if options.versions:
        before, after = (str(Path(python).absolute()) for python in options.versions)
        pair = {"before": partial(job, before), "after": partial(job, after)}
    else:
        pair = {"bare loop": bare, "the job": partial(job, here)}
    works: dict[str, Any] = {}
    for name, command in pair.items():
        works |= {f"{name}, {count}": partial(run, command(count)) for count in (1, epochs)}
    timings = interleave(works, scaled(options.rounds, options, 2), options.seed, warm_up=0)
    first, second = pair
    for part in ("whole", "one epoch", "epochs alone"):
        columns: dict[str, Any] = {}
        for unit, place in (("wall", 0), ("processor", 1)):
            seconds = {}
            for name in pair:
                short, long = ([timing[place] for timing in timings[f"{name}, {count}"]] for count in (1, epochs))
                alone = [whole - one for whole, one in zip(long, short, strict=True)]
                seconds[name] = {"whole": long, "one epoch": short, "epochs alone": alone}[part]
                columns[f"{name}, {unit} (s)"] = median_of(seconds[name]).median
            columns[f"ratio, {unit}"] = ratio(seconds[second], seconds[first])
        report.row(f"{second} beside {first}", f"{part} ({epochs} epochs)" if part == "whole" else part, **columns)
    report.finish()


if __name__ == "__main__":
    main()
