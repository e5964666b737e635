"""Folders as people have them."""

import os
from pathlib import Path
import socket

import pytest
from toys import make_photos

from lit_distill.datamodules import walk
from lit_distill.datamodules.walk import folders_in, photos_in, printable


def test_junk_of_file_managers_and_archives_is_no_photo_and_not_worth_a_word(tmp_path) -> None:
    make_photos(tmp_path, ["a.jpg", "b/c.png"])
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "b/desktop.ini", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("__MACOSX/._a.jpg", "$RECYCLE.BIN/d.jpg", "lost+found/e.jpg", "b/#recycle/f.png", ".git/g.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = photos_in(tmp_path, tmp_path)
    assert (found.names, found.told()) == (["a.jpg", "b/c.png"], "")
    assert [folder.name for folder in folders_in(tmp_path)] == ["b"]


def test_what_is_no_image_by_its_suffix_is_counted(tmp_path) -> None:
    make_photos(tmp_path, ["a.JPG", "b.webp", "c.tiff"])
    for name in ("README.txt", "a.JPG.json", "video.mov", "video.mpg", "raw.NEF", "table.h5", "a.jpg_original"):
        (tmp_path / name).write_bytes((tmp_path / "a.JPG").read_bytes())
    found = photos_in(tmp_path, tmp_path)
    assert found.names == ["a.JPG", "b.webp", "c.tiff"]
    assert found.told() == "left out: no image by its name: README.txt and 6 more"


def test_a_file_without_suffix_is_one_by_its_first_bytes(tmp_path) -> None:
    make_photos(tmp_path, ["a.png"])
    (tmp_path / "0a1b2c").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "LICENSE").write_text("no image")
    (tmp_path / "core").write_bytes(b"II*\0\x08\0\0\0\xff\xff")  # begins like a TIFF file, and is none
    found = photos_in(tmp_path, tmp_path)
    assert found.names == ["0a1b2c", "a.png"]
    assert found.told() == "left out: no image by its name: LICENSE and 1 more"


def test_heic_names_what_reads_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "IMG_1.HEIC").touch()
    without = frozenset({".jpg"})
    monkeypatch.setattr(walk, "photo_suffixes", lambda: without)
    found = photos_in(tmp_path, tmp_path)
    assert found.names == []
    assert found.told() == "left out: HEIC, which is read after pip install 'lit-distill[heif]': IMG_1.HEIC"
    monkeypatch.setattr(walk, "photo_suffixes", lambda: without | {".heic"})
    assert photos_in(tmp_path, tmp_path).names == ["IMG_1.HEIC"]


LOOPS = {
    "a parent": {"photos/cat/up": ".."},
    "itself": {"photos/cat/self": "."},
    "everything": {"photos/cat/all": "/"},
    "a link to itself": {"photos/cat/me": "me"},
    "around the outside": {"photos/cat/out": "../../outside", "outside/in": "../photos"},
    "outside, twice": {"photos/cat/out": "../../outside", "photos/cat/again": "../../outside/deep"},
    "outside, and up from there": {"photos/cat/out": "../../outside/deep", "outside/deep/up": ".."},
    "files": {"photos/cat/copy.png": "1.png", "photos/cat/0.png": "../cat/2.png"},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_no_link_brings_a_photo_twice(tmp_path, loop: str) -> None:
    make_photos(tmp_path / "photos", ["cat/1.png", "cat/2.png", "dog/1.png"])
    make_photos(tmp_path / "outside", ["deep/x.png"])
    for name, target in LOOPS[loop].items():
        (tmp_path / name).symlink_to(target)
    found = photos_in(tmp_path / "photos/cat", tmp_path / "photos")
    outside = [name for name in found.names if name.endswith("x.png")]
    assert [name for name in found.names if name not in outside] == ["cat/1.png", "cat/2.png"]
    assert len(outside) == ("outside" in loop)
    assert "link" in str(found.told())


def test_links_elsewhere_are_followed(tmp_path) -> None:
    make_photos(tmp_path / "pool", ["a.png", "b.png", "c/d.png"])
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/cat/z.png").symlink_to("../../pool/a.png")
    (tmp_path / "photos/cat/c").symlink_to("../../pool/c")
    (tmp_path / "photos/dog").symlink_to("../pool")
    photos = tmp_path / "photos"
    assert photos_in(photos / "cat", photos).names == ["cat/z.png", "cat/c/d.png"]
    assert photos_in(photos / "dog", photos).names == ["dog/a.png", "dog/b.png", "dog/c/d.png"]
    assert [folder.name for folder in folders_in(photos)] == ["cat", "dog"]


def test_broken_links_pipes_and_sockets_are_counted(tmp_path, monkeypatch) -> None:
    make_photos(tmp_path, ["a.png"])
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        found = photos_in(tmp_path, tmp_path)
    assert found.names == ["a.png"]
    assert found.told() == "left out: broken link: gone.png; pipe, socket or device: pipe.png and 1 more"


def test_the_order_is_that_of_the_names_however_they_come(tmp_path) -> None:
    make_photos(tmp_path, ["b/2.png", "b/a/3.png", "a/9.png", "z.png", "b/10.png"])
    make_photos(tmp_path.with_name("elsewhere"), ["1.png"])
    (tmp_path / "aa").symlink_to(tmp_path.with_name("elsewhere"))
    names = photos_in(tmp_path, tmp_path).names
    assert names == ["z.png", "a/9.png", "aa/1.png", "b/10.png", "b/2.png", "b/a/3.png"]


def test_any_name_can_be_printed_and_written() -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88\t.jpg")
    assert printable(name) == "caf\\xe9 🐈\\x09.jpg"
    printable(name).encode()
    assert printable("plain/name.jpg") == "plain/name.jpg"
    assert Path(name).name == name
