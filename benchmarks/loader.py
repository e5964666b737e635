"""Reading an epoch of images: this project's storages beside torchvision's ``ImageFolder``.

    python benchmarks/loader.py FOLDER
    python benchmarks/loader.py FOLDER --policies none trivial-wide rand-m9-mstd0.5-inc1 --rounds 9
    python benchmarks/loader.py FOLDER --sizes

FOLDER has ``train/<class>/*`` and ``test/<class>/*``, such as CIFAR-10 as files. The images are cropped from 4 pixels
of padding (from 64 px on: random resized crops) and flipped, and a policy follows where one is asked for. Resident
images are augmented by torch's threads: give ``--threads`` as many as ``--workers``.

All loaders stand in one process, keep their workers, and read the same images, an epoch each in turn, in an order drawn
anew each round; a ratio is the median over the rounds. An epoch ends with all its images on the device. Beside
``ImageFolder`` with torchvision's own transforms, as its documentation has them, and with this project's, these read:
``files``, each epoch anew; ``decoded``, from memory, one by one; ``device``, resident on the training device and
augmented in batches. A storage that this version lacks is left out with a line.

``--sizes`` measures whether an epoch's time for a sample stays: for 1,000, 10,000 and 50,000 images, and for batches of
32 to 512, each storage for itself. Short epochs are repeated until a timing has 10,000 images. For these counts in
little time give few ``--rounds``: ``--length`` makes the counts smaller too, as the rows then say. The thread's time is
that of the processor in the thread that asks for batches, the steadier one on a busy machine.
"""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
import tempfile
from typing import Any

from lightning.pytorch import Trainer
from measure import (
    Clock,
    Report,
    Timing,
    classes_of,
    interleave,
    median_of,
    options_of,
    part_of,
    quiet,
    ratio,
    scaled,
    thread,
    wall,
)
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lit_distill.batch import Batch
from lit_distill.datamodules import Augmentation, ImageFolderDataModule

COUNTS, BATCHES = (1000, 10_000, 50_000), (32, 64, 128, 256, 512)
IMAGES_TIMED = 10_000
POLICIES: dict[str, Callable[[], Any] | None] = {  # torchvision's own of the same name
    "none": None,
    "trivial-wide": v2.TrivialAugmentWide,
    "rand-m9-mstd0.5-inc1": v2.RandAugment,
}
SAME = "ImageFolder, our transform"
PEER = "ImageFolder, torchvision's transforms"


class Epochs:
    """An epoch of a data module at each call, up to the device, as a Trainer reads it.

    Args:
        options: Of the script.
        policy: Of the augmentation, or "none".
        storage: ``"files"``, ``"decoded"``, ``"host"`` or ``"device"``.
        folder: Of the images.
        images: That count.
        batch: Samples a batch.
    """

    def __init__(
        self, options: argparse.Namespace, policy: str, storage: str, folder: Path, images: int, batch: int
    ) -> None:
        self.device, self.count = torch.device(options.device), images
        kwargs: dict[str, Any] = {"image_size": options.size, "batch_size": batch, "seed": options.seed, "val": "test"}
        kwargs["num_workers"] = 0 if storage == "device" else options.workers
        kwargs["augmentation"] = Augmentation(
            crop="padded" if options.size <= 64 else "resized", policy=None if policy == "none" else policy
        )
        kwargs["storage"] = "host" if storage == "decoded" else storage
        self.data = ImageFolderDataModule(folder, **kwargs)
        # Resident images lie where the trainer trains.
        self.data.trainer = Trainer(
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        self.data.setup("fit")
        self.loader = self.data.train_dataloader()

    def __call__(self) -> Timing:
        """Return the time of an epoch."""
        clock, images = Clock(self.device.type), 0
        for batch in self.loader:
            images += len(self.on_device(batch).image)
        timing = clock.read()
        if images != self.count:
            raise RuntimeError(f"an epoch had {images} images, expected {self.count}")
        return timing

    def on_device(self, batch: Any) -> Batch:
        """Return the batch as the module gets it, by the hooks of a data module in Lightning's order."""
        batch = self.data.on_before_batch_transfer(batch, 0)
        batch = self.data.transfer_batch_to_device(batch, self.device, 0)
        return Batch.of(self.data.on_after_batch_transfer(batch, 0))


class RepeatedEpochs:
    """The time for a sample at each call, of as many epochs as have `IMAGES_TIMED` images or more."""

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.repeats = -(-IMAGES_TIMED // epochs.count)

    def __call__(self) -> Timing:
        clock = Clock(self.epochs.device.type)
        for _ in range(self.repeats):
            self.epochs()
        return clock.read() / (self.repeats * self.epochs.count)


class FolderEpochs:
    """An epoch of torchvision's ``ImageFolder`` at each call."""

    def __init__(self, options: argparse.Namespace, transform: Any, folder: Path, batch: int) -> None:
        self.device = options.device
        self.loader: DataLoader[Any] = DataLoader(
            ImageFolder(str(folder / "train"), transform),
            batch,
            shuffle=True,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            pin_memory=options.device == "cuda",
        )

    def __call__(self) -> Timing:
        clock = Clock(self.device)
        for image, target in self.loader:
            image.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
        return clock.read()


def own_epochs(report: Report, *arguments: Any) -> Epochs | None:
    """Return an `Epochs`, or None with a note if the images cannot be stored so."""
    try:
        with quiet():
            return Epochs(*arguments)
    except ValueError as error:
        report.note(f"storage {arguments[2]!r} is left out: {str(error).splitlines()[0]}")
        return None


def torchvision_transforms(size: int, policy: str) -> v2.Compose:
    crop = v2.RandomCrop(size, padding=size // 8) if size <= 64 else v2.RandomResizedCrop(size)
    make = POLICIES.get(policy)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *([make()] if make else []), v2.PILToTensor()])


def compare(report: Report, options: argparse.Namespace, policy: str, folder: Path, images: int) -> None:
    """Measure all loaders with one augmentation, and add their rows."""
    ours = Augmentation(
        crop="padded" if options.size <= 64 else "resized", policy=None if policy == "none" else policy
    ).train(options.size)
    works: dict[str, Any] = {SAME: FolderEpochs(options, ours, folder, options.batch)}
    if policy in POLICIES:
        transforms = torchvision_transforms(options.size, policy)
        works[PEER] = FolderEpochs(options, transforms, folder, options.batch)
    for storage in options.storages:
        epochs = own_epochs(report, options, policy, storage, folder, images, options.batch)
        if epochs is not None:
            works[storage] = epochs
    timings = interleave(works, scaled(options.rounds, options, 2), options.seed, options.device)
    for name, measured in timings.items():
        columns: dict[str, Any] = {"images/s": median_of(images / seconds for seconds in wall(measured))}
        for peer, heading in ((SAME, "beside ImageFolder, same transform"), (PEER, "beside torchvision's own")):
            if peer in timings:
                columns[heading] = ratio(wall(timings[peer]), wall(measured))
        if "decoded" in timings:
            columns["beside decoded"] = ratio(wall(timings["decoded"]), wall(measured))
        columns["this thread's us an image"] = 1e6 * median_of(thread(measured)).median / images
        report.row(f"policy {policy}", name, **columns)


def measure_sizes(report: Report, options: argparse.Namespace, folder_of: Callable[[int], tuple[Path, int]]) -> None:
    """Measure an epoch's time for a sample, by number of images and by batch."""
    by_count = [(count, options.batch) for count in COUNTS]
    by_batch = [(options.images, batch) for batch in BATCHES]
    for storage in options.storages:
        for sizes, reference_size in ((by_count, (COUNTS[1], options.batch)), (by_batch, (options.images, 128))):
            works: dict[str, RepeatedEpochs] = {}
            for count, batch in sizes:
                folder, images = folder_of(count)
                epochs = own_epochs(report, options, options.policies[0], storage, folder, images, batch)
                if epochs is not None:
                    works[f"{images} images, batch {batch}"] = RepeatedEpochs(epochs)
            timings = interleave(works, scaled(options.rounds, options, 2), options.seed, options.device)
            reference = f"{folder_of(reference_size[0])[1]} images, batch {reference_size[1]}"
            for name, measured in timings.items():
                columns: dict[str, Any] = {}
                for heading, seconds in (("us", wall), ("this thread's us", thread)):
                    columns[heading] = median_of(1e6 * second for second in seconds(measured))
                    columns[f"{heading} beside {reference}"] = ratio(seconds(measured), seconds(timings[reference]))
                report.row(f"an epoch's time for a sample, {storage}", name, **columns)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--size", type=int, default=32, help="pixels, by default 32")
        parser.add_argument("--workers", type=int, default=2, help="of what reads a sample at a time, by default 2")
        parser.add_argument("--batch", type=int, default=128)
        parser.add_argument("--rounds", type=int, default=9)
        parser.add_argument("--images", type=int, default=20_000)
        parser.add_argument("--policies", nargs="+", default=list(POLICIES), help="of the augmentation, or 'none'")
        parser.add_argument("--storages", nargs="+", default=["files", "decoded", "device"])
        parser.add_argument("--sizes", action="store_true", help="by number of images and batch, with the first policy")

    options = options_of(__doc__, add)
    report = Report(__file__, options, "loader")
    in_folder = sum(map(len, classes_of(options.folder, "train").values()))
    with tempfile.TemporaryDirectory() as temporary:

        @cache  # an image folder is made once
        def folder_of(count: int) -> tuple[Path, int]:
            """Return a folder of as many training images, at the length asked for, and how many they are."""
            images = min(in_folder, scaled(count, options, 200))
            return part_of(options.folder, {"train": images, "test": 100}, Path(temporary, str(images))), images

        if options.sizes:
            measure_sizes(report, options, folder_of)
        else:
            folder, images = folder_of(options.images)
            for policy in options.policies:
                compare(report, options, policy, folder, images)
    report.finish()


if __name__ == "__main__":
    main()
