"""Which sample another one is mixed with."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.mixing import Mixing, MixPlan, mix
from lit_distill.datamodules.sampler import STEP, epoch_order, order_seed

Key = tuple[int, int]  # (view, sample)


class Partners:
    """Partners for mixup and cutmix: two samples of the epoch's order, eight places apart, have each other.

    So the partner of a sample is a pure function of its view, whatever the batch size and the number of ranks, and yet
    the two are mostly read by the same rank, of 1, 2, 4 or 8, for the same batch. A sample whose partner would lie
    behind the end of the order has the one before it.

    Args:
        count: Samples of the training set.
        seed: Of the run.
        repeats: Views of a sample in an epoch.

    Example:
        >>> partners = Partners(16, seed=1)
        >>> view, sample = torch.zeros(16, dtype=torch.int64), torch.arange(16)
        >>> bool((partners.of(view, partners.of(view, sample)) == sample).all())
        True
    """

    def __init__(self, count: int, seed: int, repeats: int = 1) -> None:
        self.count = count
        self.seed = order_seed(seed)
        self.repeats = repeats

    def of(self, view: Tensor, sample: Tensor) -> Tensor:
        """Return the partner of each sample ``(B,)`` in its view ``(B,)``; both int64, on the host."""
        partner = torch.empty_like(sample)
        epoch = view // self.repeats
        for number in set(epoch.tolist()):
            is_of_epoch = epoch == number
            partner[is_of_epoch] = _partners(self.count, self.seed, number)[sample[is_of_epoch]]
        return partner

    def join(self, keys: Sequence[Key]) -> tuple[list[Key], Tensor, Tensor]:
        """Return the keys of samples and partners, each once, and the place of each sample and of its partner there."""
        view, sample = torch.tensor(keys).view(-1, 2).unbind(dim=1)
        partner_keys = [*zip(view.tolist(), self.of(view, sample).tolist(), strict=True)]
        place = {key: number for number, key in enumerate(dict.fromkeys([*keys, *partner_keys]))}
        return [*place], _places(place, keys), _places(place, partner_keys)


def _places(place: dict[Key, int], keys: Iterable[Key]) -> Tensor:
    return torch.tensor([place[key] for key in keys])


@lru_cache(maxsize=2)
def _partners(count: int, seed: int, epoch: int) -> Tensor:
    order = epoch_order(count, seed, epoch)
    place = torch.arange(count)
    partner_place = place ^ STEP
    partner = torch.empty_like(order)
    partner[order] = order[torch.where(partner_place < count, partner_place, place - 1)]
    return partner


class MixableBatch(NamedTuple):
    """A batch with all that mixing it needs: its samples and their partners, each once, U >= B of them.

    Attributes:
        image: ``(U, C, H, W)``.
        target: ``(U,)`` or ``(U, K)``.
        index: ``(U,)``.
        view: ``(U,)``.
        own: ``(B,)``, the place of each sample among the U.
        other: ``(B,)``, that of its partner.
        plan: How they are mixed.
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a batch
    view: Tensor
    own: Tensor
    other: Tensor
    plan: MixPlan

    def mixed(self, num_classes: int) -> Batch:
        """Return the batch, mixed."""
        own, other = self.own, self.other
        image, target = mix(
            self.image[own], self.target[own], self.image[other], self.target[other], self.plan, num_classes
        )
        return Batch(image, target, self.index[own], self.view[own])


class MixableDataset(IndexedDataset):
    """Reads a whole batch of samples and their partners: for a loader that collates nothing.

    Args:
        dataset: As of `IndexedDataset`.
        seed: As of `IndexedDataset`.
        rows: As of `IndexedDataset`.
        mixing: How images are mixed.
        repeats: Views of a sample in an epoch.
    """

    def __init__(self, dataset: Any, seed: int, rows: Tensor | None, mixing: Mixing, repeats: int = 1) -> None:
        super().__init__(dataset, seed, rows=rows, with_view=True)
        self.mixing = mixing
        self.partners = Partners(len(self), seed, repeats)

    @override
    def __getitems__(self, keys: Sequence[int | Key]) -> Any:
        """Return the `MixableBatch` of these keys."""
        unique_keys, own, other = self.partners.join(as_keys(keys))
        return mixable(default_collate(super().__getitems__(unique_keys)), own, other, self.mixing, self.seed)


def as_keys(keys: Sequence[int | Key]) -> list[Key]:
    """Return ``(view, sample)`` of each; a sample without a view, as of ``overfit_batches``, has view 0."""
    return [key if isinstance(key, tuple) else (0, key) for key in keys]


def mixable(batch: Batch, own: Tensor, other: Tensor, mixing: Mixing, seed: int) -> MixableBatch:
    """Return a batch of samples and partners, on the host, with the plan of how they are mixed."""
    view, index = batch.view_and_index()
    height, width = batch.image.shape[-2:]
    plan = mixing.plan(Draws(seed, view[own], index[own]), (height, width))
    return MixableBatch(batch.image, batch.target, index, view, own, other, plan)
