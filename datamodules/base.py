"""What all image data modules share: keyed loaders around plain data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from lightning.pytorch import LightningDataModule, Trainer
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler
from typing_extensions import override

from lit_distill.checks import check_at_least, check_choice
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.mixing import Mixing
from lit_distill.datamodules.partners import MixableBatch, MixableDataset
from lit_distill.datamodules.placement import Placement, Storage
from lit_distill.datamodules.resident import ResidentDataset, ResidentLoader
from lit_distill.datamodules.resuming import Progress, ResumableLoader, ResumingSampler
from lit_distill.datamodules.sampler import KeyedSampler
from lit_distill.datamodules.scan import cores
from lit_distill.datamodules.stacked import StackedImages
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
        mixing: Mixup and cutmix of the training batches, on the device, or None. Unless the images lie on the device,
            Lightning then does not call the module's own ``on_after_batch_transfer``.
        storage: Where images are while the network trains. ``"device"``: as one tensor on the device that trains, where
            whole batches are augmented; on CPUs in memory that all ranks of a machine share. For images of one size,
            and augmentation that has a form for batches. ``"host"``: in the host's memory, decoded, and augmented one
            by one. ``"files"``: nowhere; they are read in each epoch. ``"auto"``: the first of these that is possible.
            All are the same recipe, but ``"device"`` draws other random numbers, so that a run that is resumed must
            keep to it.
        views: V >= 1: epoch e has the views of epoch ``e mod V`` again, as `TeacherCaching` needs; see `KeyedSampler`.
            None has others in each epoch.

    Raises:
        ValueError: If a batch size, ``repeats`` or ``views`` is < 1, ``num_workers`` is < 0, or ``storage`` is unknown;
            when the images are read, if they have several sizes and ``storage`` is ``"device"``.
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
        storage: Storage = "auto",
        views: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, repeats=repeats, views=views)
        check_at_least(0, num_workers=num_workers)
        check_choice(Storage, storage=storage)
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers or 0
        self.seed = seed
        self.repeats = repeats
        self.mixing = mixing
        self.storage = storage
        self.views = views
        self._workers_are_chosen = num_workers is None
        self._progress: Progress = {}  # of a checkpoint that the trainer below resumes
        self._resuming_trainer: Trainer | None = None
        self._sampler: ResumingSampler | None = None
        self._stacked: dict[int, tuple[Dataset[Any], StackedImages | None]] = {}
        self._is_batched = False  # whether training images are augmented as a batch

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

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the keyed loader of the training set; its batches start at the epoch that training has reached."""
        leave_at_exit()
        data, seed = self._training_set(), self._seed()
        if self.trainer is None:
            return self._loader(data, self.batch_size, KeyedSampler(data, seed, repeats=self.repeats, views=self.views))
        # The times of files may differ between machines, but all ranks must agree on what has changed.
        data.identities = self.trainer.strategy.broadcast(data.identities)
        self._sampler = ResumingSampler(self.trainer, data, seed, self.repeats, self.views)
        self._sampler.begin(self._resumed_progress(), self.batch_size)
        return self._loader(data, self.batch_size, self._sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the validation set, in order."""
        return self._loader(self._indexed(self.val_set, "val"), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the test set, in order."""
        return self._loader(self._indexed(self.test_set, "test"), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the images to predict, in order."""
        data = self._indexed(self.predict_set, "predict")
        if self.trainer is None or len(data) >= self.trainer.world_size:
            return self._loader(data, self.eval_batch_size)
        # Lightning's own sampler refuses a rank without a sample. This one repeats some, with the same index.
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        return self._loader(data, self.eval_batch_size, sampler=DistributedSampler(data, ranks, rank, shuffle=False))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return how far training has come: the epoch, its batches trained, and which samples of which set they had."""
        return {} if self._sampler is None else {**self._sampler.state(), "batched": self._is_batched}

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

    def _resumed_progress(self) -> Progress:
        """Return what the checkpoint that is resumed says of the training set."""
        return self._progress if self._resuming_trainer is self.trainer else {}

    def _training_set(self) -> IndexedDataset:
        """Return the training set as its storage has it; mixing is for training by a trainer."""
        seed, rows = self._seed(), getattr(self.train_set, "rows", None)
        mixing = None if self.trainer is None else self.mixing
        resident = self._resident(self.train_set, "train", rows, mixing)
        self._is_batched = resident is not None and resident.transform is not None
        if resident is not None:
            return resident
        if mixing is None:
            return IndexedDataset(self.train_set, seed, rows=rows, with_view=True)
        # Set per instance: a class-level override would disable the module's own hook even without mixing.
        self.on_after_batch_transfer = self._mix  # type: ignore[method-assign]
        return MixableDataset(self.train_set, seed, rows, mixing, self.repeats)

    def _indexed(self, dataset: Dataset[Any], split: str) -> IndexedDataset:
        """Return a set for evaluation as its storage has it."""
        return self._resident(dataset, split) or IndexedDataset(dataset)

    def _resident(
        self, dataset: Dataset[Any], split: str, rows: Tensor | None = None, mixing: Mixing | None = None
    ) -> ResidentDataset | None:
        """Return the data set as one tensor on the device that trains, if it can be and is to be there."""
        place, stacked = Placement(self.storage, split, self.trainer), None
        if self.storage in ("auto", "device"):
            if id(dataset) not in self._stacked:
                self._stacked[id(dataset)] = dataset, place.stack(dataset)
            stacked = self._stacked[id(dataset)][1]
        if split == "train":
            stacked = place.agree(stacked, self._resumed_progress())
        if stacked is None:
            return None
        return ResidentDataset(dataset, stacked, self._seed(), rows, mixing, self.num_classes, self.repeats)

    def _mix(self, batch: Any, dataloader_idx: int) -> Any:
        batch = type(self).on_after_batch_transfer(self, batch, dataloader_idx)
        if not isinstance(batch, MixableBatch) or self.trainer is None:
            return batch
        mixed = batch.mixed(self.num_classes)
        # The precision plugin has seen the batch before there were floats in it.
        return mixed._replace(image=self.trainer.precision_plugin.convert_input(mixed.image))

    def _seed(self) -> int:
        return global_seed() if self.seed is None else self.seed

    def _loader(
        self, data: IndexedDataset, batch_size: int, sampler: Sampler[Any] | None = None, **kwargs: Any
    ) -> DataLoader[Any]:
        # Its own generator: starting workers must not draw from the one that dropout uses.
        arguments: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "generator": torch.Generator()}
        if isinstance(data, ResidentDataset):
            return ResidentLoader(data, **arguments)
        arguments |= {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": _as_it_is if isinstance(data, MixableDataset) else None,
        }
        return ResumableLoader(data, **{**arguments, **kwargs})


def _as_it_is(batch: MixableBatch) -> MixableBatch:
    return batch
