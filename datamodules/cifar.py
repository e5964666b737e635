"""CIFAR-10 and CIFAR-100."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from typing_extensions import override

from lit_distill.checks import check_at_least, check_inside
from lit_distill.datamodules.augmentation import Augmentation
from lit_distill.datamodules.base import ImageDataModule
from lit_distill.datamodules.batched.forms import batch_form
from lit_distill.datamodules.stacked import StackedImages


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10: 60,000 photos of 32 x 32 pixels in ten classes, 50,000 of them to train on.

    torchvision's data set, downloaded unless it is in ``root``. Validation and testing are on the 10,000 test images,
    as in the papers, which report the accuracy of the last epoch and select nothing by it: compare the last epoch, not
    the best. To choose settings, hold a part of the training images out with ``val_fraction``; validation is then on
    that part, and the test images are for the command ``test``. Prediction is on the test images.

    Args:
        root: Folder of the data, or for it.
        image_size: Side of the square images in pixels; they are enlarged to another than 32.
        val_fraction: Share of the training images to validate on, 0..1 exclusive; a stratified split, always with seed
            42. None validates on the test images.
        augmentation: What becomes of the training images; by default a random crop with 4 pixels of padding, and a
            flip.
        num_workers: Processes that augment; by default one a core, at most 8 and shared by the ranks, and none where
            there are two cores or fewer.
        **kwargs: All other arguments of `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range; when it is first read, if the data is not there and cannot be
            downloaded.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Example:
        >>> data = CIFAR10DataModule("data", val_fraction=0.1)
        >>> data.num_classes, data.augmentation.crop, data.augmentation.crop_pct
        (10, 'padded', 1.0)
    """

    num_classes = 10
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 32,
        val_fraction: float | None = None,
        augmentation: Augmentation | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **kwargs)
        check_at_least(1, image_size=image_size)
        check_inside(0, 1, val_fraction=val_fraction)
        self.root = Path(root)
        self.image_size = image_size
        self.val_fraction = val_fraction
        self.augmentation = augmentation or Augmentation(crop="padded", crop_pct=1.0)
        self._parts: dict[str, _Part] = {}

    @property
    def mean(self) -> list[float]:
        """Mean of the training images' pixels in 0..1, a value a channel; the first call reads the data."""
        return self._statistics()[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of the training images' pixels, a value a channel."""
        return self._statistics()[1]

    @property
    @override
    def preprocessing(self) -> dict[str, object]:
        """How a photo becomes the student's input in evaluation; see `Preprocessing`."""
        return self.augmentation.evaluate(self.image_size).as_dict()

    @override
    def prepare_data(self) -> None:
        """Download the data unless it is there; Lightning has one process of a machine do it."""
        self._open(train=False)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read the images and split them."""
        parts = self._read()
        train, evaluate = (make(self.image_size) for make in (self.augmentation.train, self.augmentation.evaluate))
        self.train_set = _Images(parts["train"], train)
        self.val_set = _Images(parts.get("val", parts["test"]), evaluate)
        self.test_set = self.predict_set = _Images(parts["test"], evaluate)
        self.choose_workers(in_memory=True)

    def _read(self) -> dict[str, "_Part"]:
        if self._parts:
            return self._parts
        train, test = self._open(train=True), self._open(train=False)
        self.class_names = tuple(train.classes)
        self._parts = {"train": _Part.of(train), "test": _Part.of(test)}
        if self.val_fraction is not None:
            images, targets = self._parts["train"]
            rows = train_test_split(range(len(targets)), test_size=self.val_fraction, stratify=targets, random_state=42)
            for name, chosen in zip(("train", "val"), map(sorted, rows), strict=True):
                self._parts[name] = _Part(images[chosen], targets[chosen])
        return self._parts

    def _open(self, train: bool) -> datasets.CIFAR10:
        """Return torchvision's data set."""
        source = self.source
        try:
            return source(self.root, train, download=True)  # unless it is there, and undamaged
        except Exception as error:  # of the network, the disk, the archive
            raise ValueError(
                f"{source.__name__} is not in {self.root}, and downloading it failed ({' '.join(str(error).split())}): "
                f"put {source.filename} from {source.url} into {self.root.absolute()}"
            ) from error

    def _statistics(self) -> tuple[list[float], list[float]]:
        channels = self._read()["train"].images.numpy().reshape(-1, 3).T
        levels = np.arange(256) / 255
        shares = np.stack([np.bincount(channel, minlength=256) for channel in channels]) / channels.shape[1]
        mean = shares @ levels
        std = np.sqrt(shares @ levels**2 - mean**2)
        return mean.round(4).tolist(), std.round(4).tolist()


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: 60,000 photos of 32 x 32 pixels in a hundred classes, 50,000 of them to train on.

    Arguments, and all else, are those of `CIFAR10DataModule`.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    num_classes = 100
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR100


class _Part(NamedTuple):
    """Images ``(N, H, W, 3)``, uint8, and their classes ``(N,)``."""

    images: Tensor
    targets: Tensor

    @classmethod
    def of(cls, data: datasets.CIFAR10) -> "_Part":
        return cls(torch.from_numpy(np.ascontiguousarray(data.data)), torch.tensor(data.targets))


class _Images(Dataset[tuple[Tensor, int]]):
    def __init__(self, part: _Part, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.targets = part  # tensors: workers share them
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def stacked(self) -> StackedImages | str:
        """Return the images as one tensor, as `Stackable` says."""
        transform = batch_form(self.transform)
        if isinstance(transform, str):
            return transform
        return StackedImages(self.images.permute(0, 3, 1, 2), self.targets, transform)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index].numpy())), int(self.targets[index])
