"""What keeps one test's process state from the next."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
import logging
import multiprocessing
import os
import signal
from typing import Any

import pytest
import torch

# The networks of the tests are tiny, and other tests may run beside. For this process and for those that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _key_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sign the tests' checkpoints with a key of the tests, not with the user's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> None:
    """Hear the signals that nohup, or a shell that starts a job in the background, has had ignored."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a GPU last: a process that has used one cannot be forked any more."""
    items.sort(key=lambda item: item.get_closest_marker("gpu") is not None)


@pytest.fixture(scope="session")
def away() -> Iterator[Callable[..., Any]]:
    """Call a function in another process, the same one for all tests, since it takes seconds to start.

    For what forks, which Lightning refuses where another test has asked for GPUs, be there any or not.
    """
    yield from _process()


@pytest.fixture(scope="module")
def fresh() -> Iterator[Callable[..., Any]]:
    """Call a function in a process that no other module's tests have used.

    For what forks a process that forks again: Lightning refuses that where this one has ever made a trainer.
    """
    yield from _process()


@pytest.fixture(scope="session")
def unforked() -> Iterator[Callable[..., Any]]:
    """Call a function in another process, the same one for all tests, which none of them may fork.

    For what must not be followed by a fork: an export to ONNX; a command, which may ask for GPUs.
    """
    yield from _process()


def _process() -> Iterator[Callable[..., Any]]:
    from toys import fork_workers  # not above: Lightning would log elsewhere if it were imported before the tests

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), fork_workers) as process:
        yield lambda function, *args: process.submit(function, *args).result()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a test's seeds, threads and log handlers to itself."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    threads = torch.get_num_threads()
    handlers = [h for n in ("lightning.pytorch", "lightning.fabric") for h in logging.getLogger(n).handlers]
    streams = [(h, h.stream, list(h.filters)) for h in handlers if isinstance(h, logging.StreamHandler)]
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    for handler, stream, filters in streams:
        handler.stream, handler.filters = stream, filters
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
