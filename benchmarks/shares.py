"""Where the time of a training run goes: data, teacher, student, backward, optimizer, callbacks, validation, files.

    python benchmarks/shares.py                                # the digits job
    python benchmarks/shares.py --versions BEFORE/bin/python AFTER/bin/python
    python benchmarks/shares.py --folder FOLDER                # a small ViT on CIFAR-10, in few batches
    python benchmarks/shares.py --config cifar10 --batches 20 --epochs 2 --model.teacher.model=FILE

Processor time of the training thread, by Lightning's own marks, in a process of its own; the first epoch is left out.
Other options go to the job. With ``--versions``, each argument is the Python of a virtual environment with one version.

FOLDER has CIFAR-10 as image files, ``train/<class>/*`` and ``test/<class>/*``. A ViT of 9 blocks of width 192, with
patches of 4 px, learns from a ResNet-18 of random weights. Two epochs of 20 batches of 128 images take about two
minutes on two cores. An epoch's fixed costs weigh more in 20 batches than in the 391 of a whole epoch.
"""

import argparse
from collections import defaultdict
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
import timm
import torch
from torch import nn

# The marks of Lightning that make up a part. A mark within another one counts for the inner one alone.
PARTS = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "transfer_batch_to_device": "data",
    "after_batch_transfer": "data",
    "teacher": "teacher",
    "student": "student forward",
    "training_step": "losses",
    "backward": "backward",
    "optimizer_step": "optimizer",
    "val_next": "validation",
    "validation": "validation",
    "Validation": "validation",
    "Checkpoint": "checkpoints",
    "[Callback]": "callbacks",
}


BATCHES = 20  # of an epoch of `recipe_for`, by default


class ThreadProfiler(Profiler):
    """Sums the thread's time by mark, less that of the marks within."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[tuple[str, float, float]] = []  # mark, its start, seconds of the marks within

    def start(self, action_name: str) -> None:
        self.open.append((action_name, time.thread_time(), 0.0))

    def stop(self, action_name: str) -> None:
        if action_name not in (mark for mark, *_ in self.open):
            return
        mark, start, within = self.open.pop()
        seconds = time.thread_time() - start
        self.seconds[mark] += seconds - within
        if self.open:
            outer, began, before = self.open[-1]
            self.open[-1] = outer, began, before + seconds

    def summary(self) -> str:
        return ""


class Watch(Callback):
    """Marks the two networks, begins anew after the first epoch, and writes the parts when training ends."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.start = path, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("teacher", "student"):
            network = getattr(pl_module, name)
            if isinstance(network, nn.Module):
                network.register_forward_pre_hook(lambda *_, name=name: trainer.profiler.start(name))
                network.register_forward_hook(lambda *_, name=name: trainer.profiler.stop(name))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            profiler: Any = trainer.profiler
            profiler.seconds.clear()
            self.start = time.thread_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        profiler: Any = trainer.profiler
        parts: dict[str, float] = defaultdict(float)
        for mark, seconds in profiler.seconds.items():
            parts[next((part for key, part in PARTS.items() if key in mark), "Lightning's loop")] += seconds
        parts["Lightning's loop"] += time.thread_time() - self.start - sum(parts.values())
        epochs = trainer.current_epoch - 1
        Path(self.path).write_text(json.dumps({part: seconds / epochs for part, seconds in parts.items()}))


def recipe_for(folder: Path, place: Path) -> Path:
    """Write the recipe for CIFAR-10 as image files, and the teacher's weights, into ``place``."""
    weights = place / "resnet18.pt"
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), weights)
    colours = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
    student = {"image_size": 32, "patch_size": 4, "num_classes": 10, "dim": 192, "depth": 9, "heads": 3}
    student |= {"mlp_dim": 384, "dropout": 0.1, "patch_norm": False, **colours}
    teacher = {"model": "resnet18", "weights": str(weights), "num_classes": 10, "channels_last": True}
    augmentation = {"crop": "padded", "policy": "trivial-wide", "crop_pct": 1.0}
    data = {"root": str(folder.absolute()), "val": "test", "image_size": 32, "batch_size": 128}
    recipe = {
        "seed_everything": 42,
        "model": {
            "student": {"class_path": "lit_distill.DistillableViT", "init_args": student},
            "teacher": {"class_path": "lit_distill.FrozenTeacher", "init_args": teacher},
            "criterion": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
            "distillation": {"class_path": "lit_distill.HardDistillation"},
        },
        "data": {
            "class_path": "lit_distill.datamodules.ImageFolderDataModule",
            "init_args": {**data, "num_workers": 0, "augmentation": augmentation},
        },
        "trainer": {
            "accelerator": "cpu",
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
        },
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # which is YAML too
    return path


def limits(batches: int | None) -> list[str]:
    """Return the flags for epochs of so many batches, at least 2; None for whole ones."""
    if batches is None:
        return []
    train, val = max(2, batches), max(2, batches // 5)  # the command line takes 1 for 1.0, which is all of them
    flags = [f"--trainer.limit_train_batches={train}", f"--trainer.limit_val_batches={val}"]
    return [*flags, "--trainer.num_sanity_val_steps=0"]


def parts_of(python: str, config: str, epochs: int, flags: list[str]) -> dict[str, float]:
    """Return the seconds an epoch of each part."""
    with tempfile.TemporaryDirectory() as folder:
        parts_file = Path(folder) / "parts.json"
        watch = f"--trainer.callbacks+={{class_path: shares.Watch, init_args: {{path: {parts_file}}}}}"
        job = [python, "-m", "lit_distill.cli", "fit", "--config", config, "--trainer.enable_progress_bar=false"]
        job += [f"--trainer.logger.save_dir={folder}", "--trainer.profiler=shares.ThreadProfiler", watch]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [*job, f"--trainer.max_epochs={epochs}", *flags],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            sys.exit(ended.stderr)
        parts: dict[str, float] = json.loads(parts_file.read_text())
    return parts


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--versions", nargs="+", default=[sys.executable], help="Pythons; by default this one")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config", default="digits", help="recipe, by default digits")
    what.add_argument("--folder", type=Path, help="CIFAR-10 as image files, for a small ViT")
    parser.add_argument("--epochs", type=int, help="the first is left out; by default 11, with --folder 2")
    parser.add_argument("--batches", type=int, help="of an epoch, >= 2; by default all, with --folder 20")


if __name__ == "__main__":
    from measure import Report, options_of, scaled

    options = options_of(__doc__, add_options, extra=True)
    if options.folder is not None:
        options.config, options.batches = "a small ViT on CIFAR-10", options.batches or BATCHES
    options.epochs = options.epochs or (11 if options.folder is None else 2)
    report = Report(__file__, options, title="part", place=("folder", "versions"))
    names = ["seconds an epoch"] if len(options.versions) == 1 else ["before", "after"]
    flags = [*limits(options.batches), *options.flags]
    with tempfile.TemporaryDirectory() as temporary:
        config = options.config if options.folder is None else str(recipe_for(options.folder, Path(temporary)))
        measured = {
            name: parts_of(str(Path(python).absolute()), config, scaled(options.epochs, options, 2), flags)
            for name, python in zip(names, options.versions, strict=True)
        }
    last = [*measured.values()][-1]
    for part in sorted(last, key=lambda part: -last[part]):
        columns: dict[str, Any] = {}
        for name, parts in measured.items():
            columns[f"{name}, ms" if len(measured) > 1 else "ms an epoch"] = 1e3 * parts.get(part, 0.0)
            columns[f"{name}, %" if len(measured) > 1 else "%"] = 100 * parts.get(part, 0.0) / sum(parts.values())
        report.row(f"shares of an epoch, {options.config}", part, **columns)
    report.finish()
