"""What all image data modules share: keyed loaders around plain data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.mixing import Mixing
from lit_distill.datamodules.sampler import KeyedSampler
from lit_distill.identity import match_rows
from lit_distill.keys import global_seed
from lit_distill.models.described import check_arguments
from lit_distill.models.trust import described_by
from lit_distill.models.weights import load_safely
from lit_distill.photos import Preprocessing
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
        num_workers: Processes that read; 0 reads in the training process.
        seed: Seed of order and augmentation; by default the one given to ``seed_everything``, else 0.
        repeats: R >= 1, repeated augmentation: an epoch keeps its length, but has R views each of 1/R of the rows.
        mixing: Mixup and cutmix of the training batches, on the device, or None. A module's own
            ``on_after_batch_transfer`` is then not called, as Lightning says.

    Raises:
        ValueError: If a batch size or ``repeats`` is < 1, or ``num_workers`` is < 0.
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
        repeats: int = 1,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("repeats", repeats, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeats = repeats
        self.mixing = mixing
        if mixing is not None:
            # Not a method of the class: Lightning would never call the module's, though there be nothing to mix.
            self.on_after_batch_transfer = self._mix  # type: ignore[method-assign]
        self._state: dict[str, Any] = {}  # of the checkpoint that the trainer named below resumes
        self._state_is_for: Any = None
        self._sampler: _TrainingSampler | None = None

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """How a photo becomes an input in evaluation, as `Preprocessing.as_dict` says it; None if nobody knows.

        By default read off the transform of ``val_set``, where that is of `Augmentation.evaluate`.
        """
        transform = getattr(getattr(self, "val_set", None), "transform", None)
        return transform.as_dict() if isinstance(transform, Preprocessing) else None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the keyed loader of the training set; its batches start at the epoch that training has reached."""
        seed = self._seed()
        leave_at_exit()
        data = IndexedDataset(self.train_set, seed, rows=getattr(self.train_set, "rows", None), with_view=True)
        if self.trainer is not None and self.trainer.world_size > 1:
            # The times of files may differ between machines, and all ranks are to agree on what has changed.
            data.identities = self.trainer.strategy.broadcast(data.identities)
        if self.trainer is None:
            sampler = KeyedSampler(data, seed, repeats=self.repeats)
        else:
            self._sampler = sampler = _TrainingSampler(self.trainer, data, seed, repeats=self.repeats)
            sampler.begin(self._state if self._state_is_for is self.trainer else {}, self.batch_size)
        return self._loader(data, self.batch_size, kind=_ResumableLoader, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the validation set, in order."""
        return self._loader(IndexedDataset(self.val_set), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test set, in order."""
        return self._loader(IndexedDataset(self.test_set), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the images to predict, in order."""
        data = IndexedDataset(self.predict_set)
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
        # Lightning's own sampler refuses a rank without a sample; this one repeats some, which their index tells.
        few: dict[str, Any] = (
            {"sampler": DistributedSampler(data, ranks, rank, shuffle=False)} if len(data) < ranks else {}
        )
        return self._loader(data, self.eval_batch_size, **few)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return how far training has come: the epoch, its batches trained, and which samples of which set they had."""
        if self.trainer is None or self._sampler is None:
            return {}
        epoch, batches = progress_of(self.trainer)
        return self._sampler.state(epoch, max(0, batches - batches_in_open_window(self.trainer)))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self._state_is_for = state_dict, self.trainer

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load as Lightning does, from a file that names nothing but what a file may name: see SECURITY.md."""
        checkpoint = load_safely(checkpoint_path, "checkpoint", mmap=True)
        named = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        check_arguments({key: value for key, value in named.items() if key != "_instantiator"}, cls, checkpoint_path)
        with described_by(checkpoint_path):
            return super().load_from_checkpoint(Path(checkpoint_path), *args, **{"weights_only": True, **kwargs})

    def _mix(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch = type(self).on_after_batch_transfer(self, batch, dataloader_idx)
        trainer: Any = self.trainer
        if self.mixing is None or not trainer.training:
            return batch
        # Lightning counts a batch as ready after it has been transferred.
        step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        key = self._seed(), trainer.current_epoch, step, trainer.global_rank
        image, target = self.mixing(batch.image, batch.target, self.num_classes, key)
        # The precision plugin has seen the batch before there were floats in it.
        return batch._replace(image=trainer.precision_plugin.convert_input(image), target=target)

    def _seed(self) -> int:
        return global_seed() if self.seed is None else self.seed

    def _loader(
        self, data: IndexedDataset, batch_size: int, kind: type[DataLoader[Any]] = DataLoader, **kwargs: Any
    ) -> DataLoader[Batch]:
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # Its own generator: starting workers must not draw from the one that dropout uses.
            "generator": torch.Generator(),
        }
        return kind(data, **{**options, **kwargs})


def progress_of(trainer: Any) -> tuple[int, int]:
    """Return the epoch that a trainer is in, counted from 0, and how many of its batches it has trained."""
    epoch, batch = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress
    if epoch.ready <= epoch.processed:
        # Lightning also ends an epoch that max_steps or a callback cuts off.
        cut_off = epoch.processed > 0 and batch.current.processed > 0 and not batch.is_last_batch
        return (epoch.processed - 1, batch.current.processed) if cut_off else (epoch.processed, 0)
    return (epoch.processed + 1, 0) if batch.is_last_batch else (epoch.processed, batch.current.processed)


def batches_in_open_window(trainer: Any) -> int:
    """Return the batches since the optimizer's last step, whose gradients are lost when the process ends."""
    batch = trainer.fit_loop.epoch_loop.batch_progress
    return 0 if batch.is_last_batch else batch.current.processed % trainer.accumulate_grad_batches


class _TrainingSampler(KeyedSampler):
    """Begins where training stopped, be it with another batch size, number of processes or set of photos."""

    def __init__(self, trainer: Any, data: IndexedDataset, seed: int, repeats: int) -> None:
        self.trainer = trainer
        super().__init__(data, seed, repeats=repeats)
        self.identities = data.identities
        if self.identities is not None and data.rows is not None:
            self.identities = self.identities[data.rows]
        self._stopped = (0, 0)
        self._counted = 0  # batches that Lightning counts as done where this sampler begins
        self._more_batches = 0  # which it has yet to be told
        self._size = 1  # of a step over all ranks

    @override
    def ranks(self) -> tuple[int, int]:
        return self.trainer.world_size, self.trainer.global_rank

    def begin(self, state: dict[str, Any], batch_size: int) -> None:
        """Begin at the progress of a checkpoint's ``state``, or at the trainer's if that is further."""
        # A schedule that asks for the number of steps has the loader made, and read ahead, before Lightning restores
        # its own progress; the state is restored before. Samples are those *trained*: workers may have read more.
        self._size = size = batch_size * self.num_replicas
        then, now = (state.get("epoch", 0), state.get("batches", 0)), progress_of(self.trainer)
        if not self.trainer.fit_loop.restarting:  # such as after a trial of BatchSizeFinder: an epoch begins
            now = self.trainer.fit_loop.epoch_progress.current.processed, 0
        self._stopped = epoch, batches = max(then, now)
        if then < now:
            state = {}
        done = state.get("samples", batches * size)
        self.epoch = epoch
        trained = self._trained(state, done) if batches else None
        if trained is not None:
            rank_zero_info(
                f"the training set has changed: of the {done} samples trained in epoch {epoch}, {len(trained)} are "
                "still there and not trained again in it"
            )
            done = len(trained)
        self.resume(epoch, done, state.get("length"), trained)
        whole, left = (-(-samples // size) for samples in (self.total_size, len(self._left())))
        self._counted = whole - left if batches else 0
        self._more_batches = self._counted - batches
        if batches:
            rank_zero_info(
                f"epoch {epoch} goes on after {done} of {self.total_size} samples; "
                "means that Lightning keeps over it, such as train/loss, are of the others only"
            )
        if self._more_batches and trained is None:
            rank_zero_info(
                f"a step is of {size} samples now, and was of others before: the run will not repeat the other's bits"
            )

    def _trained(self, state: dict[str, Any], done: int) -> list[int] | None:
        """Return the keys of what is trained of this epoch, among the samples there are now; None for the first ones.

        A sample is known by its content where the data set tells it, else by its place.
        """
        then, now, trained = state.get("identities"), self.identities, state.get("trained")
        samples: dict[int, int] = {sample: sample for sample in range(len(self.dataset))}  # type: ignore[arg-type]
        if then is not None and now is not None and not torch.equal(then, now):
            samples = {row: sample for sample, row in enumerate(match_rows(then, now).tolist())}
        elif trained is None:
            return None
        keys = self.keys(state.get("length"))[:done] if trained is None else trained.tolist()
        places = (divmod(key, self.repeats) for key in keys)
        return [samples[sample] * self.repeats + view for sample, view in places if sample in samples]

    def state(self, epoch: int, batches: int) -> dict[str, Any]:
        """Return what `begin` wants to go on after that many batches of the epoch, as Lightning counts batches."""
        began, done, trained = self._resumed
        resumed = began == epoch and batches > 0
        samples = done + (batches - self._counted) * self._size if resumed else batches * self._size
        state: dict[str, Any] = {"epoch": epoch, "batches": batches, "samples": samples, "length": len(self.dataset)}  # type: ignore[arg-type]
        if resumed and trained is not None:
            state["trained"] = torch.tensor((trained + self._left())[:samples])
        return state if self.identities is None else {**state, "identities": self.identities}

    @override
    def set_epoch(self, epoch: int) -> None:
        """Note the epoch, which Lightning tells when it has restored its progress and before the first batch."""
        super().set_epoch(epoch)
        loop = self.trainer.fit_loop
        # After a checkpoint of an epoch's last step Lightning does not count the next epoch as begun, and would take it
        # for finished if it is resumed within.
        epochs = loop.epoch_progress
        if loop.restarted_mid_epoch and epochs.current.ready == epochs.current.processed:
            epochs.increment_ready()
            epochs.increment_started()
        # With batches of another size the epoch has another number of them. Lightning is to count as if those done had
        # been of today's size, or it would end the epoch too early.
        count = loop.epoch_loop.batch_progress.current
        if self._more_batches and self._stopped == (epochs.current.processed, count.processed):
            for name in ("ready", "started", "processed", "completed"):
                setattr(count, name, getattr(count, name) + self._more_batches)
            self._more_batches = 0


class _ResumableLoader(DataLoader[Any]):
    """Tells Lightning that its sampler goes on where training stopped; Lightning would warn otherwise."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the data module has told the sampler."""
