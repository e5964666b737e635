"""CIFAR-10 and CIFAR-100."""

from collections.abc import Callable, Sequence
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
from lit_distill.datamodules.decoded import DecodedImages, PixelBuffer
from lit_distill.datamodules.machine import once_a_machine
from lit_distill.datamodules.scan import Scan, load_scans, store_scans
from lit_distill.datamodules.stacked import StackedImages
from lit_distill.fingerprint import digest_of

_ROWS_AT_ONCE = 4096  # images that are copied into shared memory at once


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10: 60,000 photos of 32 x 32 pixels in ten classes, 50,000 of them to train on.

    torchvision's data set, downloaded unless it is in ``root``. Validation and testing are on the 10,000 test images,
    as in the papers, which report the accuracy of the last epoch and select nothing by it: compare the last epoch, not
    the best. To choose settings, hold a part of the training images out with ``val_fraction``; validation is then on
    that part, and the test images are for the command ``test``. Prediction is on the test images.

    The images are in memory that all workers and all ranks of a machine share. Beside the data, ``root/.lit_distill``
    keeps ``mean`` and ``std`` for later runs.

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
        self._data: _Data | None = None

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
        self._data = once_a_machine(self.trainer, self._read)
        self.class_names, parts = self._data
        train, evaluate = (make(self.image_size) for make in (self.augmentation.train, self.augmentation.evaluate))
        self.train_set = _Images(parts["train"], train)
        self.test_set = self.predict_set = _Images(parts["test"], evaluate)
        self.val_set = _Images(parts["val"], evaluate) if "val" in parts else self.test_set
        self.choose_workers(in_memory=True)

    def _read(self) -> "_Data":
        """Return the images, split; the first call reads the files."""
        if self._data is None:
            test, train = self._open(train=False), self._open(train=True)
            rows: dict[str, Sequence[int]] = {"train": range(len(train))}
            if self.val_fraction is not None:
                split = train_test_split(
                    rows["train"], test_size=self.val_fraction, stratify=train.targets, random_state=42
                )
                rows = dict(zip(("train", "val"), map(sorted, split), strict=True))
            parts = {name: _Part.of(train, numbers) for name, numbers in rows.items()}
            self._data = _Data(tuple(train.classes), {**parts, "test": _Part.of(test, range(len(test)))})
        return self._data

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
        """Return mean and standard deviation of the training pixels; an earlier run's if it had the same images."""
        file = self.root / ".lit_distill" / f"{self.source.__name__.lower()}.json"
        digest = digest_of([self.source.train_list, self.val_fraction])  # names and checksums
        scan = load_scans(file).get("train", Scan.unread())
        if scan.digest != digest:
            images = self._read().parts["train"].images
            pixels, _ = images.stacked()
            counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(dim=1)])
            shares, levels = (counts / counts.sum(dim=1, keepdim=True)).double(), torch.arange(256).double() / 255
            mean = shares @ levels
            std = (shares @ levels**2 - mean**2).sqrt()
            mean, std = mean.round(decimals=4), std.round(decimals=4)
            scan = Scan(digest, len(images), images.nbytes, mean.tolist(), std.tolist(), damaged={}, contents=[])
            store_scans(file, {"train": scan})
        return scan.mean, scan.std


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: 60,000 photos of 32 x 32 pixels in a hundred classes, 50,000 of them to train on.

    Arguments, and all else, are those of `CIFAR10DataModule`.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    num_classes = 100
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR100


class _Part(NamedTuple):
    """Images and their classes, int64 ``(N,)``."""

    images: DecodedImages
    targets: Tensor

    @classmethod
    def of(cls, data: datasets.CIFAR10, rows: Sequence[int]) -> "_Part":
        """Return the images of some rows."""
        numbers, buffer = np.asarray(rows), PixelBuffer()
        for start in range(0, len(numbers), _ROWS_AT_ONCE):
            buffer.write(data.data[numbers[start : start + _ROWS_AT_ONCE]].reshape(-1))
        sizes = torch.tensor([data.data.shape[1:3]]).repeat(len(numbers), 1)
        return cls(buffer.as_images(sizes, "RGB"), torch.tensor(data.targets)[numbers])


class _Data(NamedTuple):
    """Names of the classes, and the images of ``"train"``, ``"test"`` and, where they are held out, ``"val"``."""

    class_names: tuple[str, ...]
    parts: dict[str, _Part]


class _Images(Dataset[tuple[Tensor, int]]):
    """``(transform(image), target)``.

    Attributes:
        images: ``(N, H, W, 3)`` uint8, which is not a copy.
        targets: ``(N,)`` int64.
    """

    # Not among the attributes, whose content identifies the data set: the place of shared memory changes.
    __slots__ = ("part",)

    def __init__(self, part: _Part, transform: Callable[[Image.Image], Tensor]) -> None:
        self.part = part
        self.images, self.targets = part.images.stacked()[0].permute(0, 2, 3, 1), part.targets
        self.transform = transform

    def __reduce__(self) -> tuple[type["_Images"], tuple[_Part, Callable[[Image.Image], Tensor]]]:
        return _Images, (self.part, self.transform)  # a copy in another process maps the same memory

    def __len__(self) -> int:
        return len(self.targets)

    def stacked(self) -> StackedImages | str:
        """Return the images as one tensor, as `Stackable` says."""
        transform = batch_form(self.transform)
        if isinstance(transform, str):
            return transform
        return StackedImages(self.images.permute(0, 3, 1, 2), self.targets, transform)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.part.images[index]), int(self.targets[index])
