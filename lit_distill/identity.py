"""What makes a row of a data set the same sample when the data set has changed."""

from collections import defaultdict, deque
from collections.abc import Iterable
import hashlib
from itertools import chain
import os
from typing import Protocol, cast, runtime_checkable

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
    hashes = torch.tensor([*map(short_hash, names)], dtype=torch.int64)
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
    row_of = {(content, name): row for row, (content, name) in enumerate(then.tolist()) if content}
    source = [row_of.pop((content, name), -1) for content, name in now.tolist()]
    left: dict[int, deque[int]] = defaultdict(deque)
    for (content, _), row in row_of.items():
        left[content].append(row)
    for row, content in enumerate(now[:, 0].tolist()):
        if source[row] < 0 and left[content]:
            source[row] = left[content].popleft()
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


@runtime_checkable
class _HasRows(Protocol):
    """A data set whose samples carry their row, as those of `IndexedDataset` do."""

    num_rows: int
    dataset: object


def check_rows(dataset: object, count: int | None = None) -> None:
    """Check that the rows that samples carry are those of ``dataset`` itself, in 0..count-1.

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
        if part is not dataset and (count is None or bool((_rows(dataset) >= count).any())):
            raise ValueError(
                f"the training set is a part of an IndexedDataset, so its rows are those of the whole, "
                f"0..{part.num_rows - 1}: wrap the part, IndexedDataset(part), as in "
                "IndexedDataset(random_split(dataset, ...)[0])"
                + ("" if count is None else f", or set num_samples={part.num_rows} of the callback")
            )


def _with_rows(dataset: object) -> Iterable[_HasRows]:
    if isinstance(dataset, _HasRows):
        return [dataset]
    if isinstance(dataset, Subset):
        return _with_rows(dataset.dataset)
    return chain(*map(_with_rows, getattr(dataset, "datasets", [])))


def _rows(dataset: object) -> Tensor:
    if isinstance(dataset, Subset):
        return _rows(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([_rows(part) for part in dataset.datasets])
    return torch.arange(cast(_HasRows, dataset).num_rows)
