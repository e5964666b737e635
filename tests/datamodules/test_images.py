from collections.abc import Callable
import io
import os
import pickle

import numpy as np
from PIL import Image
import pytest
import torch

from lit_distill.datamodules.images import Files, ImageFiles

GRADIENT = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def written(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def test_names_are_packed_whatever_their_bytes(tmp_path) -> None:
    names = ["a.jpg", "ü/é.png", os.fsdecode(b"\xff\xfe.jpg"), "", "x" * 300]
    files = Files(tmp_path, names)
    assert list(files) == names
    assert [files[i] for i in range(5)] == names
    with pytest.raises(IndexError):
        files[5]
    (tmp_path / "ü").mkdir()
    (tmp_path / "ü/é.png").write_bytes(b"bytes")
    assert files.open(1).read() == b"bytes"
    assert list(pickle.loads(pickle.dumps(files))) == names


def test_the_digest_knows_every_change(tmp_path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"1")
        os.utime(tmp_path / name, ns=(5, 5))

    def digest(how: int = 1, names: str = "ab") -> str:
        return Files(tmp_path, names).digest(how)

    first = digest()
    assert first == digest()
    assert first != digest(how=2)
    assert first != digest(names="ba")
    os.utime(tmp_path / "a", ns=(6, 6))
    assert first != digest()
    os.utime(tmp_path / "a", ns=(5, 5))
    (tmp_path / "b").write_bytes(b"12")
    os.utime(tmp_path / "b", ns=(5, 5))
    assert first != digest()


def test_a_row_is_image_and_target(tmp_path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    transform: Callable[[Image.Image], torch.Tensor] = lambda image: torch.from_numpy(np.array(image))  # noqa: E731
    data = ImageFiles(Files(tmp_path, ["a.png", "b.png", "c.png"]), [4, 5, 6], transform)
    pixels, target = data[0]
    assert torch.equal(pixels, torch.from_numpy(GRADIENT))
    assert target == 4
    with pytest.raises(ValueError, match=r"cannot read the image b\.png: cannot identify image file$"):
        data[1]
    with pytest.raises(ValueError, match=r"cannot read the image c\.png: .*No such file"):
        data[2]
