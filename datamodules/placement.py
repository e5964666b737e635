"""Where images are while the network trains."""

from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch

from lit_distill.datamodules.resuming import Progress
from lit_distill.datamodules.stacked import StackedImages, stack

Storage = Literal["auto", "device", "host", "files"]

_SHARE = 0.25  # of a device's free memory that images may take: the network needs the rest


class Placement:
    """Whether and where a data set's images become one tensor, and the messages about it.

    Args:
        storage: As of `ImageDataModule`.
        split: For messages.
        trainer: Its device is the images'; without one they stay on the host.
    """

    def __init__(self, storage: Storage, split: str, trainer: Trainer | None) -> None:
        self.storage = storage
        self.split = split
        self.trainer = trainer
        self.device = torch.device("cpu") if trainer is None else trainer.strategy.root_device

    def stack(self, dataset: Any) -> StackedImages | None:
        """Return a data set's images on the device, or None if they are read one by one; say so for training.

        Raises:
            ValueError: If training images are of several sizes, and ``storage`` is ``"device"``.
        """
        is_train = self.split == "train"
        try:
            stacked = stack(dataset)
        except ValueError as error:
            if is_train and self.storage == "device":
                raise ValueError(
                    f"storage='device' is for training images of one size, and {error}: set storage='host' or 'auto' "
                    "(crop='padded', 'simple' or 'none' resizes square images to one size first)"
                ) from error
            self._refuse(str(error))
            return None
        if isinstance(stacked, str):
            self._refuse(stacked)
            return None
        nbytes = stacked.images.nbytes
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if nbytes > _SHARE * free:
                self._refuse(f"they take {nbytes / 1e6:.3g} MB, and {self.device} has {free / 1e6:.3g} MB free")
                return None
        if is_train:
            count = len(stacked.images)
            rank_zero_info(f"{count} training images, {nbytes / 1e6:.3g} MB, are augmented on {self.device} as batches")
        images = stacked.images if self.device.type == "cpu" else stacked.images.to(self.device).contiguous()
        return stacked._replace(images=images, targets=stacked.targets.to(self.device))

    def agree(self, stacked: StackedImages | None, progress: Progress) -> StackedImages | None:
        """Return what all ranks do, and what the run did that is resumed.

        Raises:
            ValueError: If that is not possible, or ``storage`` is ``"device"`` and it did not.
        """
        if self.trainer is None:
            return stacked
        if not self.trainer.strategy.reduce_boolean_decision(stacked is not None, all=True):
            stacked = None
        is_batched = stacked is not None and stacked.transform is not None
        if not progress or is_batched == progress.get("batched", False):
            return stacked
        if is_batched and self.storage == "auto":
            rank_zero_info("training images are augmented one by one, as in the run that is resumed")
            return None
        earlier_way, storage = ("one by one", "host") if is_batched else ("as batches", "device")
        raise ValueError(
            f"the checkpoint's run augmented images {earlier_way}, and this one would not, with other random numbers: "
            f"resume with storage={storage!r} (--data.storage={storage})"
        )

    def _refuse(self, reason: str) -> None:
        if self.split == "train":
            (rank_zero_warn if self.storage == "device" else rank_zero_info)(
                f"training images are augmented one by one: {reason}"
            )
