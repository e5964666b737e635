"""How the processes of a distributed run come to hold the same table."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from lit_distill.callbacks.memory import SoftLabelMemory

# Bytes that a process receives at once, from all others together.
CHUNK = 1 << 23


def has_others(group: Any = None) -> bool:
    """Tell whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1


def exchange(memory: "SoftLabelMemory", group: Any = None, chunk: int = CHUNK) -> int:
    """Bring the rows that each process has recorded since the last exchange into the tables of all.

    Every process sends its fresh rows, ``chunk`` bytes at a time over all processes, with each row's place in the
    global order; of a row that several recorded, all keep the one with the earliest place. A collective operation: all
    processes of ``group`` call it at the same point of the run. Works on any backend that gathers bytes.

    Args:
        memory: The table.
        group: The process group; by default that of all processes.
        chunk: Bytes received at once, which bounds the additional memory.

    Returns:
        Bytes that this process received, its own among them.
    """
    if not has_others(group):
        return 0
    world, rank = distributed.get_world_size(group), distributed.get_rank(group)
    order, epoch = memory.fresh()
    # The earliest place known of each row, in int32 as the rows' numbers are; what nobody here has seen is last.
    last = torch.iinfo(torch.int32).max
    place = torch.arange(rank, rank + world * len(order), world, dtype=torch.int32, device=memory.device)
    earliest = torch.full((memory.num_samples,), last, dtype=torch.int32, device=memory.device)
    earliest.scatter_reduce_(0, order.clamp(min=0).long(), torch.where(order < 0, last, place), "amin")
    del order, place
    row = (earliest < last).nonzero().flatten()  # each once

    via = _device(memory, group)
    counts = _gather(torch.tensor([len(row), epoch], device=via), group).tolist()
    longest, epoch = max(count for count, _ in counts), max(epoch for _, epoch in counts)
    width = _pack(memory, earliest, row[:0]).shape[1]
    step = max(1, chunk // (world * width))
    for start in range(0, longest, step):
        size = min(step, longest - start)
        mine = _pack(memory, earliest, row[start : start + size]).to(via)
        padded = torch.zeros(size, width, dtype=torch.uint8, device=via)
        padded[: len(mine)] = mine
        received = _gather(padded, group)
        for other, (count, _) in enumerate(counts):
            if other != rank and count > start:
                _merge(memory, earliest, received[other, : count - start].to(memory.device), epoch)
    return int(world * width * longest)


def largest(values: Tensor, group: Any = None) -> None:
    """Replace each value by the largest that a process has in its place; collective, as `exchange` is."""
    if has_others(group):
        everyones = values.to(_device(values, group))
        distributed.all_reduce(everyones, distributed.ReduceOp.MAX, group)
        values.copy_(everyones)


def _pack(memory: "SoftLabelMemory", earliest: Tensor, row: Tensor) -> Tensor:
    """Return ``(n, bytes)``: the row, its place and its stored values side by side."""
    parts = [torch.stack([row.int(), earliest[row]], dim=1), *memory.take_out(row)]
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def _merge(memory: "SoftLabelMemory", earliest: Tensor, packed: Tensor, epoch: int) -> None:
    like = [torch.empty(0, 2, dtype=torch.int32), *memory.take_out(earliest[:0].long())]
    columns = packed.split_with_sizes([part.shape[1] * part.element_size() for part in like], dim=1)
    # Copied, for a view as wider numbers needs offset and strides that are multiples of their width.
    key, *parts = (c.new_empty(c.shape).copy_(c).view(part.dtype) for c, part in zip(columns, like, strict=True))
    better = key[:, 1] < earliest[key[:, 0]]
    row, place = key[better].unbind(dim=1)
    memory.put_in(row.long(), [part[better] for part in parts], epoch)
    earliest[row] = place


def _gather(mine: Tensor, group: Any) -> Tensor:
    """Return ``(processes, *shape)``."""
    everyones = mine.new_empty(distributed.get_world_size(group), *mine.shape)
    distributed.all_gather_into_tensor(everyones.view(-1, *mine.shape[1:]), mine, group=group)
    return everyones


def _device(memory: "SoftLabelMemory | Tensor", group: Any) -> torch.device:
    """Return where the backend takes tensors: on the host if it can, else where ``memory`` or the process works."""
    if "cpu:" in distributed.get_backend_config(group):
        return torch.device("cpu")
    return memory.device if memory.device.type != "cpu" else torch.device("cuda", torch.cuda.current_device())
