from multiprocessing import get_context
import os
from pathlib import Path
import pickle
import signal
import time

import numpy as np
import pytest
from toys import MIXED, mixed_files, same_image

from lit_distill.datamodules import decoded
from lit_distill.datamodules.decoded import DecodedImages, free_memory
from lit_distill.datamodules.scan import read_all


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shrink", [None, 16])
def test_decoded_images_are_those_of_the_files(tmp_path, mode, workers: int, shrink: int | None) -> None:
    data = mixed_files(tmp_path, mode, shrink)
    reading = read_all(data, budget=10**9, workers=workers)
    assert reading.damaged == {}
    images = reading.decoded
    assert images is not None
    assert len(images) == len(MIXED)
    assert all(same_image(images[i], data.image(i)) for i in range(len(MIXED)))
    assert reading.sizes.tolist() == [[image.height, image.width] for image in images]
    data.decoded = images
    assert same_image(data.image(3), images[3])


def _checksum(images: DecodedImages, queue=None) -> int:
    total = sum(int(np.asarray(image, dtype=np.int64).sum()) for image in images)
    if queue is not None:
        queue.put(total)
    return total


def test_another_process_maps_the_same_bytes(tmp_path, away) -> None:
    images = read_all(mixed_files(tmp_path), budget=10**9).decoded
    assert images is not None
    assert len(pickle.dumps(images)) < images.nbytes / 10
    assert away(_checksum, images) == _checksum(images)
    context = get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_checksum, args=(images, queue))
    process.start()
    assert queue.get(timeout=500) == _checksum(images)
    process.join()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a name is Linux's")
def test_nothing_is_left_behind_by_a_process_that_was_killed(tmp_path) -> None:
    data, place = mixed_files(tmp_path), tmp_path / "place"

    def decode_and_wait() -> None:
        images = read_all(data, budget=10**9).decoded
        assert images is not None
        place.write_text(f"{images.path} {Path(images.path).exists()}")
        signal.pause()

    before = set(Path("/dev/shm").iterdir())
    process = get_context("fork").Process(target=decode_and_wait)
    process.start()
    while not place.exists() or not place.read_text():
        assert process.is_alive()
        time.sleep(0.01)
    path, exists = place.read_text().split()
    assert path.startswith(f"/proc/{process.pid}/")
    assert exists == "True"
    process.kill()
    process.join()
    assert not Path(path).exists()
    assert set(Path("/dev/shm").iterdir()) == before


def test_without_memory_that_has_no_name_it_is_a_temporary_file(tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(decoded.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = mixed_files(tmp_path)
    images = read_all(data, budget=10**9).decoded
    assert images is not None
    assert [path.stat().st_size for path in (tmp_path / "temporary").iterdir()] == [images.nbytes]
    again = pickle.loads(pickle.dumps(images))
    assert same_image(again[4], data.image(4))
    del images
    assert not list((tmp_path / "temporary").iterdir())
    read_all(data, budget=100)
    assert not list((tmp_path / "temporary").iterdir())


def test_free_memory_is_that_of_the_container_if_it_is_less(monkeypatch) -> None:
    assert 0 < free_memory() < 2**50
    original = Path.read_text

    def read_text(self, *args, **kwargs):
        fakes = {
            "/sys/fs/cgroup/memory.max": "1000000",
            "/sys/fs/cgroup/memory.stat": "anon 300000\nfile 5\nshmem 100000",
        }
        return fakes.get(str(self)) or original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert free_memory() == 600_000
