"""What a second rank on one machine adds to the memory: the images are there once.

    python benchmarks/ranks.py FOLDER

FOLDER has ``train/<class>/*`` and ``test/<class>/*``, such as CIFAR-10 as files. The images are read from there, and
from files of torchvision's CIFAR-10 that are made of them. One rank and two, joined by gloo and forked from this
process, train a linear layer for an epoch. All their memory is summed up every 50 ms from their start on (from /proc,
so Linux only), pages that they share counted once; the rows have the most that it was. What a rank takes anyway is
measured with a tenth of the images. ``images a second rank adds`` is 0 if it adds none of the others, and 1 if it has
them all once more. Every run is the first one on its folder.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
import pickle
import shutil
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

SHARE = 0.1  # of the images, to see what is not theirs
SECONDS = 0.05  # between two sums


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


class Peak:
    """The most memory that the processes started by this one have together while the block runs, in MB of 10^6 bytes.

    A page that several map counts in parts that add up to one.
    """

    def __enter__(self) -> "Peak":
        self.megabytes, self.has_ended = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.has_ended.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.has_ended.wait(SECONDS):
            self.megabytes = max(self.megabytes, sum(map(proportional, started_by("self"))))


def started_by(process: str) -> Iterator[str]:
    """Yield the numbers of the processes that one has started, and of those that they have."""
    with suppress(OSError):  # the process has ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield child
                yield from started_by(child)


def proportional(process: str) -> float:
    """Return the memory of a process in MB, its part of shared pages included; 0 once it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:"))
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


def peak_of(make: Callable[[Path], ImageDataModule], root: Path, ranks: int) -> float:
    """Return the peak of a training on so many ranks."""
    shutil.rmtree(root / ".lit_distill", ignore_errors=True)  # what an earlier run has stored
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with quiet(), Peak() as peak:
        trainer.fit(Module(), datamodule=make(root))
    return peak.megabytes


def measure(make: Callable[[Path], ImageDataModule], whole: Path, part: Path, megabytes: float) -> dict[str, float]:
    """Return the row of one kind of data."""
    one, two = (peak_of(make, whole, ranks) for ranks in (1, 2))
    few_one, few_two = (peak_of(make, part, ranks) for ranks in (1, 2))
    added, added_with_few = two - one, few_two - few_one
    return {
        "images (MB)": megabytes,
        "one rank (MB)": one,
        "two ranks (MB)": two,
        "a second rank adds (MB)": added,
        "with a tenth (MB)": added_with_few,
        "images a second rank adds": (added - added_with_few) / megabytes / (1 - SHARE),
    }


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
