"""scikit-learn's handwritten digits."""

from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from typing_extensions import override

from lit_distill.datamodules.augmentation import Augmentation
from lit_distill.datamodules.base import ImageDataModule
from lit_distill.datamodules.mixing import Mixing


class DigitsDataModule(ImageDataModule):
    """1,797 real 8x8 images of handwritten digits that come inside scikit-learn: nothing to download.

    80/20 stratified split, always with seed 42; the held-out fifth serves validation, test and prediction, so compare
    runs by their last epoch, not by their best. Images are float ``(1, 8, 8)``, value / 16. Training images are moved,
    turned, sheared and scaled a little.

    Args:
        batch_size: Samples a step and rank.
        eval_batch_size: Samples a step in validation, test and prediction; by default ``batch_size``.
        num_workers: Processes that read; the data is tiny, so 0 is fastest.
        seed: Seed of order and augmentation, not of the split; by default the one given to ``seed_everything``.
        train_transform: Replaces the augmentation; any module on ``(1, 8, 8)`` images, such as
            ``torch.nn.Identity`` for none.
        repeats: Views of an image in an epoch, see `ImageDataModule`.
        mixing: Mixup and cutmix, or None.

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
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, repeats, mixing)
        self.train_transform = train_transform or v2.RandomAffine(
            degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5, interpolation=InterpolationMode.BILINEAR
        )

    @property
    @override
    def preprocessing(self) -> dict[str, Any]:
        """How an image becomes the student's input: in grey, of 8 x 8 pixels; the digits are white on black."""
        return Augmentation(crop_pct=1.0).preprocessing(8, channels=1)

    def setup(self, stage: str | None = None) -> None:
        """Read the digits and split them."""
        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
        targets = torch.tensor(digits.target, dtype=torch.int64)
        rows = range(len(targets))
        train, held_out = train_test_split(rows, test_size=0.2, stratify=targets, random_state=42)
        self.train_set = _Digits(images[train], targets[train], self.train_transform)
        self.val_set = self.test_set = self.predict_set = _Digits(images[held_out], targets[held_out])


class _Digits(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, targets: Tensor, transform: Any = None) -> None:
        self.images, self.targets, self.transform = images, targets.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.targets[index]
