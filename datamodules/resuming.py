"""Training goes on where it stopped, within an epoch too."""

from typing import Any, Protocol, TypedDict, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.sampler import KeyedSampler
from lit_distill.identity import match_rows


class _Count(Protocol):
    """Lightning's count of epochs or batches; its own types name a base class of it."""

    ready: int
    processed: int


def progress_of(trainer: Trainer) -> tuple[int, int]:
    """Return the epoch that a trainer is in, counted from 0, and how many of its batches it has trained."""
    epochs, batches = _epochs(trainer), _batches(trainer)
    batches_ended = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    if epochs.ready > epochs.processed:  # within an epoch, or in the hooks at its end
        return (epochs.processed + 1, 0) if batches_ended else (epochs.processed, batches.processed)
    if epochs.processed and batches.processed and not batches_ended:  # max_steps or a callback has cut the epoch off
        return epochs.processed - 1, batches.processed
    return epochs.processed, 0


def batches_in_open_window(trainer: Trainer) -> int:
    """Return the batches since the optimizer's last step, whose gradients are lost when the process ends."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return 0
    return _batches(trainer).processed % trainer.accumulate_grad_batches


def _epochs(trainer: Trainer) -> _Count:
    return cast("_Count", trainer.fit_loop.epoch_progress.current)


def _batches(trainer: Trainer) -> _Count:
    return cast("_Count", trainer.fit_loop.epoch_loop.batch_progress.current)


class Progress(TypedDict, total=False):
    """What a checkpoint holds of the training set.

    Attributes:
        epoch: The epoch, counted from 0.
        batches: Its batches trained, as Lightning counts them.
        samples: Its samples trained, over all ranks.
        length: Samples that the training set had.
        trained: Keys of the samples trained, where they are not the first ones of the epoch's order.
        identities: What identifies each sample, ``(length, 2)`` int64.
        batched: Whether images were augmented as a batch, which draws other random numbers than one by one.
    """

    epoch: int
    batches: int
    samples: int
    length: int
    trained: Tensor
    identities: Tensor
    batched: bool


class ResumingSampler(KeyedSampler):
    """Begins where training stopped, be it with another batch size, number of processes or set of photos."""

    def __init__(
        self, trainer: Trainer, data: IndexedDataset, seed: int, repeats: int, views: int | None = None
    ) -> None:
        self.trainer = trainer
        super().__init__(data, seed, repeats=repeats, views=views)
        self.identities = data.identities
        if self.identities is not None and data.rows is not None:
            self.identities = self.identities[data.rows]
        self._stopped = (0, 0)
        self._counted = 0  # batches that Lightning counts as done where this sampler begins
        self._uncounted = 0  # batches that Lightning's count lacks
        self._step_size = 1  # samples of a step over all ranks

    @override
    def ranks(self) -> tuple[int, int]:
        return self.trainer.world_size, self.trainer.global_rank

    def begin(self, state: Progress, batch_size: int) -> None:
        """Begin at the progress of a checkpoint's ``state``, or at the trainer's if that is further."""
        # A schedule that asks for the number of steps makes the loader, which reads ahead, before Lightning restores
        # its own progress; the state is restored before. It counts samples *trained*: workers may have read more.
        self._step_size = size = batch_size * self.num_replicas
        saved_progress, progress = (state.get("epoch", 0), state.get("batches", 0)), progress_of(self.trainer)
        if not self.trainer.fit_loop.restarting:  # such as after a trial of BatchSizeFinder: an epoch begins
            progress = _epochs(self.trainer).processed, 0
        self._stopped = epoch, batches = max(saved_progress, progress)
        self.epoch = epoch
        if not batches:
            self.resume(epoch, 0)
            return
        if saved_progress < progress:
            state = {}
        samples_done = state.get("samples", batches * size)
        trained = self._trained(state, samples_done)
        if trained is not None:
            rank_zero_info(
                f"the training set has changed: of the {samples_done} samples trained in epoch {epoch}, {len(trained)} "
                "are still there and not trained again in it"
            )
            samples_done = len(trained)
        self.resume(epoch, samples_done, state.get("length"), trained)
        whole, left = (-(-samples // size) for samples in (self.total_size, len(self.keys_left())))
        self._counted = whole - left
        self._uncounted = self._counted - batches
        rank_zero_info(
            f"epoch {epoch} goes on after {samples_done} of {self.total_size} samples; "
            "means over it, such as train/loss, are of the others only"
        )
        if self._uncounted and trained is None:
            rank_zero_info(
                f"a step has {size} samples now, and had another number before: "
                "this run will not repeat the bits of one that was not interrupted"
            )

    def _trained(self, state: Progress, done: int) -> list[int] | None:
        """Return the keys of the samples trained in this epoch that are still there; None for the first ``done``.

        Samples are matched by content where the data set tells it, else by place.
        """
        saved_identities, identities, trained = state.get("identities"), self.identities, state.get("trained")
        sample_of = {sample: sample for sample in range(len(self.samples))}
        if saved_identities is not None and identities is not None and not torch.equal(saved_identities, identities):
            sample_of = {row: sample for sample, row in enumerate(match_rows(saved_identities, identities).tolist())}
        elif trained is None:
            return None
        keys = self.keys(state.get("length"))[:done] if trained is None else trained.tolist()
        places = (divmod(key, self.repeats) for key in keys)
        return [sample_of[sample] * self.repeats + view for sample, view in places if sample in sample_of]

    def state(self) -> Progress:
        """Return what `begin` needs to go on from the optimizer's last step."""
        epoch, batches = progress_of(self.trainer)
        batches = max(0, batches - batches_in_open_window(self.trainer))
        resumed_epoch, done, trained = self._resumed
        is_resumed = resumed_epoch == epoch and batches > 0
        samples = batches * self._step_size
        if is_resumed:
            samples += done - self._counted * self._step_size
        state: Progress = {"epoch": epoch, "batches": batches, "samples": samples, "length": len(self.samples)}
        if is_resumed and trained is not None:
            state["trained"] = torch.tensor((trained + self.keys_left())[:samples])
        if self.identities is not None:
            state["identities"] = self.identities
        return state

    @override
    def set_epoch(self, epoch: int) -> None:
        """Note the epoch, which Lightning tells when it has restored its progress and before the first batch."""
        super().set_epoch(epoch)
        loop, epochs, batches = self.trainer.fit_loop, _epochs(self.trainer), _batches(self.trainer)
        # After a checkpoint of an epoch's last step Lightning does not count the next epoch as begun. If the run is
        # resumed within that epoch, Lightning would take it for finished.
        if loop.restarted_mid_epoch and epochs.ready == epochs.processed:
            loop.epoch_progress.increment_ready()
            loop.epoch_progress.increment_started()
        # With batches of another size the epoch has another number of them. Lightning must count as if those done had
        # today's size, or it would end the epoch too early.
        if self._stopped == (epochs.processed, batches.processed):
            for name in ("ready", "started", "processed", "completed"):
                setattr(batches, name, getattr(batches, name) + self._uncounted)
            self._uncounted = 0


class ResumableLoader(DataLoader[Any]):
    """Tells Lightning that its sampler goes on where training stopped; Lightning would warn otherwise."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module keeps the sampler's progress."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the data module restores the sampler."""
