"""What all image data modules share: keyed loaders around plain data sets."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
import torch
from torch.utils.data import DataLoader, Dataset

from lit_distill.datamodules.batch import Batch
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.sampler import KeyedSampler
from lit_distill.keys import global_seed


class ImageDataModule(LightningDataModule):
    """Base of the data modules: a subclass says what the data sets are, this class how they are read.

    A subclass sets ``num_classes`` (and ``class_names`` where it has them) at construction, and in ``setup`` the data
    sets ``train_set``, ``val_set``, ``test_set`` and ``predict_set``, each map-style and of ``(image, target)``.
    Batches are `Batch`. Order and augmentation of an epoch are a pure function of the seed, whatever the number of
    workers.

    Args:
        batch_size: Samples a step and rank.
        eval_batch_size: Samples a step in validation, test and prediction; by default ``batch_size``.
        num_workers: Processes that read; 0 reads in the training process.
        seed: Seed of order and augmentation; by default the one given to ``seed_everything``, else 0.

    Raises:
        ValueError: If a batch size is < 1 or ``num_workers`` is < 0.
    """

    num_classes: int
    class_names: Sequence[str] | None = None
    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]
    predict_set: Dataset[Any]

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the keyed loader of the training set; its batches start at the epoch that training has reached."""
        seed = global_seed() if self.seed is None else self.seed
        data = IndexedDataset(self.train_set, seed)
        trainer: Any = self.trainer  # whose progress Lightning's types do not know
        if trainer is None:
            sampler = KeyedSampler(data, seed)
        else:
            sampler = KeyedSampler(data, seed, num_replicas=trainer.world_size, rank=trainer.global_rank)
            # After a resume the loader is iterated, and its workers read ahead, before Lightning tells it the epoch;
            # and within an epoch Lightning would begin again with its first batches.
            epoch, batch = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress
            begun = epoch.ready > epoch.processed
            if begun and not batch.is_last_batch:
                sampler.resume(epoch.processed, batch.current.processed * self.batch_size)
            else:
                sampler.resume(epoch.processed + begun, 0)
        return self._loader(data, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the validation set, in order."""
        return self._loader(IndexedDataset(self.val_set), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test set, in order."""
        return self._loader(IndexedDataset(self.test_set), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the images to predict, in order."""
        return self._loader(IndexedDataset(self.predict_set), self.eval_batch_size)

    def _loader(self, data: IndexedDataset, batch_size: int, **kwargs: Any) -> DataLoader[Batch]:
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # Its own generator: starting workers must not draw from the one that dropout uses.
            "generator": torch.Generator(),
        }
        return DataLoader(data, **{**options, **kwargs})
