"""What a second rank on one machine takes: the images are there once.

    python benchmarks/ranks.py FOLDER

FOLDER has ``train/<class>/*`` and ``test/<class>/*``, such as CIFAR-10 as files. The images are read from there, and
from files of torchvision's CIFAR-10 that are made of them. Two ranks, joined by gloo and forked from this process,
train a linear layer for an epoch. What each of them takes is looked at every 50 ms: its anonymous memory beyond what it
had at its start, and the memory for images that it has made (from /proc, so Linux only). The rows have the most.

A tenth of the images, for ten epochs, shows what a batch takes for a moment. ``images in the second rank`` is 0 if what
that rank takes does not grow with the images, and 1 if it has them all once more. The first rank makes them, and has
them at least once. Every run is the first one on its folder.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import suppress
import os
from pathlib import Path
import pickle
import tempfile
import threading
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from measure import Report, classes_of, options_of, part_of, quiet, scaled
import numpy as np
from PIL import Image
import torch
from torch import Tensor, nn
from torchvision import datasets

from lit_distill.batch import Batch
from lit_distill.datamodules import CIFAR10DataModule, ImageFolderDataModule
from lit_distill.datamodules.base import ImageDataModule

SHARE = 0.1  # of the images, to see what does not grow with them
SECONDS = 0.05  # between two looks


class Files(datasets.CIFAR10):
    """CIFAR-10 of files with other checksums."""

    train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]  # noqa: RUF012  # torchvision's type
    test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]  # noqa: RUF012
    meta = {**datasets.CIFAR10.meta, "md5": None}  # noqa: RUF012


class FilesDataModule(CIFAR10DataModule):
    source = Files


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.criterion = nn.Linear(3, 10), nn.CrossEntropyLoss()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.net(batch.image.float().mean((2, 3))), batch.target)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Peaks:
    """The most memory that each process started by this one takes beyond its first, in MB of 10^6 bytes."""

    def __enter__(self) -> "Peaks":
        self.looks, self.has_ended = dict[int, list[float]](), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.has_ended.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.has_ended.wait(SECONDS):
            files: set[int] = set()  # of processes that were started earlier
            for process in sorted(children()):
                self.looks.setdefault(process, []).append(taken_by(process, files))

    def megabytes(self) -> list[float]:
        """Return the most of each process, in the order in which they were started."""
        return [max(looks) - looks[0] for _, looks in sorted(self.looks.items())]


def children() -> Iterator[int]:
    """Yield the numbers of the processes that this one's threads have started."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended
            yield from map(int, (task / "children").read_text().split())


def taken_by(process: int, others: set[int]) -> float:
    """Return the anonymous memory of a process, and the memory for images that it alone has; 0 once it has ended.

    Args:
        process: Its number.
        others: Memory for images that others have, by number of its inode; that of this process is added.
    """
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        anonymous = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
        files = [file for file in Path(f"/proc/{process}/fd").iterdir() if "memfd:lit_distill" in os.readlink(file)]
        nbytes = {file.stat().st_ino: file.stat().st_blocks * 512 for file in files}
        shared = sum(size for inode, size in nbytes.items() if inode not in others)
        others.update(nbytes)
        return (anonymous + shared) / 1e6
    return 0.0


def write_cifar(folder: Path, root: Path) -> Path:
    """Write the images of a folder in torchvision's format and return ``root``."""
    into = root / Files.base_folder
    into.mkdir(parents=True)
    for split, files in (("train", Files.train_list), ("test", Files.test_list)):
        classes = classes_of(folder, split)
        images = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
        for number, (name, _) in enumerate(files):
            part = images[number :: len(files)]
            pixels = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).reshape(-1) for path, _ in part]
            content = {"data": np.stack(pixels), "labels": [label for _, label in part]}
            (into / name).write_bytes(pickle.dumps(content))
    (into / Files.meta["filename"]).write_bytes(pickle.dumps({Files.meta["key"]: list(classes)}))
    return root


def peaks_of(data: ImageDataModule, epochs: int) -> list[float]:
    """Return the most that each of two ranks takes in a training."""
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with quiet(), Peaks() as peaks:
        trainer.fit(Module(), datamodule=data)
    return peaks.megabytes()


def measure(make: Callable[[Path], ImageDataModule], whole: Path, part: Path, megabytes: float) -> dict[str, float]:
    """Return the row of one kind of data."""
    row = {"images (MB)": megabytes}
    of_whole, of_part = peaks_of(make(whole), 1), peaks_of(make(part), round(1 / SHARE))
    for rank, taken, taken_with_few in zip(("first", "second"), of_whole, of_part, strict=True):
        row[f"{rank} rank (MB)"] = taken
        row[f"images in the {rank} rank"] = (taken - taken_with_few) / (megabytes * (1 - SHARE))
    return row


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--images", type=int, default=50_000, help="to train on, by default 50,000")

    options = options_of(__doc__, add)
    report = Report(__file__, options, "images from")
    in_folder = sum(map(len, classes_of(options.folder, "train").values()))
    images = min(in_folder, scaled(options.images, options, 1000))
    kwargs: dict[str, Any] = {"num_workers": 0, "seed": options.seed}
    with tempfile.TemporaryDirectory() as temporary:
        whole, part = (
            part_of(options.folder, {"train": count, "test": 100}, Path(temporary, f"{count}"))
            for count in (images, round(SHARE * images))
        )
        with Image.open(next(iter(classes_of(whole, "train").values()))[0]) as image:
            width, height = image.size
        megabytes = images * width * height * 3 / 1e6

        def of_folder(root: Path) -> ImageDataModule:
            return ImageFolderDataModule(root, val="test", image_size=width, **kwargs)

        def of_arrays(root: Path) -> ImageDataModule:
            return FilesDataModule(root, **kwargs)

        table = f"{images} images of {width} x {height}"
        report.once(table, "a folder", lambda: measure(of_folder, whole, part, megabytes))
        if (width, height) == (32, 32):
            arrays = [write_cifar(root, Path(temporary, f"{root.name} as arrays")) for root in (whole, part)]
            report.once(table, "torchvision's CIFAR-10", lambda: measure(of_arrays, *arrays, megabytes))
    report.finish()


if __name__ == "__main__":
    main()
