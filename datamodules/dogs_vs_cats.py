"""Kaggle's Dogs vs Cats."""

from collections.abc import Iterable, Iterator, Sequence
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from sklearn.model_selection import train_test_split
import torch
from torch import Tensor

from lit_distill.datamodules.from_files import FilesDataModule, Labelled, Split
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.walk import photos_in
from lit_distill.datamodules.zips import ZipArchive, ZipFiles

_CLASSES = ("cat", "dog")
_TRAIN = re.compile(r"(?:.*/)?(cat|dog)\.(\d+)\.jpe?g", re.IGNORECASE)
_TEST = re.compile(r"(?:.*/)?()(\d+)\.jpe?g", re.IGNORECASE)
_EXPECTED = (
    "expected Kaggle's dogs-vs-cats.zip or dogs-vs-cats-redux-kernels-edition.zip, the train.zip in it, "
    "or a folder with one of them or with train/cat.0.jpg, train/dog.0.jpg, ..."
)
_FEWEST = 5  # of each class, so that a fifth is an image


class DogsVsCatsDataModule(FilesDataModule):
    """25,000 photos of cats and dogs, as Kaggle has them to download.

    80/20 stratified split, always with seed 42: scikit-learn's ``train_test_split`` of the photos in the order cat 0,
    cat 1, ..., dog 0, dog 1, ..., whatever the order in the archive or folder. The fifth that is held out serves
    validation and testing, so compare runs by their last epoch, not by their best. The photos without label are those
    to predict, in the order of their numbers; the command ``predict`` writes them as Kaggle wants them.

    Archives are read in place; only a ``train.zip`` that is compressed within the download is unpacked once, beside it.

    Args:
        root: Kaggle's download: ``dogs-vs-cats.zip`` or ``dogs-vs-cats-redux-kernels-edition.zip``; the ``train.zip``
            in it, with ``test.zip`` or ``test1.zip`` beside it if there is one; or a folder with any of these, or with
            ``train/cat.0.jpg``, ``train/dog.0.jpg``, ... and ``test/1.jpg`` or ``test1/1.jpg``, ...
        **kwargs: All other arguments of `FilesDataModule`.

    Raises:
        ValueError: If ``root`` is not there or is something else, an archive is damaged or not to be trusted, a photo
            is there twice, or there are fewer than five of cats or of dogs.

    Source:
        kaggle.com/c/dogs-vs-cats and kaggle.com/c/dogs-vs-cats-redux-kernels-edition; Elson et al., "Asirra", 2007.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train = Path(folder, "train")
        ...     train.mkdir()
        ...     for name in ("cat", "dog"):
        ...         for number in range(10):
        ...             (train / f"{name}.{number}.jpg").touch()
        ...     list(DogsVsCatsDataModule(folder).splits["val"].files)
        ['train/cat.3.jpg', 'train/cat.6.jpg', 'train/dog.2.jpg', 'train/dog.6.jpg']
    """

    num_classes = 2
    class_names = _CLASSES

    def __init__(self, root: str | Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.scan_file = (self.root if self.root.is_dir() else self.root.parent) / ".lit_distill" / "dogs_vs_cats.json"
        labelled = _find(self.root, _TRAIN, "train")
        if labelled is None:
            raise ValueError(f"{self.root} {_content(self.root)}: {_EXPECTED}")
        targets = torch.tensor([_CLASSES.index(name) for name, _ in labelled.names])
        cats, dogs = torch.bincount(targets, minlength=2).tolist()
        if min(cats, dogs) < _FEWEST:
            raise ValueError(
                f"{self.root} has {cats} cats and {dogs} dogs: expected {_FEWEST} or more of each, "
                "and 12,500 in Kaggle's download"
            )
        names = [*labelled.names.values()]
        rows = train_test_split(range(len(names)), test_size=0.2, stratify=targets, random_state=42)
        sides: tuple[Split, Split] = ("train", "val")
        for split, chosen in zip(sides, map(sorted, rows), strict=True):
            self.splits[split] = Labelled(labelled.files([names[row] for row in chosen]), targets[chosen])
        self._numbers: list[int] = []
        if unlabelled := _find(self.root, _TEST, "test", "test1"):
            self._numbers = [number for _, number in unlabelled.names]
            targets = torch.full((len(self._numbers),), -1)
            self.splits["predict"] = Labelled(unlabelled.files(unlabelled.names.values()), targets)

    def submission(self, probabilities: Tensor) -> tuple[Sequence[str], Sequence[Sequence[object]]] | None:
        """Return the table that Kaggle wants: its head, and a row a photo without label, by number.

        Its label is the probability of a dog; that of a photo left out as damaged is 0.5.

        Args:
            probabilities: ``(N, 2)``, of the photos in the order of ``names("predict")``.

        Returns:
            None if there are no photos without label.

        Raises:
            ValueError: If N is another number than there are photos that can be read.
        """
        if "predict" not in self.splits:
            return None
        names, readable = self.splits["predict"].files, self.names("predict")
        if len(probabilities) != len(readable):
            raise ValueError(f"expected predictions of all {len(readable)} photos, got {len(probabilities)}")
        dogs = dict(zip(readable, probabilities[:, _CLASSES.index("dog")].tolist(), strict=True))
        numbered = zip(self._numbers, names, strict=True)
        return ["id", "label"], [[number, f"{dogs.get(name, 0.5):.9g}"] for number, name in numbered]


class _Photos(NamedTuple):
    """Photos in a folder or an archive: the name of each, by class and number."""

    where: Path | ZipArchive
    names: dict[tuple[str, int], str]

    def files(self, names: Iterable[str]) -> Files:
        return ZipFiles(self.where, names) if isinstance(self.where, ZipArchive) else Files(self.where, names)


def _find(root: Path, pattern: re.Pattern[str], *places: str) -> _Photos | None:
    """Return the photos that match, from the first place of these names that has some."""
    photos_by_place = (_Photos(where, _numbered(pattern, names)) for where, names in _places(root, places))
    return next((photos for photos in photos_by_place if photos.names), None)


def _places(root: Path, names: Sequence[str]) -> Iterator[tuple[Path | ZipArchive, Sequence[str]]]:
    """Yield each folder and archive that may have the photos, and what is in it."""
    zips = [f"{name}.zip" for name in names]
    if root.is_dir():
        yield from ((root, photos_in(root / name, root).names) for name in names if (root / name).is_dir())
        archives = [*map(root.joinpath, zips), *sorted(root.glob("dogs-vs-cats*.zip"))]
    else:
        archives = [root, *map(root.parent.joinpath, zips)]
    for path in filter(Path.is_file, archives):
        archive = ZipArchive(path)
        members = _names(archive)
        yield archive, members
        for inner in (archive.within(member) for member in members if Path(member).name.lower() in zips):
            yield inner, _names(inner)


def _names(archive: ZipArchive) -> list[str]:
    return [member.filename for member in archive.members()]


def _numbered(pattern: re.Pattern[str], names: Iterable[str]) -> dict[tuple[str, int], str]:
    """Return the names that match by class and number, in this order."""
    numbered: dict[tuple[str, int], str] = {}
    for match in filter(None, map(pattern.fullmatch, names)):
        key, name = (match[1].lower(), int(match[2])), match[0]
        if numbered.setdefault(key, name) != name:
            raise ValueError(f"there are {numbered[key]} and {name}: expected one photo of that number")
    return dict(sorted(numbered.items()))


def _content(root: Path) -> str:
    """Say what there is in place of the photos, and which folder may be meant instead."""
    if not root.exists():
        return "does not exist"
    names = sorted(os.listdir(root) if root.is_dir() else _names(ZipArchive(root)))
    hint = f" (was {root.parent} meant?)" if root.name == "train" else ""
    return f"has {', '.join(names[:5]) or 'nothing'}{hint}"
