"""A checkpoint is whole or not there, and a damaged one is found out before anything is loaded from it."""

import multiprocessing
import os
from pathlib import Path
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from toys import Foreign, toy_loader, trainer

from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.checkpoint import AtomicCheckpointIO, check_archive
from lit_distill.files import DiskFullError


def test_what_is_saved_is_what_is_loaded_and_nothing_else_is_left(tmp_path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "new" / "a.ckpt"
    for value in (1, 2):  # the second over the first
        io.save_checkpoint({"weights": torch.full((3,), value)}, path)
        assert io.load_checkpoint(path, weights_only=True)["weights"].tolist() == [value] * 3
        assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"weights": torch.ones(3)}, path)

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"weights": torch.zeros(3)}, path)
    assert io.load_checkpoint(path, weights_only=True)["weights"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    else:  # a bit in the middle of the largest record, which torch.load does not see
        data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_a_full_disk_is_said_in_one_line(tmp_path) -> None:
    """As torch comes upon it: its own error is about a position in the file."""
    resource = pytest.importorskip("resource")
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"weights": torch.ones(3)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DiskFullError) as error:
            io.save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (
        str(error.value) == f"File too large: {path} was not written, no other file was changed: make room, then go on"
    )
    assert io.load_checkpoint(path, weights_only=True)["weights"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def write(path: Path, value: int, times: int) -> None:
    for _ in range(times):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.full((20_000,), value)}, path)


@pytest.mark.slow
def test_two_processes_may_write_the_same_file(tmp_path) -> None:
    path, context = tmp_path / "a.ckpt", multiprocessing.get_context("spawn")
    write(path, 0, 1)
    writers = [context.Process(target=write, args=(path, value, 30)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    looks = 0
    while looks < 30 or any(writer.is_alive() for writer in writers):
        weights = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["weights"]
        assert (weights == weights[0]).all()
        looks += 1
    assert [writer.exitcode for writer in writers if writer.join() is None] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_parts_that_nobody_writes_any_more_are_swept(tmp_path) -> None:
    host, gone = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old, kept = (
        [f".last.ckpt.{host}.{gone.pid}.part", ".b.ckpt.other.7.part", ".last.ckpt.part"],
        [
            f".best-epoch=1.ckpt.{host}.{os.getppid()}.part",
            ".a.ckpt.other.8.part",
            ".notes.part",
        ],
    )
    for name in [*old, *kept]:
        (tmp_path / name).touch()
    os.utime(tmp_path / old[1], (0, 0))
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert {file.name for file in tmp_path.iterdir()} == {"a.ckpt", *kept}


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_a_damaged_file_is_named(tmp_path, how: str) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"weights": torch.randn(1000)}, path)
    check_archive(path)
    damage(path, how)
    with pytest.raises(ValueError, match=r"the checkpoint .*a.ckpt is damaged \(.*\): resume from another one"):
        check_archive(path)
    with pytest.raises(ValueError, match="is damaged"):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.mark.slow
def test_any_flipped_bit_is_found_or_does_no_harm(tmp_path) -> None:
    path, content = tmp_path / "a.ckpt", {"weights": torch.randn(5), "lists": [1, {"a": 2.5}], "text": "abc"}
    torch.save(content, path)
    data = path.read_bytes()
    found = 0
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
        except ValueError as error:
            assert f"the checkpoint {path} is damaged" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            found += 1
        else:
            assert torch.equal(loaded["weights"], content["weights"]), place
            assert loaded["lists"] == content["lists"]
            assert loaded["text"] == content["text"]
    assert found > 8 * len(data) / 2


def test_what_is_no_file_is_left_to_whoever_loads_it(tmp_path) -> None:
    check_archive(tmp_path)
    check_archive(tmp_path / "missing.ckpt")
    with pytest.raises(FileNotFoundError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "missing.ckpt")


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_run_is_not_resumed_from_a_damaged_one(tmp_path, how: str) -> None:
    """Nor need the trainer be told: the callback gives it this way of reading and writing."""
    run = trainer(max_epochs=2, callbacks=LearningWithRetrospection(1))
    run.fit(Foreign(), toy_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    damage(tmp_path / "a.ckpt", how)
    damaged = (tmp_path / "a.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"a.ckpt is damaged"):
        trainer(max_epochs=3, callbacks=LearningWithRetrospection(1)).fit(
            Foreign(), toy_loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )
    assert (tmp_path / "a.ckpt").read_bytes() == damaged
