"""scikit-learn's handwritten digits."""

import math

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from typing_extensions import override

from lit_distill.checks import check_fraction, check_inside
from lit_distill.datamodules.base import ImageDataModule
from lit_distill.datamodules.batched.digits import move_digits
from lit_distill.datamodules.mixing import Mixing
from lit_distill.datamodules.placement import Storage
from lit_distill.datamodules.split import with_wrong_labels
from lit_distill.datamodules.stacked import StackedImages
from lit_distill.preprocessing import Preprocessing


class DigitsDataModule(ImageDataModule):
    """1,797 real 8x8 images of handwritten digits that come inside scikit-learn: nothing to download.

    80/20 stratified split, always with seed 42; the held-out fifth serves validation, test and prediction, so compare
    runs by their last epoch, not by their best, or validate on a part of the training images, ``val_fraction``. Images
    are float ``(1, 8, 8)``, value / 16. Training images are moved, turned, sheared and scaled a little.

    Args:
        batch_size: Samples a step and rank.
        eval_batch_size: Samples a step in validation, test and prediction; by default ``batch_size``.
        num_workers: Processes that read; the data is tiny, so 0 is fastest.
        seed: Seed of order and augmentation, not of the split; by default the one given to ``seed_everything``.
        train_transform: Replaces the augmentation; any module on ``(1, 8, 8)`` images, such as
            ``torch.nn.Identity`` for none.
        repeats: Views of an image in an epoch, see `ImageDataModule`.
        mixing: Mixup and cutmix, or None.
        storage: As of `ImageDataModule`; ``"files"`` is ``"host"`` here.
        views: As of `ImageDataModule`.
        val_fraction: Share of the training images of each class to validate on instead, 0..1 exclusive. The held-out
            fifth then serves the test alone.
        split_seed: Seed of that share, and of the choice of wrong labels.
        wrong_labels: Share of the training images of each class, 0..1, that are given another class's label, always
            the same ones for one ``split_seed``: to study labels that lie.

    Raises:
        ValueError: If ``val_fraction`` is not in (0, 1), ``wrong_labels`` is not in [0, 1], or the other arguments are
            out of range.

    Source:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Example:
        >>> data = DigitsDataModule()
        >>> data.setup()
        >>> len(data.train_set), len(data.val_set), data.num_classes
        (1437, 360, 10)
    """

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = 512,
        num_workers: int = 0,
        seed: int | None = None,
        train_transform: nn.Module | None = None,
        repeats: int = 1,
        mixing: Mixing | None = None,
        storage: Storage = "auto",
        views: int | None = None,
        val_fraction: float | None = None,
        split_seed: int = 42,
        wrong_labels: float = 0.0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, repeats, mixing, storage, views)
        check_inside(0, 1, val_fraction=val_fraction)
        check_fraction(wrong_labels=wrong_labels)
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.wrong_labels = wrong_labels
        self.train_transform = train_transform or _Affine()

    @property
    @override
    def preprocessing(self) -> dict[str, object]:
        """A photo of a white digit on black, shrunk to 8 px."""
        return Preprocessing(resize=8, crop=(8, 8), channels=1).as_dict()

    def setup(self, stage: str | None = None) -> None:
        """Read the digits and split them."""
        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
        targets = torch.tensor(digits.target, dtype=torch.int64)
        everything = range(len(targets))
        train, held_out = train_test_split(everything, test_size=0.2, stratify=targets, random_state=42)
        self.val_set = self.test_set = self.predict_set = _Digits(images[held_out], targets[held_out])
        if self.val_fraction is not None:
            train, val = train_test_split(
                train, test_size=self.val_fraction, stratify=targets[train], random_state=self.split_seed
            )
            self.val_set = _Digits(images[val], targets[val])
        rows_of_digit = {str(digit): [str(row) for row in train if targets[row] == digit] for digit in range(10)}
        labels = targets.clone()
        for digit, rows in with_wrong_labels(rows_of_digit, self.wrong_labels, self.split_seed).items():
            labels[[int(row) for row in rows]] = int(digit)
        self.train_set = _Digits(images[train], labels[train], self.train_transform)


class _Affine(nn.Module):
    """The same draws and pixels as ``v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 5, "bilinear")``, for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        centres = torch.linspace(-3.5, 3.5, 8)
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        self.pixels = torch.stack([x, y, torch.ones(8, 8)], dim=-1).view(64, 3)
        self.inside = torch.ones(1, 8, 8)
        # Degrees, pixels right and down, size, degrees.
        self.least = torch.tensor([-10, -0.8, -0.8, 0.9, -5])
        self.spread = torch.tensor([10, 0.8, 0.8, 1.1, 5]) - self.least

    def forward(self, image: Tensor) -> Tensor:
        """Move, turn, shear and scale an image ``(1, 8, 8)``; what comes from outside it is 0."""
        angle, x, y, scale, shear = torch.addcmul(self.least, torch.rand(5), self.spread).tolist()
        turn, lean, x, y = math.radians(angle), math.tan(math.radians(shear)), round(x), round(y)
        # From a pixel of the result to its place in the image, in halves of a side: the inverse of all four.
        cos, sin = math.cos(turn) / (4 * scale), math.sin(turn) / (4 * scale)
        a, b, c, d = cos - lean * sin, sin + lean * cos, -sin, cos
        grid = self.pixels @ torch.tensor([[a, c], [b, d], [-a * x - b * y, -c * x - d * y]])
        sampled = F.grid_sample(
            torch.stack([image, self.inside], dim=1), grid.view(1, 8, 8, 2), padding_mode="zeros", align_corners=False
        )
        return sampled[:, 0] * sampled[:, 1]


class _Digits(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, targets: Tensor, transform: nn.Module | None = None) -> None:
        self.images, self.targets, self.transform = images, targets.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def stacked(self) -> StackedImages | str:
        """Return the images as one tensor, as `Stackable` says."""
        if self.transform is None or type(self.transform) is nn.Identity:
            return StackedImages(self.images, torch.tensor(self.targets))
        if type(self.transform) is _Affine:
            return StackedImages(self.images, torch.tensor(self.targets), move_digits)
        return f"the transform {type(self.transform).__name__} has no form for batches"
