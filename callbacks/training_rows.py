"""Which samples the rows of the training set are, and the messages when they have changed."""

from collections.abc import Mapping, Sized
from contextlib import suppress
from typing import cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_distill.identity import check_rows, grown, match_rows


class TrainingRows:
    """The rows of a training set.

    Args:
        count: Rows N.
        identities: What identifies each row, ``(N, 2)`` int64, as `lit_distill.identity.identities` returns it; None
            where nothing does but its number.
    """

    def __init__(self, count: int, identities: Tensor | None = None) -> None:
        self.count = count
        self.identities = identities if identities is not None and len(identities) == count else None

    @classmethod
    def of(cls, trainer: Trainer, count: int | None = None) -> "TrainingRows":
        """Return the rows of the trainer's training set, or ``count`` of them.

        Raises:
            ValueError: If their number cannot be told, or samples carry rows of another data set.
        """
        loader = trainer.train_dataloader
        dataset = loader.dataset if isinstance(loader, DataLoader) else None
        if count is None:
            count = _count(loader, dataset)
        check_rows(dataset, count)
        # The times of files may differ between machines, and all ranks are to agree on what has changed.
        return cls(count, trainer.strategy.broadcast(getattr(dataset, "identities", None)))

    def previous_rows(self, before: "TrainingRows") -> Tensor | None:
        """Return the row that each sample had ``before``, ``(N,)`` int64, -1 for a new sample, and log the change.

        None if no row has to move: the identities are equal, or unknown while the counts match.

        Raises:
            ValueError: If there are fewer rows than before, and no identities tell which are gone.
        """
        if self.identities is not None and before.identities is not None:
            if torch.equal(self.identities, before.identities):
                return None
            source = match_rows(before.identities, self.identities)
            kept = int((source >= 0).sum())
            gone, new = before.count - kept, self.count - kept
            rank_zero_info(
                f"the training set has changed since the checkpoint: {kept} of its {before.count} samples are still "
                f"there and keep their soft labels, those of {gone} are forgotten, and {new} samples are new "
                "(files are matched by content if they are read before training, else by name, size and time)"
            )
            return source
        if self.count == before.count:
            return None
        source = grown(before.count, self.count)
        rank_zero_info(
            f"the training set has grown from {before.count} to {self.count} samples since the checkpoint; nothing is "
            "remembered yet for the new ones"
        )
        return source

    def report(self, changed: int, epoch: int) -> None:
        """Say so if rows had more than one target until the end of ``epoch``."""
        if changed:
            rank_zero_warn(
                f"in epoch {epoch}, {changed} of {self.count} rows had another target than before, so they are other "
                "samples or were labelled anew: what was remembered for them is forgotten. A row must stay the same "
                "sample: split data once and not at each reload, with a fixed generator; wrap joined data as a whole, "
                "IndexedDataset(ConcatDataset([a, b])); reorder a batch's index with its images; and resume with the "
                "data set of the checkpoint"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the identities, if there are any, not copied."""
        return {} if self.identities is None else {"identities": self.identities}


def _count(loader: object, dataset: object) -> int:
    try:
        return int(getattr(dataset, "num_rows", None) or len(cast(Sized, dataset)))
    except TypeError:
        what = f"{type(dataset).__name__} data set" if dataset is not None else f"{type(loader).__name__} of loaders"
        raise ValueError(
            f"retrospection remembers by sample, but the training {what} has no length and so no sample indices: use a "
            "map-style data set wrapped in lit_distill.datamodules.IndexedDataset, or yield the sample's row in the "
            "batch and set num_samples of the callback"
        ) from None


def index_of(batch: object, where: str | int, num_rows: int) -> Tensor:
    """Return the tensor of the batch's rows, integers ``(B,)``, on the batch's device.

    Args:
        batch: A tuple, mapping or object.
        where: Its position, key or attribute.
        num_rows: Rows of the training set.

    Raises:
        ValueError: If there is no such tensor, or a value is not in 0..num_rows-1. Values on a GPU are not checked,
            because reading them would wait for it.

    Example:
        >>> index_of({"image": torch.zeros(2, 3), "row": torch.tensor([7, 1])}, "row", 8)
        tensor([7, 1])
    """
    index: object = None
    is_attribute = isinstance(where, str) and not isinstance(batch, Mapping)
    with suppress(AttributeError, LookupError, TypeError):
        index = getattr(batch, str(where)) if is_attribute else cast(Mapping[str | int, object], batch)[where]
    if not isinstance(index, Tensor):  # a plain tuple has a *method* called index
        raise ValueError(
            f"the training batch, a {type(batch).__name__}, has no tensor at index={where!r}: wrap the training set in "
            "lit_distill.datamodules.IndexedDataset(dataset), or say where the batch has the samples' rows, by "
            "position (index=2), key or attribute"
        )
    if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must be integers of shape (B,), got {index.dtype} of shape {tuple(index.shape)}")
    if index.device.type == "cpu" and len(index):
        values = index.numpy()  # the host's own: nothing to wait for
        if values.min() < 0 or values.max() >= num_rows:
            raise ValueError(
                f"index must be in 0..{num_rows - 1}, the training set's rows, got {values.min()}..{values.max()}"
            )
    return index
