import io
import os
from pathlib import Path
import pickle
import stat
import zipfile

import numpy as np
from PIL import Image
import pytest
import torch
from torch.utils.data import DataLoader
from toys import make_photos

from lit_distill.datamodules import zips
from lit_distill.datamodules.images import Files, ImageFiles, content_key, size_and_crc
from lit_distill.datamodules.zips import ZipArchive, ZipFiles
from lit_distill.identity import identities

CONTENT = {f"train/{number}.bin": os.urandom(50 * number) for number in range(6)}


def made(path: Path, content: dict[str, bytes] | None = None, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.mkdir("train")
        for name, data in (CONTENT if content is None else content).items():
            file.writestr(name, data)
    return path


def read(files: ZipFiles) -> dict[str, bytes]:
    return {name: files.open(row).read() for row, name in enumerate(files)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_as_zipfile_reads_them(tmp_path: Path, method: int) -> None:
    path = made(tmp_path / "a.zip", method=method)
    assert read(ZipFiles(path)) == CONTENT
    chosen = ZipFiles(path, ["train/5.bin", "train/2.bin"])
    assert list(chosen) == ["train/5.bin", "train/2.bin"]
    assert chosen.open(1).read() == CONTENT["train/2.bin"]
    assert chosen.stamp(0) == f"250 {zipfile.ZipFile(path).getinfo('train/5.bin').CRC:08x}"
    with pytest.raises(ValueError, match=r"has no member train/9\.bin"):
        ZipFiles(path, ["train/9.bin"])


def test_what_stands_before_the_archive_is_passed_over(tmp_path: Path) -> None:
    path = made(tmp_path / "a.zip")
    path.write_bytes(b"#!/bin/sh self-extracting" + path.read_bytes())
    assert read(ZipFiles(path)) == CONTENT


def test_the_digest_follows_content_and_not_the_packing(tmp_path: Path) -> None:
    first = ZipFiles(made(tmp_path / "a.zip")).digest()
    assert ZipFiles(made(tmp_path / "b.zip", method=zipfile.ZIP_STORED)).digest() == first
    assert ZipFiles(made(tmp_path / "c.zip", {**CONTENT, "train/3.bin": b"other"})).digest() != first


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_at_the_same_time_without_getting_in_each_others_way(tmp_path: Path, method: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 24, 24, 3), dtype=np.uint8)
    content = {}
    for row, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        content[f"{row}.png"] = file.getvalue()
    data = ImageFiles(ZipFiles(made(tmp_path / "a.zip", content)), range(64), np.array)
    loader = DataLoader(data, 4, num_workers=2, multiprocessing_context=method, generator=torch.Generator())
    assert torch.equal(torch.cat([batch for batch, _ in loader]), torch.from_numpy(images))


def test_a_pickled_copy_holds_no_names_or_bytes_twice_and_opens_the_file_itself(tmp_path: Path) -> None:
    files = ZipFiles(made(tmp_path / "a.zip"))
    copy = pickle.loads(pickle.dumps(files))
    assert copy.archive._file != files.archive._file
    del files
    assert read(copy) == CONTENT


def test_an_archive_stored_in_another_is_read_in_place(tmp_path: Path) -> None:
    inner = made(tmp_path / "train.zip").read_bytes()
    outer = made(tmp_path / "outer.zip", {"readme.txt": b"...", "deep/train.zip": inner}, zipfile.ZIP_STORED)
    (tmp_path / "train.zip").unlink()
    files = ZipFiles(ZipArchive(outer).within("deep/train.zip"))
    assert read(files) == read(pickle.loads(pickle.dumps(files))) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["outer.zip"]


def test_an_archive_compressed_in_another_is_unpacked_once_beside_it(tmp_path: Path) -> None:
    inner = made(tmp_path / "train.zip").read_bytes()
    outer = made(tmp_path / "outer.zip", {"train.zip": inner})
    (tmp_path / "train.zip").unlink()
    assert read(ZipFiles(ZipArchive(outer).within("train.zip"))) == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outer.zip", "train.zip"]
    before = (tmp_path / "train.zip").stat().st_mtime_ns
    assert read(ZipFiles(ZipArchive(outer).within("train.zip"))) == CONTENT
    assert (tmp_path / "train.zip").stat().st_mtime_ns == before
    (tmp_path / "train.zip").write_bytes(b"another's")
    with pytest.raises(ValueError, match=r"train\.zip is not the train\.zip that is in .*outer\.zip: move one"):
        ZipArchive(outer).within("train.zip")


def test_where_nothing_can_be_written_a_temporary_file_serves_for_as_long_as_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = made(tmp_path / "train.zip").read_bytes()
    outer = made(tmp_path / "outer.zip", {"train.zip": inner})
    (tmp_path / "train.zip").unlink()

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    files = ZipFiles(ZipArchive(outer).within("train.zip"))
    assert read(files) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["outer.zip"]
    path = files.archive.path
    assert path.exists()
    del files
    assert not path.exists()


def test_a_cut_off_unpacking_leaves_nothing_behind(tmp_path: Path) -> None:
    outer = made(tmp_path / "outer.zip", {"train.zip": os.urandom(5000)})
    damaged = bytearray(outer.read_bytes())
    damaged[3000] ^= 255
    outer.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cannot unpack train\.zip in .*outer\.zip: "):
        ZipArchive(outer).within("train.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["outer.zip"]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("../cat.0.jpg", "leads out of the archive"),
        ("train/../../cat.0.jpg", "leads out of the archive"),
        ("train\\..\\cat.0.jpg", "leads out of the archive"),
        ("/etc/passwd", "has an absolute name"),
        ("C:/cat.0.jpg", "has an absolute name"),
        ("\\\\host\\cat.0.jpg", "has an absolute name"),
    ],
)
def test_names_are_not_trusted(tmp_path: Path, name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.zip is not read: its member .* {wrong}$") as caught:
        ZipFiles(made(tmp_path / "a.zip", {"train/1.jpg": b"", name: b""}))
    assert "\n" not in str(caught.value)


def test_links_twins_and_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("cat.0.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"'cat\.0\.jpg' is a link or a device"):
        ZipFiles(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.jpg", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.jpg", "2")
    with pytest.raises(ValueError, match=r"'a\.jpg' is there twice"):
        ZipFiles(path)
    made(path, {"a.jpg": b"1"})
    patched = bytearray(path.read_bytes())
    patched[patched.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(patched)
    with pytest.raises(ValueError, match=r"'a\.jpg' is encrypted"):
        ZipFiles(path)


def test_bombs_are_refused_by_what_they_say_and_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "a.zip", {"a.jpg": bytes(10_000_000)})
    with pytest.raises(ValueError, match=r"'a\.jpg' takes more than 1000 times its packed size"):
        ZipFiles(path)
    path = made(tmp_path / "b.zip", {"a.jpg": os.urandom(2000), "b.jpg": os.urandom(2000)})
    for name, limit, said in (
        ("_MEMBER", 1999, "takes more than 1 GB"),
        ("_TOTAL", 3999, "more than 200 GB"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(zips, name, limit)
            with pytest.raises(ValueError, match=said):
                ZipFiles(path)
    # One that says it is small: what it would become is never made.
    path = made(tmp_path / "c.zip", {"a.jpg": bytes(500_000)})
    patched = bytearray(path.read_bytes())
    at = patched.rindex(b"PK\1\2") + 24
    patched[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(patched)
    with pytest.raises(OSError, match="length or checksum"):
        ZipFiles(path).open(0)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "a.zip", {"a.jpg": os.urandom(1000), "b.jpg": b"1"}, zipfile.ZIP_STORED)
    patched = bytearray(path.read_bytes())
    at = patched.rindex(b"PK\1\2")
    patched[at + 20 : at + 28] = (1200).to_bytes(4, "little") * 2
    path.write_bytes(patched)
    with pytest.raises(ValueError, match="its members overlap, or it was cut off"):
        ZipFiles(path)


def test_damage_is_one_line_of_the_archive_or_of_the_member(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the archive .*none\.zip: No such file"):
        ZipFiles(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"cannot read the archive .*: Is a directory"):
        ZipFiles(tmp_path)
    path = made(tmp_path / "a.zip")
    whole = path.read_bytes()
    for data in (b"", b"id,label\n1,0.5\n", whole[: len(whole) // 2], whole[-60:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.zip is (no zip archive|not read)") as caught:
            ZipFiles(path)
        assert "\n" not in str(caught.value)
    made(path, {"a.jpg": b"1" * 1000, "b.jpg": os.urandom(1000), "c.jpg": b"3"})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"b.jpg") + 500] ^= 255
    damaged[damaged.index(b"PK\3\4", damaged.index(b"b.jpg")) + 26] ^= 255  # the length of a name
    path.write_bytes(damaged)
    files = ZipFiles(path)
    assert files.open(0).read() == b"1" * 1000
    with pytest.raises(ValueError, match=r"cannot read the image b\.jpg: "):
        ImageFiles(files, [0, 0, 0])[1]
    with pytest.raises(OSError, match="length or checksum"):
        files.open(2)
    with pytest.raises(ValueError, match=r"'odd\.bin' is not compressed by deflate"):
        ZipFiles(made(tmp_path / "b.zip", {"odd.bin": b"1"}, zipfile.ZIP_BZIP2))


def test_a_member_is_known_as_the_file_that_was_packed(tmp_path) -> None:
    make_photos(tmp_path, ["cat/1.png", "dog/2.png"])
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "photos.zip", "w", method) as file:
            for name in ("cat/1.png", "dog/2.png"):
                file.write(tmp_path / name, name)
        packed, loose = ZipFiles(tmp_path / "photos.zip"), Files(tmp_path, ["cat/1.png", "dog/2.png"])
        contents = torch.tensor([content_key(*size_and_crc(tmp_path / name)) for name in loose])
        assert torch.equal(packed.identities(), identities(loose, contents))
