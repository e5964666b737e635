"""What keeps one test's process state from the next."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
import gc
import io
import logging
import multiprocessing
import os
from pathlib import Path
import signal
import sys
from typing import Any, NamedTuple
import warnings

import pytest
import torch

# The networks of the tests are tiny, and other tests may run beside. For this process and for those that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Python looks for garbage after 700 new objects by default, which takes a tenth of the tests' time.
gc.set_threshold(100_000, 20, 20)


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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of a GPU where there is none.

    Not by a mark with a condition: to look for a GPU while tests are collected would spoil the processes below.
    """
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _helpers(
    request: pytest.FixtureRequest, _key_of_its_own: None, _signals_of_a_terminal: None
) -> Iterator[dict[str, Callable[..., Any]]]:
    """Start the processes of the three fixtures below, if a test asks for them.

    They are forked before the first test: later this process may have asked for GPUs, and another one that imports
    everything anew takes seconds.
    """
    requested = {name for item in request.session.items for name in item.fixturenames}
    with ExitStack() as stack:
        yield {name: stack.enter_context(_process()) for name in ("away", "fresh", "unforked") if name in requested}


@pytest.fixture(scope="session")
def away(_helpers: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Call a function in another process, the same one for all tests.

    For what forks, which Lightning refuses where another test has asked for GPUs, be there any or not.
    """
    return _helpers["away"]


@pytest.fixture(scope="session")
def fresh(_helpers: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Call a function in a process for `test_resume.py` alone.

    For what forks a process that forks again: Lightning refuses that where this one has ever made a trainer.
    """
    return _helpers["fresh"]


@pytest.fixture(scope="session")
def unforked(_helpers: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Call a function in another process, the same one for all tests, which none of them may fork.

    For what must not be followed by a fork, such as an export to ONNX.
    """
    return _helpers["unforked"]


@contextmanager
def _process() -> Iterator[Callable[..., Any]]:
    from toys import begin_helper  # not above: Lightning would log elsewhere if it were imported before the tests

    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(1, context, begin_helper) as pool:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of a fork beside xdist's threads
            pool.submit(os.getpid).result()  # starts the process now
        yield lambda function, *args: pool.submit(function, *args).result()


class DigitsRun(NamedTuple):
    """A run of the command line: its folder, its last checkpoint, and what it printed."""

    folder: Path
    last: Path
    out: str


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, _key_of_its_own: None) -> Iterator[DigitsRun]:
    """Fit two epochs of the small digits, whose answer is the mean of the logits. Tests read its files, all of them.

    A test that writes beside the checkpoint copies it first.
    """
    from toys import SMALL_DIGITS

    from lit_distill.cli import main

    root, out = tmp_path_factory.mktemp("digits_run"), io.StringIO()
    with _process_state_restored(), pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(root)
        main(["fit", f"--config={SMALL_DIGITS}", "--trainer.max_epochs=2", "--model.head=mean_logits"])
    folder = root / "logs" / "digits" / "version_0"
    files = _modification_times(root)
    yield DigitsRun(folder, folder / "checkpoints" / "last.ckpt", out.getvalue())
    assert _modification_times(root) == files, "a test has changed the run that all tests share"


def _modification_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a test's seeds, threads and log handlers to itself."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with _process_state_restored():
        torch.manual_seed(0)
        yield


@contextmanager
def _process_state_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    handlers = [h for n in ("lightning.pytorch", "lightning.fabric") for h in logging.getLogger(n).handlers]
    streams = [(h, h.stream, list(h.filters)) for h in handlers if isinstance(h, logging.StreamHandler)]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for handler, stream, filters in streams:
            handler.stream, handler.filters = stream, filters
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            os.environ.pop(name, None)
