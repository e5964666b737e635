"""Reading a folder of images: this project's file path and decoded path beside torchvision's ``ImageFolder``.

    python benchmarks/loader.py FOLDER [--size 32] [--workers 2] [--rounds 9] [--images 20000]

All loaders stand in one process, keep their workers, and read the same images, an epoch each in turn, in an order drawn
anew each round; a ratio is the median over the rounds of one loader's images a second by the other's in that round. Two
transforms: the same object of this project's in all loaders; and torchvision's own, as its documentation has them, in
``ImageFolder``.
"""

import argparse
from pathlib import Path
import random
import statistics
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lit_distill.datamodules import Augmentation, ImageFolderDataModule


def own_loader(folder: str, images: int, size: int, workers: int, batch: int, **kwargs: Any) -> DataLoader[Any]:
    settings = {"image_size": size, "batch_size": batch, "num_workers": workers, "seed": 0, "val": "test"}
    augmentation = Augmentation(crop="padded" if size <= 64 else "resized")
    data = ImageFolderDataModule(folder, augmentation=augmentation, **{**settings, **kwargs})
    data.setup("fit")
    data.train_set.rows = rows_of(data.train_set, images)  # type: ignore[attr-defined]
    return data.train_dataloader()


def peer_loader(folder: str, transform: Any, images: int, workers: int, batch: int) -> DataLoader[Any]:
    data = ImageFolder(str(Path(folder) / "train"), transform)
    part = Subset(data, rows_of(data, images).tolist())
    return DataLoader(part, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def rows_of(data: Any, images: int) -> torch.Tensor:
    return torch.linspace(0, len(data) - 1, min(images, len(data))).long()


def epoch(loader: DataLoader[Any]) -> tuple[int, float]:
    """Return the images of an epoch, and its seconds."""
    begin = time.perf_counter()
    count = sum(len(batch[0]) for batch in loader)
    return count, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, common = args.size, (args.workers, args.batch)
    images = args.images
    crop = v2.RandomCrop(size, padding=size // 8) if size <= 64 else v2.RandomResizedCrop(size)
    pipeline = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    ours = Augmentation(crop="padded" if size <= 64 else "resized").train(size)
    loaders = {
        "ImageFolder, the same transform": peer_loader(args.folder, ours, images, *common),
        "ImageFolder, torchvision's transforms": peer_loader(args.folder, pipeline, images, *common),
        "files": own_loader(args.folder, images, size, *common, decode_memory=0),
        "decoded": own_loader(args.folder, images, size, *common),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    order, draw = list(loaders), random.Random(0)
    for round_ in range(args.rounds + 1):
        draw.shuffle(order)
        for name in order:
            count, took = epoch(loaders[name])
            if round_:  # the first fills the cache of files and starts the workers
                rates[name].append(count / took)
    print(f"{args.rounds} rounds of {images} images, {size} px, {args.workers} workers, batch {args.batch}")
    for name, rate in rates.items():
        print(f"{name:<40}{statistics.median(rate):>9.0f} images/s")
    for mine in ("files", "decoded"):
        for peer in list(loaders)[:2]:
            ratio = [a / b for a, b in zip(rates[mine], rates[peer], strict=True)]
            print(f"{mine} / {peer:<38}{statistics.median(ratio):>7.3f}  ({min(ratio):.3f} to {max(ratio):.3f})")


if __name__ == "__main__":
    main()
