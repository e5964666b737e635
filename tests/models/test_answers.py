"""Answers on disk: what is written is read, and what is damaged is not there."""

from multiprocessing import get_context
import os
from pathlib import Path
import random
import signal
import time

import pytest
import torch

from lit_distill.files import DiskFullError
from lit_distill.models.answers import Answers

ROWS, STRIDE = 40, 3
MADE_OF = {"teacher": "a", "seed": "1"}


def answers(folder: Path, **kwargs: object) -> Answers:
    made_of = {**MADE_OF, **kwargs.pop("made_of", {})}
    return Answers(folder, "train", made_of, ROWS, STRIDE, **{"shard_rows": 8, **kwargs})


def right(view: int, index: torch.Tensor) -> torch.Tensor:
    """The rows that belong to these keys, each unlike any other."""
    return torch.stack([index + 1, (index * 7 + view) % 251, torch.full_like(index, view)], dim=1).to(torch.uint8)


def fill(store: Answers, view: int = 0, rows: torch.Tensor | None = None) -> None:
    rows = torch.randperm(ROWS) if rows is None else rows
    for part in rows.split(8):
        store.write(view, part, right(view, part))


def whole(view: int = 0) -> torch.Tensor:
    return right(view, torch.arange(ROWS))


def file_of(store: Answers, view: int = 0) -> Path:
    return store.folder / f"{view:05}.answers"


def test_a_view_is_there_once_all_rows_are(tmp_path) -> None:
    store = answers(tmp_path)
    fill(store, rows=torch.arange(30))
    store.merge(0)
    assert store.table(0) is None
    assert store.share(0) == 0.75
    fill(store, rows=torch.arange(25, 40))
    assert store.share(0) == 1.0
    store.merge(0)
    assert torch.equal(store.table(0), whole())
    assert torch.equal(answers(tmp_path).table(0), whole())
    assert store.table(1) is None
    assert store.views() == [0]
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", "00000.answers", "made_of.json"]


def test_rows_that_nobody_asks_for_need_not_be_there(tmp_path) -> None:
    wanted = torch.ones(ROWS, dtype=torch.bool)
    wanted[5] = False
    store = answers(tmp_path, wanted=wanted)
    fill(store, rows=wanted.nonzero().flatten())
    store.merge(0)
    table = store.table(0)
    assert torch.equal(table[wanted], whole()[wanted])


@pytest.mark.parametrize("made_of", [{"teacher": "b"}, {"seed": "2"}, {"extra": ""}])
def test_answers_of_other_things_are_others(tmp_path, made_of) -> None:
    fill(answers(tmp_path))
    answers(tmp_path).merge(0)
    other = answers(tmp_path, made_of=made_of)
    assert other.table(0) is None
    other.folder.mkdir()
    os.link(file_of(answers(tmp_path)), file_of(other))  # even if the file gets there
    assert other.table(0) is None
    store = answers(tmp_path)
    os.link(file_of(store), file_of(store, 1))  # or under another view's name
    assert store.table(1) is None


def test_a_flipped_bit_anywhere_costs_a_shard_at_most_and_is_refilled(tmp_path) -> None:
    store, rng = answers(tmp_path), random.Random(1)
    fill(store)
    store.merge(0)
    good = file_of(store).read_bytes()
    body = len(good) - ROWS * STRIDE
    for _ in range(60):
        place = rng.randrange(len(good))
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.randrange(8)
        file_of(store).write_bytes(damaged)
        fresh = answers(tmp_path)
        assert fresh.table(0) is None
        assert fresh.damaged
        if place >= body:
            assert fresh.share(0) == 1 - 8 / ROWS
            first = (place - body) // STRIDE // 8 * 8
            fill(fresh, rows=torch.arange(first, first + 8))
        else:
            fill(fresh)
        fresh.merge(0)
        assert torch.equal(fresh.table(0), whole())


def test_a_file_that_changes_while_it_is_read_is_seen(tmp_path) -> None:
    store = answers(tmp_path)
    fill(store)
    store.merge(0)
    assert store.table(0) is not None
    content = bytearray(file_of(store).read_bytes())
    content[-1] ^= 1
    file_of(store).write_bytes(content)
    assert store.table(0) is None


def test_a_truncated_file_loses_its_end_alone(tmp_path) -> None:
    store = answers(tmp_path)
    fill(store)
    store.merge(0)
    good = file_of(store).read_bytes()
    for length in range(0, len(good), 7):
        file_of(store).write_bytes(good[:length])
        fresh = answers(tmp_path)
        assert fresh.table(0) is None
        shards = max(0, length - (len(good) - ROWS * STRIDE)) // (8 * STRIDE)
        assert fresh.share(0) == shards * 8 / ROWS
    file_of(store).write_bytes(good + b"more")
    assert torch.equal(answers(tmp_path).table(0), whole())


def test_damaged_shards_are_left_out_and_removed(tmp_path) -> None:
    store = answers(tmp_path)
    fill(store)
    shards = sorted(store.folder.glob("*.shard"))
    content = bytearray(shards[0].read_bytes())
    content[20] ^= 4
    shards[0].write_bytes(content)
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    shards[2].write_bytes(b"")
    os.rename(shards[3], store.folder / "00001-0000.shard")  # another view's name
    store.merge(0)
    store.merge(1)
    assert store.share(0) == 1 / 5
    assert store.share(1) == 0
    assert list(store.folder.glob("*.shard")) == []


def _fill_for_ever(folder: Path) -> None:
    torch.set_num_threads(1)
    store = answers(folder)
    while True:
        for view in range(4):
            fill(store, view)
            store.merge(view)
            store.merge((view + 1) % 4)


def _assert_right(folder: Path) -> int:
    """Check all rows that are there, and return how many."""
    store, found = answers(folder), 0
    for view in range(4):
        merged = store._merged(view)
        if merged is not None:
            known = torch.from_numpy(merged.known)
            assert torch.equal(torch.from_numpy(merged.rows)[known], whole(view)[known])
            found += int(known.sum())
        for path in store._shards(view):
            index, rows = store._shard(view, path)
            assert torch.equal(torch.tensor(rows), right(view, torch.tensor(index).long()))
    assert store.damaged == 0
    return found


@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_moment_leaves_no_wrong_row(tmp_path, times: int) -> None:
    """Two at once, killed at different moments."""
    context, rng, found = get_context("fork"), random.Random(times), 0
    for _ in range(times):
        processes = [context.Process(target=_fill_for_ever, args=(tmp_path,), daemon=True) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            time.sleep(rng.uniform(0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        found = max(found, _assert_right(tmp_path))
    assert found > 0
    store = answers(tmp_path)
    for view in range(4):
        fill(store, view)
        store.merge(view)
        assert torch.equal(store.table(view), whole(view))


def _fill_some(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    store = answers(folder)
    for view in range(3):
        fill(store, view, torch.randperm(ROWS)[: ROWS // 2] // 2 * 2 + seed % 2)
        store.merge(view)
    for view in range(3):
        fill(store, view, torch.arange(seed % 2, ROWS, 2))
        store.merge(view)


def test_processes_that_write_and_merge_at_once_lose_nothing(tmp_path) -> None:
    context = get_context("fork")
    processes = [context.Process(target=_fill_some, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(500)
        assert process.exitcode == 0
    store = answers(tmp_path)
    for view in range(3):
        assert torch.equal(store.table(view), whole(view))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    store = answers(tmp_path)
    fill(store, rows=torch.arange(16))
    store.merge(0)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space left on device"):
        fill(store, rows=torch.arange(16, 24))
    monkeypatch.undo()
    assert store.share(0) == 16 / ROWS
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", "00000.answers", "made_of.json"]


def test_a_view_takes_its_rows_and_little_more(tmp_path) -> None:
    store = Answers(tmp_path, "train", MADE_OF, 25_000, 34)
    for part in torch.arange(25_000).split(4096):
        store.write(0, part, torch.zeros(len(part), 34, dtype=torch.uint8))
    store.merge(0)
    assert file_of(store).stat().st_size / 25_000 < 36
    assert Answers(tmp_path, "train", MADE_OF, 25_000, 34).table(0).shape == (25_000, 34)
