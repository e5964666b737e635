from types import SimpleNamespace
from typing import Any

import pytest
from toys import in_processes

from lit_distill.datamodules.machine import once_a_machine


def trainer(rank: int, machines: int = 1) -> Any:
    """A trainer of four processes, of which each machine has as many."""
    node, local = divmod(rank, 4 // machines)
    return SimpleNamespace(world_size=4, node_rank=node, local_rank=local)


@pytest.mark.parametrize("machines", [1, 2])
def test_the_first_process_of_each_machine_works_for_the_others(machines: int) -> None:
    def work(rank: int) -> tuple[list[int], int]:
        calls: list[int] = []
        result = once_a_machine(trainer(rank, machines), lambda: calls.append(rank) or {"rank": rank})  # type: ignore[func-returns-value]
        return calls, result["rank"]

    first = [4 // machines * (rank * machines // 4) for rank in range(4)]
    assert in_processes(4, work) == [([rank] if rank == owner else [], owner) for rank, owner in enumerate(first)]


def test_an_error_is_raised_in_all_processes() -> None:
    def fail() -> None:
        raise ValueError("no such folder")

    def work(rank: int) -> str:
        with pytest.raises(ValueError, match="no such folder") as caught:
            once_a_machine(trainer(rank), fail)
        return str(caught.value)

    assert in_processes(4, work) == ["no such folder"] * 4


def test_a_single_process_calls_it() -> None:
    assert once_a_machine(None, lambda: 3) == 3
