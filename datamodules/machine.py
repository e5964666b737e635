"""Work that one process of a machine does for all of them."""

from collections.abc import Callable
import pickle
from typing import TypeVar

from lightning.pytorch import Trainer
from torch import distributed

Result = TypeVar("Result")


def once_a_machine(trainer: Trainer | None, make: Callable[[], Result]) -> Result:
    """Call ``make`` in the first process of each machine; all others get a copy of what it returned.

    A copy is pickled, so `DecodedImages` in it map the same memory.

    Args:
        trainer: Says which processes there are; all of them must call this. None is a single process.
        make: What to do. An error that it raises is raised in all processes of the machine.
    """
    if trainer is None or trainer.world_size == 1:
        return make()
    results: list[Result] = []  # of this process, if it is the first
    answer: bytes | Exception = b""
    if trainer.local_rank == 0:
        try:
            results.append(make())
            answer = pickle.dumps(results[0])
        except Exception as error:  # the others wait below, and must not wait for ever
            answer = error
    # The bytes, because unpickling images maps their memory, which other machines do not have.
    answers: list[tuple[int, int, bytes | Exception]] = [(0, 0, b"")] * trainer.world_size
    distributed.all_gather_object(answers, (trainer.node_rank, trainer.local_rank, answer))
    answer = next(answer for node, process, answer in answers if (node, process) == (trainer.node_rank, 0))
    try:
        if isinstance(answer, Exception):
            raise answer
        return results[0] if results else pickle.loads(answer)  # noqa: S301  # from a process of this training
    finally:
        distributed.barrier()  # the first process may end only after the others have mapped its memory
