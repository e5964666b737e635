"""What makes a row of a data set the same sample when the data set has changed."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset


def short_hash(text: str) -> int:
    """Return a hash of ``text`` of 64 bits, signed, that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little", signed=True)


def identities(names: Iterable[str], contents: Tensor) -> Tensor:
    """Return what identifies each row: its content and its name, ``(N, 2)`` int64.

    Args:
        names: A name for each row.
        contents: A number for each content, ``(N,)`` int64; 0 where it could not be read.

    Example:
        >>> identities(["cat/1.jpg", "dog/1.jpg"], torch.tensor([7, 8])).shape
        torch.Size([2, 2])
    """
    hashes = torch.from_numpy(np.fromiter((short_hash(name) for name in names), dtype=np.int64))
    return torch.stack([contents, hashes], dim=1)


def match_rows(then: Tensor, now: Tensor) -> Tensor:
    """Return the row that each sample had before, ``(N,)`` int64; -1 for a sample that is new.

    Content decides: a file that was renamed is the same sample, another file of the same name is not. Of several files
    with equal content, those that kept their name keep their row, and the others follow in order.

    Args:
        then: What identified the rows before, as `identities` returns it.
        now: What identifies the N rows now.

    Example:
        >>> then = identities(["a.jpg", "b.jpg", "c.jpg"], torch.tensor([7, 8, 9]))
        >>> match_rows(then, identities(["a.jpg", "b.jpg", "d.jpg"], torch.tensor([7, 5, 9])))
        tensor([ 0, -1,  2])
    """
    if torch.equal(then, now):
        return torch.arange(len(now))
    before, after = ([tuple(row) for row in table.tolist()] for table in (then, now))
    row_of = {identity: row for row, identity in enumerate(before) if identity[0]}
    source = [row_of.get(identity, -1) for identity in after]
    kept = set(source)
    left: dict[int, list[int]] = defaultdict(list)
    for row in reversed(range(len(before))):
        if row not in kept and before[row][0]:
            left[before[row][0]].append(row)
    for row, (content, _) in enumerate(after):
        if source[row] < 0 and left.get(content):
            source[row] = left[content].pop()
    return torch.tensor(source, dtype=torch.int64)


def grown(before: int, now: int) -> Tensor:
    """Return the row that each of ``now`` samples had ``before``, -1 for those at the end that are new.

    Raises:
        ValueError: If there are fewer than before: nothing tells which are gone.
    """
    if now < before:
        raise ValueError(
            f"the remembered soft labels are for {before} samples, the training set has {now}: "
            "resume with the data set of the checkpoint"
        )
    row = torch.arange(now)
    return torch.where(row < before, row, -1)


def check_rows(dataset: Any, count: int | None = None) -> None:
    """Check that the rows that samples carry are those of ``dataset`` itself, in 0..count-1.

    A data set that has rows has an attribute ``num_rows``, as `IndexedDataset` does.

    Args:
        dataset: May be a ``Subset`` or ``ConcatDataset`` of data sets with rows.
        count: Rows that are expected; None if only ``dataset`` itself may have rows.

    Raises:
        ValueError: If joined data sets share rows, or a part has rows of the whole that are not expected.
    """
    parts = {id(part.dataset): part for part in _with_rows(dataset)}
    if len(parts) > 1:
        raise ValueError(
            f"the training set joins {len(parts)} data sets that all count their rows from 0, so they share rows: wrap "
            "the whole, IndexedDataset(ConcatDataset([a, b])), instead of its parts"
        )
    for part in parts.values():
        if part is not dataset and (count is None or max(_rows(dataset), default=0) >= count):
            raise ValueError(
                f"the training set is a part of an IndexedDataset, so its rows are those of the whole, "
                f"0..{part.num_rows - 1}: wrap the part, IndexedDataset(part), as in "
                "IndexedDataset(random_split(dataset, ...)[0])"
                + ("" if count is None else f", or set num_samples={part.num_rows} of the callback")
            )


def _with_rows(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "num_rows") and hasattr(dataset, "dataset"):
        yield dataset
    elif isinstance(dataset, (Subset, ConcatDataset)):
        for part in [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets:
            yield from _with_rows(part)


def _rows(dataset: Any) -> Sequence[int]:
    if isinstance(dataset, Subset):
        rows = _rows(dataset.dataset)
        return [rows[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [row for part in dataset.datasets for row in _rows(part)]
    return range(dataset.num_rows)
