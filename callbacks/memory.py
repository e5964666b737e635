"""The per-sample table of remembered soft labels."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_distill.callbacks.exchange import exchange, has_others
from lit_distill.identity import grown


def check_index(index: Tensor, rows: int) -> None:
    """Check that ``index`` holds integers ``(B,)``, and on the host that they are in 0..rows-1.

    Raises:
        ValueError: If not. On a device nothing is known of the values without waiting for it.
    """
    if index.dim() != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"index must be integers of shape (B,), got {index.dtype} of shape {tuple(index.shape)}")
    if _host_knows(index) and len(index):
        lowest, highest = (int(value) for value in index.aminmax())
        if lowest < 0 or highest >= rows:
            raise ValueError(f"index must be in 0..{rows - 1}, the training set's rows, got {lowest}..{highest}")


def _host_knows(values: Tensor) -> bool:
    return values.device.type == "cpu"


class Fetched(NamedTuple):
    """Rows of the table as they are stored, and which of them were ever recorded."""

    values: Tensor
    classes: Tensor | None
    recorded: Tensor

    def send(self, device: torch.device | str) -> "Fetched":
        """Move to another device; from and to a GPU without waiting for it."""
        values, classes, recorded = (None if part is None else _send(part, torch.device(device)) for part in self)
        return Fetched(values, classes, recorded)  # type: ignore[arg-type]


def _send(part: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and part.device.type == "cpu":
        part = part.pin_memory()
    return part.to(device, non_blocking="cuda" in (device.type, part.device.type))


class SoftLabelMemory:
    """One remembered probability vector per training sample, with the epoch in which it was recorded.

    Every row has two slots. Recording in epoch e overwrites the older slot, and reading in epoch e takes the newest
    slot recorded *before* e; so nothing recorded in an epoch can be read in it, and no hook has to publish anything.
    Within an epoch the first recording of a row stands. Nothing here waits for the device, but `exchange`, `check`
    and what moves or saves the table.

    Under `torch.distributed` each process records its own rows; `exchange`, called by all of them at the same point,
    gives every process the rows of all.

    Args:
        num_samples: Rows N >= 1, the length of the training set.
        num_classes: Classes K >= 1.
        top_k: Keep the ``top_k`` >= 1 largest probabilities of a row and their classes; the mass left is spread evenly
            over the other classes, as TinyViT and FKD do. A row with at most ``top_k`` probabilities above zero is
            kept exactly. None, or as many as there are classes, keeps all.
        dtype: What a probability is stored as; float16 halves the table and is exact to 5e-4 of the value.
        device: Where the table lies. It may be another device than the soft labels': then ``index`` must be on the
            table's.
        shared: Whether other processes record rows of the same table, to be exchanged; by default whether there are
            other processes at all.

    Raises:
        ValueError: If a size is < 1.

    Example:
        >>> memory = SoftLabelMemory(num_samples=3, num_classes=2)
        >>> memory.record(torch.tensor([1]), torch.tensor([[0.25, 0.75]]), epoch=1)
        >>> memory.read(torch.tensor([0, 1]), epoch=2)
        (tensor([[0.0000, 0.0000],
                [0.2500, 0.7500]]), tensor([False,  True]))
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        top_k: int | None = None,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
        shared: bool | None = None,
    ) -> None:
        for name, size in {"num_samples": num_samples, "num_classes": num_classes, "top_k": top_k}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        kept = num_classes if top_k is None else min(top_k, num_classes)
        # int16 holds the ids of 32,768 classes.
        ids = torch.int16 if num_classes <= 2**15 else torch.int32
        self.num_classes = num_classes
        self.shared = shared
        self._rows = torch.zeros(2, num_samples, kept, dtype=dtype, device=device)
        self._classes = None if kept == num_classes else torch.zeros(2, num_samples, kept, dtype=ids, device=device)
        self._epochs = torch.zeros(2, num_samples, dtype=torch.int32, device=device)  # 0: never recorded
        self._start()

    def _start(self) -> None:
        self._refused = torch.zeros(2, dtype=torch.int64, device=self.device)  # indices outside, vectors not finite
        # What this process recorded since the last exchange: each sample's row, or -1, in the order they came.
        self._fresh: list[Tensor] = []
        self._fresh_epoch = 0
        self._later: deque[tuple[Any, Tensor, Fetched, int]] = deque()
        self._checked: tuple[Tensor, int] | None = None

    @property
    def num_samples(self) -> int:
        """Rows N."""
        return self._rows.shape[1]

    @property
    def top_k(self) -> int:
        """Probabilities kept of a row."""
        return self._rows.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """What a probability is stored as."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self._rows.device

    @property
    def nbytes(self) -> int:
        """Bytes of the table: both slots of every row, their classes and epochs."""
        return sum(table.nbytes for table in self._tables())

    def record(self, index: Tensor, soft_labels: Tensor, epoch: int, where: Tensor | None = None) -> None:
        """Remember ``soft_labels`` ``(B, K)`` for the rows ``index`` ``(B,)``, as of ``epoch`` >= 1.

        A row that was already recorded in this epoch keeps its first value, as does the first of several equal
        indices in the batch; a vector that is not finite, or not marked in ``where`` ``(B,)`` bool, is not recorded.

        Raises:
            ValueError: If an index is not an integer, or, as far as the host can tell without waiting, outside the
                table; elsewhere such a row is left out, and `check` raises.
        """
        if not len(index):
            return
        compact = self._compact(soft_labels)
        if where is not None:
            compact = compact._replace(recorded=compact.recorded & where)
        if compact.values.device == self.device:
            self._write(index, compact, epoch)
            return
        ready = None
        if compact.values.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        compact = compact.send(self.device)
        if ready is not None:
            ready.record()
        self._later.append((ready, index, compact, epoch))
        self._catch_up(wait=False)

    def read(self, index: Tensor, epoch: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Return what was remembered before ``epoch`` for the rows ``index`` ``(B,)``.

        Args:
            index: Integers in 0..N-1.
            epoch: >= 1.
            device: Where to return it; by default where the table lies.

        Returns:
            Soft labels ``(B, K)``, float32, zeros where nothing was recorded; and ``(B,)`` bool, True where it was.

        Raises:
            ValueError: As for `record`.
        """
        return self.expand(self.fetch(index, epoch, device))

    def fetch(self, index: Tensor, epoch: int, device: torch.device | str | None = None) -> Fetched:
        """Begin to `read`: take the rows as they are stored and send them to ``device`` without waiting for it."""
        if self._later and self._later[0][-1] < epoch:
            self._catch_up()
        index, inside = self._valid(index)
        epochs = self._epochs.index_select(1, index)
        older, newer = (epochs * (epochs < epoch)).unbind()
        row = torch.add(index, (newer > older).long(), alpha=self.num_samples)
        values, classes = (None if table is None else table.index_select(0, row) for table in self._flat())
        recorded = torch.maximum(older, newer) > 0
        fetched = Fetched(values, classes, recorded if inside is None else recorded & inside)  # type: ignore[arg-type]
        return fetched if device is None else fetched.send(device)

    def expand(self, fetched: Fetched) -> tuple[Tensor, Tensor]:
        """Finish to `read`: return what `fetch` took as soft labels ``(B, K)``, float32, and ``(B,)`` bool."""
        values, classes, recorded = fetched
        soft_labels = values.float()
        if classes is not None:
            # The sign of the first value tells a row of few classes, whose others are zero and not the rounding's rest.
            complete, soft_labels = soft_labels[:, :1] < 0, soft_labels.abs()
            rest = (1 - soft_labels.sum(dim=1, keepdim=True)).clamp(min=0) / (self.num_classes - self.top_k)
            rest = torch.where(complete, 0.0, rest).repeat(1, self.num_classes)
            soft_labels = rest.scatter_(1, classes.long(), soft_labels)
        return soft_labels * recorded[:, None], recorded

    def exchange(self, group: Any = None) -> None:
        """Give every process of the group the rows that each has recorded since the last exchange.

        Afterwards the tables of all of them are the same bits. Of a row that several recorded, the earliest in the
        global order stands: sample n of a process before sample n + 1 of any other, and lower ranks first.
        """
        self._catch_up()
        if self._is_shared():
            exchange(self, group)
        self._fresh.clear()

    def check(self) -> int:
        """Return how many vectors were not finite since the last check, and wait for the device to tell.

        Raises:
            ValueError: If an index lay outside the table.
        """
        outside, not_finite = self.refused().tolist()
        self.raise_outside(outside)
        return int(not_finite)

    def refused(self) -> Tensor:
        """Return ``(2,)`` int64, and count anew: indices outside the table, and vectors that were not finite."""
        self._catch_up()
        refused, self._refused = self._refused, torch.zeros_like(self._refused)
        return refused

    def raise_outside(self, count: int) -> None:
        """Raise ``ValueError`` if ``count``, of indices outside the table, is not 0."""
        if count:
            raise ValueError(
                f"index must be in 0..{self.num_samples - 1}, the training set's rows: {count} were outside since the "
                "last check"
            )

    def to(self, device: torch.device | str) -> "SoftLabelMemory":
        """Move the table and return it."""
        self._catch_up()
        self._each(lambda table: table.to(device))
        self._refused = self._refused.to(device)
        self._fresh = [rows.to(device) for rows in self._fresh]
        return self

    def pin(self) -> "SoftLabelMemory":
        """Move the table to page-locked host memory, from where a GPU reads without waiting, and return it."""
        self.to("cpu")
        if torch.cuda.is_available():
            self._each(Tensor.pin_memory)
        return self

    def rearranged(self, source: Tensor) -> "SoftLabelMemory":
        """Return a table whose row n is this one's row ``source[n]``, or was never recorded where that is -1."""
        self._catch_up()
        source = source.to(self.device)
        tables = {"rows": self._rows, "epochs": self._epochs, "classes": self._classes}
        state = {k: t.index_select(1, source.clamp(min=0)) for k, t in tables.items() if t is not None}
        new = SoftLabelMemory.from_state_dict({**state, "num_classes": self.num_classes})
        new.shared = self.shared
        new.forget(source < 0)
        return new

    def forget(self, rows: Tensor) -> None:
        """Forget what is remembered for the rows that are marked in ``rows``, ``(N,)`` bool."""
        self._catch_up()
        self._epochs.masked_fill_(rows.to(self.device), 0)

    def resize(self, num_samples: int) -> "SoftLabelMemory":
        """Return a table for a data set that has grown by new rows at its end; they count as never recorded.

        Raises:
            ValueError: If ``num_samples`` is smaller than before: nobody can tell which rows went.
        """
        if num_samples == self.num_samples:
            return self
        new = self.rearranged(grown(self.num_samples, num_samples))
        new._fresh, new._fresh_epoch = self._fresh, self._fresh_epoch
        return new

    def converted(self, top_k: int | None, dtype: torch.dtype, rows: int = 1 << 16) -> "SoftLabelMemory":
        """Return a table with the same soft labels that keeps ``top_k`` of them as ``dtype``; itself if it does.

        Args:
            top_k: See the class.
            dtype: See the class.
            rows: Rows converted at once, which bounds the additional memory.
        """
        kept = self.num_classes if top_k is None else min(top_k, self.num_classes)
        if (kept, dtype) == (self.top_k, self.dtype):
            return self
        self._catch_up()
        new = SoftLabelMemory(self.num_samples, self.num_classes, top_k, dtype, self.device, self.shared)
        new._epochs, new._fresh, new._fresh_epoch = self._epochs, self._fresh, self._fresh_epoch
        everything = torch.ones(rows, dtype=torch.bool, device=self.device)
        ours, theirs = self._flat(), new._flat()
        for start in range(0, 2 * self.num_samples, rows):
            part = slice(start, start + rows)
            values, classes = (None if table is None else table[part] for table in ours)
            fetched = Fetched(values, classes, everything[: len(values)])  # type: ignore[arg-type]
            compact = new._compact(self.expand(fetched)[0])
            for table, converted in zip(theirs, compact, strict=False):
                if table is not None:
                    table[part] = converted  # type: ignore[assignment]
        return new

    def state_dict(self) -> dict[str, Any]:
        """Return the table as plain tensors; they are the table's own, not copies."""
        self._catch_up()
        state = {"rows": self._rows, "epochs": self._epochs, "num_classes": self.num_classes}
        return state if self._classes is None else state | {"classes": self._classes}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "SoftLabelMemory":
        """Make a table from what `state_dict` returned; takes the tensors over without a copy.

        Raises:
            ValueError: If the tensors are no such table.
        """
        memory = cls.__new__(cls)
        rows, epochs, classes = state.get("rows"), state.get("epochs"), state.get("classes")
        num_classes = state.get("num_classes")
        if (
            not isinstance(rows, Tensor)
            or rows.dim() != 3
            or len(rows) != 2
            or not isinstance(epochs, Tensor)
            or epochs.shape != rows.shape[:2]
            or (rows.shape[2] != num_classes if classes is None else classes.shape != rows.shape)
        ):
            said = ", ".join(f"{k} {tuple(v.shape) if isinstance(v, Tensor) else v}" for k, v in state.items())
            raise ValueError(f"no table of remembered soft labels: {said}")
        memory.num_classes = int(num_classes)  # type: ignore[arg-type]
        memory.shared = None
        memory._set(rows, epochs, classes)
        memory._start()
        return memory

    # What `exchange` asks for.

    def fresh(self) -> tuple[Tensor, int]:
        """Return the row of each sample since the last exchange, -1 where it was not recorded, and the epoch."""
        order = torch.cat(self._fresh) if self._fresh else torch.empty(0, dtype=torch.int32, device=self.device)
        return order, self._fresh_epoch

    def take_out(self, row: Tensor) -> list[Tensor]:
        """Return the newest slot of each row, a tensor for each table there is but the epochs."""
        newest = self._newest(row)
        return [table[newest, row] for table in (self._rows, self._classes) if table is not None]

    def put_in(self, row: Tensor, parts: list[Tensor], epoch: int) -> None:
        """Write what another process took out; a row of this ``epoch`` is replaced, else the older slot is used."""
        newest = self._newest(row)
        slot = torch.where(self._epochs[newest, row] == epoch, newest, 1 - newest)
        for table, part in zip((self._rows, self._classes), parts, strict=False):
            table[slot, row] = part  # type: ignore[index]
        self._epochs[slot, row] = epoch

    def _newest(self, index: Tensor) -> Tensor:
        epochs = self._epochs.index_select(1, index)
        return epochs[1].gt(epochs[0]).long()

    def _compact(self, soft_labels: Tensor) -> Fetched:
        finite = soft_labels.sum(dim=1, dtype=torch.float32).isfinite()  # of probabilities: all are finite
        if self._classes is None:
            return Fetched(soft_labels.to(self.dtype), None, finite)
        values, classes = soft_labels.topk(self.top_k, dim=1)
        complete = (soft_labels > 0).sum(dim=1, keepdim=True) <= self.top_k
        values = torch.where(complete, -values, values).to(self.dtype)
        return Fetched(values, classes.to(self._classes.dtype), finite)

    def _write(self, index: Tensor, compact: Fetched, epoch: int) -> None:
        index, inside = self._valid(index)
        values, classes, finite = compact
        good = finite if inside is None else finite & inside
        epochs = self._epochs.index_select(1, index)
        newest, again = epochs[1] > epochs[0], (epochs == epoch).any(dim=0)
        # The newest slot if it is of this epoch, else the other.
        row = torch.add(index, (newest == again).long(), alpha=self.num_samples)
        # Equal indices write equal values, those of the first of them, so the order of the writes does not matter.
        there, first = ((index[:, None] == index) & good).max(dim=1)
        keep = again | ~there
        for table, part in zip((*self._flat(), self._epochs.flatten()), (values, classes, None), strict=True):
            if table is not None:
                was = table.index_select(0, row)
                if part is None:
                    new = was.masked_fill(~keep, epoch)
                else:
                    new = torch.where(keep[:, None], was, part.index_select(0, first))
                table.index_copy_(0, row, new)
        refused = (~finite).sum() if inside is None else torch.stack([(~inside).sum(), (~finite).sum()])
        self._refused[0 if inside is not None else 1 :] += refused
        if self._is_shared():
            # Only where this very occurrence was recorded: of a vector that is not finite, another's value may stand.
            self._fresh.append(torch.where(keep | ~good, -1, index).int())
            self._fresh_epoch = epoch

    def _is_shared(self) -> bool:
        return has_others() if self.shared is None else self.shared

    def _valid(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the index, and where it is inside the table; None for everywhere, where the host knows or raises."""
        if self._checked is None or self._checked[0] is not index or self._checked[1] != index._version:
            check_index(index, self.num_samples)
            self._checked = index, index._version  # recorded after it was read, as a rule
        known, index = _host_knows(index), index.to(self.device).long()
        if known:
            return index, None
        # Outside it is made harmless.
        return index.clamp(0, self.num_samples - 1), (index >= 0) & (index < self.num_samples)

    def _catch_up(self, wait: bool = True) -> None:
        while self._later and (wait or self._later[0][0] is None or self._later[0][0].query()):
            ready, index, compact, epoch = self._later.popleft()
            if ready is not None:
                ready.synchronize()
            self._write(index, compact, epoch)

    def _tables(self) -> list[Tensor]:
        return [table for table in (self._rows, self._epochs, self._classes) if table is not None]

    def _flat(self) -> tuple[Tensor, Tensor | None]:
        """Return the values and classes of both slots one below the other, views of the table."""
        return self._rows.flatten(0, 1), None if self._classes is None else self._classes.flatten(0, 1)

    def _each(self, move: Callable[[Tensor], Tensor]) -> None:
        self._set(move(self._rows), move(self._epochs), None if self._classes is None else move(self._classes))

    def _set(self, rows: Tensor, epochs: Tensor, classes: Tensor | None) -> None:
        self._rows, self._epochs, self._classes = rows, epochs, classes
