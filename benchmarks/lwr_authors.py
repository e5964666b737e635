"""Learning with Retrospection by its authors' recipe: a CIFAR ResNet-18 on CIFAR-10, with and without it.

    python benchmarks/lwr_authors.py FOLDER --trainer.precision=bf16-mixed --jobs 1

200 epochs of SGD with momentum .9 at rate .1, a tenth of it after epochs 100 and 150, weight decay 5e-4, batches of
128, padded crops and flips; the memory is recorded every 5 epochs, at temperatures 5 and 10. The network is He et al.'s
ResNet-18 as it is usual for 32 pixels: a convolution of 3 pixels at its start, and no pooling there. FOLDER has the
images, ``train/<class>/*`` and ``test/<class>/*``. 50 training images a class are held out to validate on; the figures
are those of the test images after the last epoch.

It is a study of ``lit-distill study``, so a run that is cut off goes on when the same command is started again. Flags
that are not listed go to every run. Runs and tables lie in logs/lwr_authors.

Source: Deng and Zhang, "Learning with Retrospection", AAAI 2021, arXiv 2012.13098, and their code. They trained on
CIFAR-100; these images are CIFAR-10.
"""

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

from measure import ROOT, Report, folder_of_runs, options_of, part_of, resumable, scaled
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
import yaml

from lit_distill.models.pixels import PixelInput

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class CifarResNet18(nn.Module):
    """ResNet-18 for images of 32 pixels: ``uint8`` images ``(B, 3, 32, 32)`` to logits ``(B, K)``."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pixels = PixelInput(MEAN, STD, 32)
        self.net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes)
        self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()  # type: ignore[assignment]
        nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.net(self.pixels(image))
        return logits


def study_of(epochs: int, seeds: list[int], held_out: int) -> dict[str, Any]:
    """Return the study: the same recipe with cross-entropy, and with LWR at two temperatures."""
    model = {
        "student": {"class_path": "lwr_authors.CifarResNet18"},
        "optimizer": {
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        },
        "scheduler": {
            "class_path": "torch.optim.lr_scheduler.MultiStepLR",
            "init_args": {"milestones": [epochs // 2, 3 * epochs // 4], "gamma": 0.1},
        },
    }
    data = {
        "root": "photos",
        "image_size": 32,
        "val_per_class": held_out,
        "augmentation": {"crop": "padded", "hflip": 0.5, "crop_pct": 1.0},
        "batch_size": 128,
        "eval_batch_size": 500,
    }
    interval = min(5, max(1, epochs // 4))
    return {
        "epochs": epochs,
        "seeds": seeds,
        "base": {
            "model": model,
            "data": {"class_path": "lit_distill.datamodules.ImageFolderDataModule", "init_args": data},
        },
        "rows": {
            "cross-entropy": {},
            **{
                f"LWR, temperature {temperature}": {
                    "loss": "LWR",
                    "retrospection.interval": interval,
                    "retrospection.temperature": temperature,
                }
                for temperature in (5, 10)
            },
        },
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--epochs", type=int, default=200)
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--jobs", type=int, default=1, help="runs at once, by default 1")

    args = options_of(__doc__, add, extra=True)
    images = test_images = None
    held_out = 50
    if args.length < 1:
        args.epochs, args.seeds = scaled(args.epochs, args, 2), args.seeds[:1]
        images, test_images, held_out = scaled(50_000, args, 40), scaled(10_000, args, 20), 1
    report = Report(__file__, args, "loss", place=("folder", "jobs", "seeds"))
    work = folder_of_runs("lwr_authors", args, ("seeds", "jobs"))
    data = part_of(args.folder, {"train": images, "test": test_images}, work / "images")
    work.mkdir(parents=True, exist_ok=True)
    plan = work / "study.yaml"
    plan.write_text(yaml.safe_dump(study_of(args.epochs, args.seeds, held_out), sort_keys=False))
    device = "gpu" if args.device == "cuda" else "cpu"
    flags = [f"--jobs={args.jobs}", f"--output={work / 'table'}", "--trust=lwr_authors", f"--data.root={data}"]
    flags += [f"--trainer.accelerator={device}", "--trainer.devices=1", *args.flags]
    command = [sys.executable, "-P", "-m", "lit_distill.cli", "study", str(plan), *flags]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")})
    if ended.returncode:
        raise ValueError(f"the study ended with exit code {ended.returncode}; its runs are in {work / 'table'}")
    for name, row in rows_of(work / "table" / "table.json").items():
        report.row("last epoch", name, **row)
    report.note(f"{args.epochs} epochs, seeds {args.seeds}: mean over the seeds.")
    report.finish()


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return each row of the study's table, by the last epoch."""
    return {name: _columns(row["last"]) for name, row in json.loads(path.read_text())["rows"].items()}


def _columns(last: dict[str, Any]) -> dict[str, Any]:
    accuracy, against = last["accuracy"], last["accuracy"].get("against_baseline") or {}
    difference, p = against.get("difference"), against.get("p_holm")
    return {
        "accuracy (%)": 100 * accuracy["mean"],
        "deviation": None if accuracy["deviation"] is None else 100 * accuracy["deviation"],
        "points above cross-entropy": None if difference is None else 100 * difference,
        "p (Holm)": p,
        "NLL (nats)": last["nll"]["mean"],
        "ECE": last["ece"]["mean"],
    }


if __name__ == "__main__":
    resumable(main)
