"""What all image data modules share: keyed loaders around plain data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from lightning.pytorch import LightningDataModule, Trainer
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.checks import check_at_least
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.mixing import Mixing
from lit_distill.datamodules.resuming import Progress, ResumableLoader, ResumingSampler
from lit_distill.datamodules.sampler import KeyedSampler
from lit_distill.datamodules.scan import cores
from lit_distill.keys import global_seed
from lit_distill.models.described import check_arguments
from lit_distill.models.trust import described_by
from lit_distill.models.weights import load_safely
from lit_distill.preprocessing import Preprocessing
from lit_distill.processes import leave_at_exit


class ImageDataModule(LightningDataModule):
    """Base of the data modules: a subclass says what the data sets are, this class how they are read.

    A subclass sets ``num_classes`` (and ``class_names`` where it has them) at construction, and in ``setup`` the data
    sets ``train_set``, ``val_set``, ``test_set`` and ``predict_set``, each map-style and of ``(image, target)``.
    Batches are `Batch`. Order and augmentation of an epoch are a pure function of the seed, whatever the number of
    workers.

    Args:
        batch_size: Samples a step and rank.
        eval_batch_size: Samples a step in validation, test and prediction; by default ``batch_size``.
        num_workers: Processes that read; 0 reads in the training process. None lets the subclass choose, with
            `choose_workers`.
        seed: Seed of order and augmentation; by default the one given to ``seed_everything``, else 0.
        repeats: R >= 1, repeated augmentation: an epoch keeps its length, but has R views each of 1/R of the rows.
        mixing: Mixup and cutmix of the training batches, on the device, or None. Lightning then does not call the
            module's own ``on_after_batch_transfer``.

    Raises:
        ValueError: If a batch size or ``repeats`` is < 1, or ``num_workers`` is < 0.
    """

    num_classes: int
    class_names: Sequence[str] | None = None
    train_set: Dataset[Any]  # Any: a sample is whatever the subclass's data set returns
    val_set: Dataset[Any]
    test_set: Dataset[Any]
    predict_set: Dataset[Any]

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = 0,
        seed: int | None = None,
        repeats: int = 1,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, repeats=repeats)
        check_at_least(0, num_workers=num_workers)
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers or 0
        self.seed = seed
        self.repeats = repeats
        self.mixing = mixing
        if mixing is not None:
            # Set per instance: a class-level override would disable the module's own hook even without mixing.
            self.on_after_batch_transfer = self._mix  # type: ignore[method-assign]
        self._workers_are_chosen = num_workers is None
        self._progress: Progress = {}  # of a checkpoint that the trainer below resumes
        self._resuming_trainer: Trainer | None = None
        self._sampler: ResumingSampler | None = None

    @property
    def preprocessing(self) -> dict[str, object] | None:
        """How a photo becomes an input in evaluation, as `Preprocessing.as_dict` says it; None if nobody knows.

        Read off the transform of ``val_set``, if that transform comes from `Augmentation.evaluate`.
        """
        transform = getattr(getattr(self, "val_set", None), "transform", None)
        return transform.as_dict() if isinstance(transform, Preprocessing) else None

    def choose_workers(self, in_memory: bool) -> None:
        """Set ``num_workers``, unless it was given: a core each, at most 8 and shared by the ranks.

        Args:
            in_memory: Whether the images are decoded already: two workers or fewer are then not worth their start.
        """
        if self._workers_are_chosen:
            share = min(8, cores() // getattr(self.trainer, "num_devices", 1))
            self.num_workers = 0 if in_memory and share <= 2 else share

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the keyed loader of the training set; its batches start at the epoch that training has reached."""
        leave_at_exit()
        seed = self._seed()
        data = IndexedDataset(self.train_set, seed, rows=getattr(self.train_set, "rows", None), with_view=True)
        if self.trainer is None:
            return self._loader(data, self.batch_size, sampler=KeyedSampler(data, seed, repeats=self.repeats))
        # The times of files may differ between machines, but all ranks must agree on what has changed.
        data.identities = self.trainer.strategy.broadcast(data.identities)
        self._sampler = ResumingSampler(self.trainer, data, seed, self.repeats)
        self._sampler.begin(self._progress if self._resuming_trainer is self.trainer else {}, self.batch_size)
        return self._loader(data, self.batch_size, kind=ResumableLoader, sampler=self._sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the validation set, in order."""
        return self._loader(IndexedDataset(self.val_set), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test set, in order."""
        return self._loader(IndexedDataset(self.test_set), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the images to predict, in order."""
        data = IndexedDataset(self.predict_set)
        if self.trainer is None or len(data) >= self.trainer.world_size:
            return self._loader(data, self.eval_batch_size)
        # Lightning's own sampler refuses a rank without a sample. This one repeats some, with the same index.
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        return self._loader(data, self.eval_batch_size, sampler=DistributedSampler(data, ranks, rank, shuffle=False))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return how far training has come: the epoch, its batches trained, and which samples of which set they had."""
        return {} if self._sampler is None else dict(self._sampler.state())

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._progress, self._resuming_trainer = cast("Progress", state_dict), self.trainer

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load as Lightning does, from a file that names nothing but what a file may name: see SECURITY.md."""
        checkpoint = load_safely(checkpoint_path, "checkpoint", mmap=True)
        arguments = dict(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {})
        arguments.pop("_instantiator", None)
        check_arguments(arguments, cls, checkpoint_path)
        with described_by(checkpoint_path):
            return super().load_from_checkpoint(Path(checkpoint_path), *args, **{"weights_only": True, **kwargs})

    def _mix(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch = type(self).on_after_batch_transfer(self, batch, dataloader_idx)
        trainer = self.trainer
        if self.mixing is None or trainer is None or not trainer.training:
            return batch
        # Lightning counts a batch as ready once it has been transferred.
        step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        key = self._seed(), trainer.current_epoch, step, trainer.global_rank
        image, target = self.mixing(batch.image, batch.target, self.num_classes, key)
        # The precision plugin has seen the batch before there were floats in it. A mixed image is no view of its row.
        return batch._replace(image=trainer.precision_plugin.convert_input(image), target=target, view=None)

    def _seed(self) -> int:
        return global_seed() if self.seed is None else self.seed

    def _loader(
        self,
        data: IndexedDataset,
        batch_size: int,
        sampler: Sampler[Any] | None = None,
        kind: type[DataLoader[Batch]] = DataLoader,
        **kwargs: Any,
    ) -> DataLoader[Batch]:
        defaults: dict[str, Any] = {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # Its own generator: starting workers must not draw from the one that dropout uses.
            "generator": torch.Generator(),
        }
        return kind(data, batch_size=batch_size, sampler=sampler, **{**defaults, **kwargs})
