"""A data set whose samples know their row, and whose randomness is keyed on it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
import os
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, IterableDataset, StackDataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms import v2

from lit_distill.batch import Batch, IndexedSample
from lit_distill.checks import check_choice
from lit_distill.datamodules.images import Files
from lit_distill.keys import GENERATORS, Generator, derive_seed, kept, reseed

# Modules whose data sets and transforms show what they draw from; some of torchvision's first transforms do not.
_DATASETS = ("torchvision.datasets.", "torch.utils.data.dataset.", "lit_distill.")
_TRANSFORMS = ("torchvision.transforms.v2.", "torch.nn.", "lit_distill.")

Key = int | tuple[int, int]  # an index, or (view, index)
Sample = Any  # an IndexedSample, a Batch or a dict


@runtime_checkable
class _MapStyle(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class IndexedDataset(Dataset[Sample]):
    """Wrap a map-style data set so that each sample carries its row.

    ``(image, target)`` becomes ``(image, target, index)``, an `IndexedSample`; a dict gets the key ``"index"``.

    It is read with a plain index, or with the ``(view, index)`` that `KeyedSampler` yields. In the second case the
    sample is the same whatever the worker, the rank or the moment that asks for it: the generators that the transforms
    draw from are seeded from ``(seed, view, index)`` first, and put back afterwards. With ``with_view`` it then carries
    its view too: ``(image, target)`` becomes a `Batch`, and a dict gets the keys ``"index"`` and ``"view"``.

    Wrap a data set as a whole: each ``IndexedDataset`` counts its rows from 0, so two that are joined share rows, and a
    part of one has the rows of the whole.

    Args:
        dataset: ``dataset[i]`` is ``(image, target)``, or longer, of which the rest is left out; or a dict.
        seed: Seed of the keyed reads.
        generators: The generators to seed, of ``"torch"``, ``"python"`` and ``"numpy"``. By default, where the data set
            is torchvision's, torch's and those that its transforms draw from: none but torch's if they are from
            ``torchvision.transforms.v2``; what their attribute ``generators`` says, as that of `Augmentation`'s does;
            else all, as for any other data set.
        rows: The rows to have, where some are left out, int64; sample n is then row ``rows[n]``.
        with_view: Have keyed reads carry the view, which a teacher that looks answers up needs.

    Attributes:
        num_rows: Rows of ``dataset``, those left out among them.
        identities: What identifies each row, ``(num_rows, 2)`` int64, or None where nothing does; see `identities_of`.

    Raises:
        ValueError: If the data set has no rows (an iterable data set, or one without length).

    Example:
        >>> import torch
        >>> data = IndexedDataset([(torch.zeros(1), 3), (torch.ones(1), 5)])
        >>> data[1]
        IndexedSample(image=tensor([1.]), target=5, index=1)
        >>> data[(7, 1)].index  # view 7, say epoch 7, of sample 1
        1
    """

    def __init__(
        self,
        dataset: object,
        seed: int = 0,
        generators: Collection[Generator] | None = None,
        rows: Tensor | None = None,
        with_view: bool = False,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, _MapStyle):
            raise ValueError(
                f"IndexedDataset needs a map-style data set, with a length and rows, got {type(dataset).__name__}"
            )
        for name in generators or ():
            check_choice(Generator, generators=name)
        self.dataset = dataset
        self.seed = seed
        self.generators = generators_of(dataset) if generators is None else tuple(generators)
        self.rows = rows
        self.with_view = with_view
        self.num_rows = len(dataset)

    @cached_property
    def identities(self) -> Tensor | None:
        """What identifies each row."""
        return identities_of(self.dataset)

    def __len__(self) -> int:
        return self.num_rows if self.rows is None else len(self.rows)

    def __getitem__(self, key: Key) -> Sample:
        return self._samples([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample]:
        """Return several samples; what a `DataLoader` calls, and faster than one by one."""
        if type(self).__getitem__ is not IndexedDataset.__getitem__:  # a subclass has its say
            return [self[key] for key in keys]
        return self._samples(keys)

    def _samples(self, keys: Sequence[Key]) -> list[Sample]:
        with kept(self.generators if isinstance(keys[0], tuple) else ()):
            return [self._view(*key) if isinstance(key, tuple) else self._sample(self._row(key)) for key in keys]

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])

    def _view(self, view: int, index: int) -> Sample:
        row = self._row(index)
        reseed(derive_seed(self.seed, view, row), self.generators)
        sample = self._sample(row)
        if not self.with_view:
            return sample
        return {**sample, "view": view} if isinstance(sample, dict) else Batch._make((*sample, view))

    def _sample(self, row: int) -> Sample:
        sample = self.dataset[row]
        if isinstance(sample, Mapping):
            return {**sample, "index": row}
        image, target, *_ = sample
        return IndexedSample._make((image, target, row))  # of one sample; collating makes the tensors


def identities_of(dataset: object) -> Tensor | None:
    """Return what identifies the rows of a data set of files, ``(N, 2)`` int64; None of any other data set.

    A data set says so itself with an attribute ``identities``; the files of torchvision's ``ImageFolder`` are known by
    name, size and time; and a ``Subset`` has its part of them.
    """
    if isinstance(dataset, Subset):
        whole = identities_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, DatasetFolder):
        return Files(dataset.root, [os.path.relpath(path, dataset.root) for path, _ in dataset.samples]).identities()
    identities = getattr(dataset, "identities", None)
    return identities if isinstance(identities, Tensor) else None


def generators_of(dataset: object) -> tuple[Generator, ...]:
    """Return the generators that reading ``dataset`` may draw from.

    Example:
        >>> from torchvision.datasets import FakeData
        >>> from torchvision.transforms import v2
        >>> generators_of(FakeData(transform=v2.RandomHorizontalFlip()))
        ('torch',)
        >>> generators_of(FakeData(transform=lambda image: image))
        ('torch', 'python', 'numpy')
    """
    while type(dataset) is Subset:
        dataset = dataset.dataset
    if isinstance(dataset, (ConcatDataset, StackDataset, ChainDataset)) or not _is_from(dataset, _DATASETS):
        return GENERATORS
    hooks = [getattr(dataset, name, None) for name in ("transform", "target_transform", "transforms")]
    used = _union(hook for hook in hooks if not isinstance(hook, (StandardTransform, type(None))))
    return tuple(name for name in GENERATORS if name in used)


def _union(transforms: Iterable[object]) -> set[Generator]:
    """Return the generators that transforms draw from, and torch's, which is always seeded."""
    used: set[Generator] = {"torch"}
    return used.union(*map(_drawn_from, transforms))


def _drawn_from(transform: object) -> set[Generator]:
    declared = getattr(transform, "generators", None)
    if isinstance(declared, Collection) and set(declared) <= set(GENERATORS):
        return set(declared)
    if isinstance(transform, v2.Lambda) or not _is_from(transform, _TRANSFORMS):
        return set(GENERATORS)
    children = transform.children() if isinstance(transform, nn.Module) else ()
    return _union([*getattr(transform, "transforms", ()), *children])


def _is_from(thing: object, modules: tuple[str, ...]) -> bool:
    return f"{type(thing).__module__}.".startswith(modules)
