"""A teacher that answers from what it said before."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.models.answers import Answers
from lit_distill.models.marks import Mark
from lit_distill.models.output import TeacherOutput
from lit_distill.models.output_rows import OutputRows
from lit_distill.models.put_away import PutAway
from lit_distill.models.taps import tapped
from lit_distill.models.teacher_base import Teacher


class Source:
    """Answers to the batches of one loader, for the views that it has now.

    Args:
        answers: Where they are on disk.
        rows: How they are stored there.
        keyed: Whether batches carry a view, as those of training do; without, their view is 0.
    """

    def __init__(self, answers: Answers, rows: OutputRows, keyed: bool) -> None:
        self.answers = answers
        self.rows = rows
        self.keyed = keyed
        self.error: OSError | None = None
        self.is_warm = False
        """Whether all answers of these views are there."""
        self.largest = 0.0
        """The largest absolute value of a logit that was written."""
        self._first_view = 0
        self._table: Tensor | None = None
        self._known: Tensor | None = None  # rows of the table that are there; None if all that are asked for are
        self._noted: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def begin(self, views: Sequence[int], device: torch.device) -> None:
        """Go on with these views, which follow one another; what is there of their answers comes to the device."""
        self._first_view, self._table, self._known = views[0], None, None
        self.is_warm = all(self.answers.table(view) is not None for view in views)
        found = [self.answers.part(view) for view in views]
        if all(part is None for part in found):
            return
        nothing = torch.zeros(self.answers.num_rows, self.answers.stride, dtype=torch.uint8), torch.tensor([False])
        tables, known = zip(*(part or nothing for part in found), strict=True)
        # One view of a table on the host stays where it is mapped.
        self._table = (tables[0] if len(tables) == 1 else torch.cat(tables)).to(device)
        if not self.is_warm:
            self._known = torch.cat([rows.expand(self.answers.num_rows) for rows in known]).to(device)

    def fits(self, batch: Batch) -> bool:
        """Tell whether the batch says which answers it wants."""
        return batch.index is not None and (batch.view is not None) == self.keyed

    def has(self, batch: Batch) -> bool:
        """Tell whether all answers to a batch are there; waits for the device only while views are filled in part."""
        if self._table is None or self._known is None:
            return self._table is not None
        return bool(self._known.index_select(0, self._place(batch)).all())

    def read(self, batch: Batch) -> Tensor:
        """Return the packed answers to a batch; does not wait for the device."""
        if self._table is None:
            raise RuntimeError("there are no answers to read: ask has() first")
        return self._table.index_select(0, self._place(batch))

    def _place(self, batch: Batch) -> Tensor:
        """Return where the answers to a batch are in the table."""
        index, view = _keys(batch)
        # A key of another view would be a place outside the table, which is an error, never another key's row.
        place = (view - self._first_view) * self.answers.num_rows + index
        return place if self._table is None else place.to(self._table.device)

    def note(self, batch: Batch, rows: Tensor) -> None:
        """Keep packed answers, and write them once there are as many as a shard has."""
        if self.error is not None:
            return
        index, view = _keys(batch)
        self._noted.append((torch.stack([view, index]), rows))
        self._count += len(rows)
        if self._count >= self.answers.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is noted. After an error nothing is written any more."""
        if not self._noted:
            return
        keys = torch.cat([keys for keys, _ in self._noted], dim=1).cpu()
        rows = torch.cat([rows for _, rows in self._noted]).cpu()
        self._noted, self._count = [], 0
        self.largest = max(self.largest, self.rows.largest_logit(rows))
        try:
            for view in sorted(set(keys[0].tolist())):
                chosen = keys[0] == view
                self.answers.write(view, keys[1, chosen], rows[chosen])
        except OSError as error:
            self.error = error

    def merge(self, views: Sequence[int]) -> None:
        """Merge what all processes have written of these views."""
        try:
            for view in views:
                self.answers.merge(view)
        except OSError as error:
            self.error = error


def _keys(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return index and view of each sample, each ``(B,)``."""
    if batch.index is None:
        raise ValueError("the batch has no index, so there is no answer to look up")
    return batch.index, torch.zeros_like(batch.index) if batch.view is None else batch.view


class TeacherCache(Teacher):
    """Answers from ``(view, index)`` what another teacher answered to the same image before.

    The other teacher is asked about a batch of which an answer is missing, and its answers are noted. What is returned
    is always what the row of bytes says, so a run that fills a cache is the same as one that reads it. Batches of no
    source, and batches without the keys that a source needs, go to the other teacher and back as they are.

    `TeacherCaching` makes it, and says which source is read.

    Args:
        asked: The teacher behind it.

    Example:
        >>> from lit_distill.models import FrozenTeacher
        >>> cache = TeacherCache(FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))))
        >>> cache(Batch(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))).logits.shape
        torch.Size([2, 3])
    """

    def __init__(self, asked: Teacher) -> None:
        super().__init__()
        self.asked = asked
        self.num_classes = asked.num_classes
        self.source: Source | None = None
        self.evaluated: dict[int, Source] = {}
        """The source of each loader of the validation set, by its number."""
        self.is_timed = True
        self.asks: list[tuple[Mark, Mark]] = []
        """When the other teacher was asked about a batch of training, and when it had answered, while `is_timed`."""
        self.reopen: Callable[[], None] | None = None
        """To be called by all ranks once the teacher behind runs in another precision, if sources are open."""
        self._away: PutAway | None = None

    @property
    @override
    def network(self) -> nn.Module:
        return self.asked.network

    @override
    def set_class_names(self, names: Sequence[str]) -> None:
        self.asked.set_class_names(names)

    @override
    def set_class_counts(self, count: Callable[[], Sequence[int] | None]) -> None:
        self.asked.set_class_counts(count)

    @override
    def grouping(self) -> dict[str, object]:
        return self.asked.grouping()

    @override
    def notes(self) -> list[str]:
        return self.asked.notes()

    @override
    def extra_repr(self) -> str:
        return f"{self.asked.extra_repr()}, cached"

    @override
    def forward(self, batch: Batch) -> TeacherOutput:
        source = self.source
        if source is None or not source.fits(batch):
            return self.ask(batch)
        if source.has(batch):
            return source.rows.unpack(source.read(batch))
        before = Mark(batch.image.device)
        packed = source.rows.pack(self.ask(batch, source.rows.features))
        if self.is_timed and source.keyed:
            self.asks.append((before, Mark(batch.image.device)))
        source.note(batch, packed)
        return source.rows.unpack(packed)

    @override
    def evaluating(self, loader: int) -> AbstractContextManager[None]:
        return self.reading(self.evaluated.get(loader))

    @contextmanager
    def reading(self, source: Source | None) -> Iterator[None]:
        """Answer from this source inside the block, or live from none."""
        before, self.source = self.source, source
        try:
            yield
        finally:
            self.source = before

    def put_away(self, folder: Path) -> None:
        """Take the weights of the teacher behind, and the copies that run it fast, out of memory until it is asked.

        Raises:
            OSError: If there is no room for them in ``folder``.
        """
        if self._away is None:
            self._away = PutAway(self.asked, folder)
            for part in self.asked.modules():
                if isinstance(part, Teacher) and part.fast_network is not None:
                    part.fast_network.drop_copy()

    def take_back(self) -> None:
        """Have the teacher behind as it was."""
        away, self._away = self._away, None
        if away is not None:
            away.take_back()

    @property
    def is_warm(self) -> bool:
        """Whether all answers of the current views, and to all that is evaluated, are there."""
        return self.source is not None and all(source.is_warm for source in self.sources)

    @property
    def sources(self) -> list[Source]:
        """The current source, and those of all that is evaluated."""
        return [*([] if self.source is None else [self.source]), *self.evaluated.values()]

    @property
    def is_away(self) -> bool:
        """Whether the weights of the teacher behind are on disk."""
        return self._away is not None

    def ask(self, batch: Batch, layers: Collection[str] = ()) -> TeacherOutput:
        """Ask the teacher behind; its features then have what these layers of its network return."""
        self.take_back()
        with tapped(self.asked.network, layers) as found:
            answer: TeacherOutput = self.asked(batch)
        return answer._replace(features={**found, **answer.features})
