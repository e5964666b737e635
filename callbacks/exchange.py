"""How the processes of a distributed run come to hold the same table."""

from typing import TypeAlias

import torch
from torch import Tensor, distributed

from lit_distill.callbacks.memory import SoftLabelMemory

# Bytes that a process receives at once, from all others together.
CHUNK = 1 << 23

_LAST = torch.iinfo(torch.int32).max  # the place of a row that nobody recorded

Group: TypeAlias = "distributed.ProcessGroup | None"  # as text: a torch without distributed lacks it


class RowExchange:
    """Gives every process the rows that each of them recorded.

    A process notes what it records, and all processes call `run` at the same point. Afterwards their tables are the
    same bits. Of a row that several recorded, the earliest in the global order stands: sample n of a process before
    sample n + 1 of any other, and lower ranks before higher ones. Works on any backend that gathers bytes.

    Args:
        group: The process group; by default that of all processes.
        chunk: Bytes received at once, which bounds the additional memory.
    """

    def __init__(self, group: Group = None, chunk: int = CHUNK) -> None:
        self.group = group
        self.chunk = chunk
        self._noted: list[Tensor] = []  # each sample's row, or -1, in the order they came
        self._epoch = 0

    def note(self, index: Tensor, recorded: Tensor, epoch: int) -> None:
        """Note a batch: its rows ``(B,)``, and where `SoftLabelMemory.record` wrote them, ``(B,)`` bool."""
        self._noted.append(torch.where(recorded, index.to(recorded.device), -1).int())
        self._epoch = epoch

    def run(self, memory: SoftLabelMemory) -> int:
        """Bring the rows noted since the last run into the tables of all processes; collective.

        Returns:
            Bytes that this process received, its own among them.
        """
        world, rank = distributed.get_world_size(self.group), distributed.get_rank(self.group)
        earliest = self._earliest_places(memory, world, rank)
        row = (earliest < _LAST).nonzero().flatten()  # each once
        via = _transfer_device(memory.device, self.group)
        counts = _gather(torch.tensor([len(row), self._epoch], device=via), self.group).tolist()
        longest, epoch = max(count for count, _ in counts), max(epoch for _, epoch in counts)
        width = _pack(memory, earliest, row[:0]).shape[1]
        step = max(1, self.chunk // (world * width))
        for start in range(0, longest, step):
            size = min(step, longest - start)
            packed = _pack(memory, earliest, row[start : start + size]).to(via)
            padded = torch.zeros(size, width, dtype=torch.uint8, device=via)
            padded[: len(packed)] = packed
            received = _gather(padded, self.group)
            for other, (count, _) in enumerate(counts):
                if other != rank and count > start:
                    _merge(memory, earliest, received[other, : count - start].to(memory.device), epoch)
        self._noted.clear()
        return int(world * width * longest)

    def _earliest_places(self, memory: SoftLabelMemory, world: int, rank: int) -> Tensor:
        """Return the earliest place in the global order of each row noted here, ``(N,)`` int32; `_LAST` for others."""
        earliest = torch.full((memory.num_samples,), _LAST, dtype=torch.int32, device=memory.device)
        if self._noted:
            order = torch.cat(self._noted)
            place = torch.arange(rank, rank + world * len(order), world, dtype=torch.int32, device=memory.device)
            place = torch.where(order < 0, _LAST, place)
            earliest.scatter_reduce_(0, order.clamp(min=0).long(), place, "amin")
        return earliest


def all_reduce_max(values: Tensor, group: Group = None) -> None:
    """Replace each value by the largest that a process has in its place; collective, a no-op for a single process."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1:
        largest = values.to(_transfer_device(values.device, group))
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group)
        values.copy_(largest)


def _pack(memory: SoftLabelMemory, earliest: Tensor, row: Tensor) -> Tensor:
    """Return ``(n, bytes)``: the row, its place and its stored values side by side."""
    parts = [torch.stack([row.int(), earliest[row]], dim=1), *memory.take_out(row)]
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def _merge(memory: SoftLabelMemory, earliest: Tensor, packed: Tensor, epoch: int) -> None:
    """Write the packed rows whose place is earlier than the one known here."""
    like = [torch.empty(0, 2, dtype=torch.int32), *memory.take_out(earliest[:0].long())]
    columns = packed.split_with_sizes([part.shape[1] * part.element_size() for part in like], dim=1)
    # Copied: to view bytes as wider numbers, offset and strides must be multiples of their width.
    key, *parts = (
        column.new_empty(column.shape).copy_(column).view(part.dtype)
        for column, part in zip(columns, like, strict=True)
    )
    better = key[:, 1] < earliest[key[:, 0]]
    row, place = key[better].unbind(dim=1)
    memory.put_in(row.long(), [part[better] for part in parts], epoch)
    earliest[row] = place


def _gather(packed: Tensor, group: Group) -> Tensor:
    """Return the tensors of all processes, ``(processes, *shape)``."""
    everyones = packed.new_empty(distributed.get_world_size(group), *packed.shape)
    distributed.all_gather_into_tensor(everyones.view(-1, *packed.shape[1:]), packed, group=group)
    return everyones


def _transfer_device(device: torch.device, group: Group) -> torch.device:
    """Return where the backend takes tensors: the host if it can, else ``device`` or this process's GPU."""
    if "cpu:" in distributed.get_backend_config(group):
        return torch.device("cpu")
    return device if device.type != "cpu" else torch.device("cuda", torch.cuda.current_device())
