"""Small data sets in the file formats of the real ones."""

from collections.abc import Mapping
import hashlib
import io
from pathlib import Path
import pickle
import tarfile
import zipfile

import numpy as np
from PIL import Image
import pytest
from torchvision import datasets
from torchvision.datasets import imagenet

# Of the tench, the tabby and the two cranes.
WNIDS = ("n01440764", "n02012849", "n02123045", "n03126707")


def picture(seed: int, size: tuple[int, int] = (40, 48), kind: str = "JPEG") -> bytes:
    """An image of noise as a file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Files as a zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return archive.getvalue()


def tarred(files: Mapping[str, bytes], compression: str = "") -> bytes:
    """Files as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=f"w:{compression}") as file:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return archive.getvalue()


def unpack(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, and return it."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def kaggle(cats: int = 10, dogs: int = 10, tests: int = 4) -> bytes:
    """Kaggle's outer archive of Dogs vs Cats."""
    labelled = {f"train/cat.{n}.jpg": picture(n) for n in range(cats)}
    labelled |= {f"train/dog.{n}.jpg": picture(100 + n) for n in range(dogs)}
    unlabelled = {f"test/{n}.jpg": picture(200 + n) for n in range(1, tests + 1)}
    return zipped({"train.zip": zipped(labelled), "test.zip": zipped(unlabelled), "sample_submission.csv": b"id,label"})


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    """A folder of somebody's photos, a folder a class."""
    names = [f"{name}/{n}.png" for name in classes for n in range(count)]
    return unpack(folder, {name: picture(seed, kind="PNG") for seed, name in enumerate(names)})


def cifar(monkeypatch: pytest.MonkeyPatch, classes: int, train: int = 40, test: int = 20) -> dict[str, bytes]:
    """The files of CIFAR in torchvision's layout, which torchvision will take for the real ones by their checksums."""
    source = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    key, batches = ("labels", 5) if classes == 10 else ("fine_labels", 1)
    generator = np.random.default_rng(classes)

    def batch(count: int) -> bytes:
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return pickle.dumps({"data": data, key: [n % classes for n in range(count)]})

    files = {name: batch(train // batches) for name, _ in source.train_list}
    files |= {name: batch(test) for name, _ in source.test_list}
    files[source.meta["filename"]] = pickle.dumps({source.meta["key"]: [f"class {k}" for k in range(classes)]})
    md5 = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in files.items()}
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(source, part, [[name, md5[name]] for name, _ in getattr(source, part)])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5[source.meta["filename"]]})
    monkeypatch.setattr(source, "url", "file:///nowhere/" + source.filename)
    return {f"{source.base_folder}/{name}": data for name, data in files.items()}


def imagenet_folder(train: int = 3, val: int = 2) -> dict[str, bytes]:
    """Unpacked ImageNet of four classes, without what torchvision makes of the devkit."""
    counts = {"train": train, "val": val}
    names = [f"{split}/{w}/{w}_{n}.JPEG" for split, count in counts.items() for w in WNIDS for n in range(count)]
    return {name: picture(seed) for seed, name in enumerate(names)}


def imagenet_archives(monkeypatch: pytest.MonkeyPatch, train: int = 3, val: int = 2) -> dict[str, bytes]:
    """ImageNet's three archives, which torchvision will take for the real ones by their checksums."""
    files = imagenet_folder(train, val)

    def inner(wnid: str) -> bytes:
        prefix = f"train/{wnid}"
        return tarred({name.rpartition("/")[2]: data for name, data in files.items() if name.startswith(prefix)})

    # The validation images lie in no order of their classes; the devkit's numbers are not the networks' either.
    numbers = {wnid: 1 + k for k, wnid in enumerate(reversed(WNIDS))}
    shuffled = [(wnid, n) for n in range(val) for wnid in WNIDS]
    images = {
        f"ILSVRC2012_val_{place:08}.JPEG": files[f"val/{wnid}/{wnid}_{n}.JPEG"]
        for place, (wnid, n) in enumerate(shuffled, 1)
    }
    truth = "".join(f"{numbers[wnid]}\n" for wnid, _ in shuffled).encode()
    devkit = {"meta.mat": _meta(numbers), "ILSVRC2012_validation_ground_truth.txt": truth}
    archives = {
        "train": tarred({f"{wnid}.tar": inner(wnid) for wnid in WNIDS}),
        "val": tarred(images),
        "devkit": tarred({f"ILSVRC2012_devkit_t12/data/{name}": data for name, data in devkit.items()}, "gz"),
    }
    about = {
        part: (imagenet.ARCHIVE_META[part][0], hashlib.md5(data, usedforsecurity=False).hexdigest())
        for part, data in archives.items()
    }
    monkeypatch.setattr(imagenet, "ARCHIVE_META", about)
    return {about[part][0]: data for part, data in archives.items()}


def _meta(numbers: Mapping[str, int]) -> bytes:
    from scipy.io import savemat

    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
    ]
    rows = [(number, wnid, f"name of {wnid}, other", "gloss", 0) for wnid, number in numbers.items()]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array([*rows, (9, "n00001740", "entity", "gloss", 4)], dtype=kinds)})
    return file.getvalue()
