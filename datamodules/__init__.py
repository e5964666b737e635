"""Data modules on keyed randomness: every sample is a pure function of (seed, view, index)."""

from typing import TYPE_CHECKING

from lit_distill._lazy import attach
from lit_distill.batch import Batch, IndexedSample

if TYPE_CHECKING:
    from lit_distill.datamodules.augmentation import Augmentation, ImageTransform
    from lit_distill.datamodules.base import ImageDataModule
    from lit_distill.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
    from lit_distill.datamodules.digits import DigitsDataModule
    from lit_distill.datamodules.dogs_vs_cats import DogsVsCatsDataModule
    from lit_distill.datamodules.folder import ImageFolderDataModule
    from lit_distill.datamodules.from_files import FilesDataModule
    from lit_distill.datamodules.imagenet import ImageNetDataModule
    from lit_distill.datamodules.indexed import IndexedDataset, generators_of
    from lit_distill.datamodules.mixing import Mixing
    from lit_distill.datamodules.sampler import KeyedSampler
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "augmentation": ["Augmentation", "ImageTransform"],
            "base": ["ImageDataModule"],
            "cifar": ["CIFAR10DataModule", "CIFAR100DataModule"],
            "digits": ["DigitsDataModule"],
            "dogs_vs_cats": ["DogsVsCatsDataModule"],
            "folder": ["ImageFolderDataModule"],
            "from_files": ["FilesDataModule"],
            "imagenet": ["ImageNetDataModule"],
            "indexed": ["IndexedDataset", "generators_of"],
            "mixing": ["Mixing"],
            "sampler": ["KeyedSampler"],
        },
    )

__all__ = [  # noqa: RUF022  # plainly sorted: CIFAR100 before CIFAR10
    "Augmentation",
    "Batch",
    "CIFAR100DataModule",
    "CIFAR10DataModule",
    "DigitsDataModule",
    "DogsVsCatsDataModule",
    "FilesDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImageTransform",
    "IndexedDataset",
    "IndexedSample",
    "KeyedSampler",
    "Mixing",
    "generators_of",
]
