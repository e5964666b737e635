"""A folder of your own photos."""

from collections.abc import Iterable, Mapping, Sequence
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
import torch

from lit_distill.checks import check_at_least, check_choice, check_fraction, check_inside, did_you_mean
from lit_distill.datamodules.from_files import FilesDataModule, Labelled
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.split import Classes, few_of_each, split_classes, with_wrong_labels
from lit_distill.datamodules.walk import check_folder, folders_in, is_empty, photos_in, printable

_SPLIT_OF_FOLDER = {  # no class has one of these names
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_EXPECTED = "expected train/<class>/ with val/<class>/, or <class>/, for two or more classes"
_STORE = ".lit_distill"  # what is stored beside the photos


class ImageFolderDataModule(FilesDataModule):
    """Photos in folders, one folder a class.

    Either ``root/train/<class>/*`` with ``root/val/<class>/*`` (or ``valid``, ``validation``), or ``root/<class>/*``,
    which is split: stratified, by a pure function of seed and names, and stored in ``root/.lit_distill/split.json``, so
    that photos which come later change no other's side. A ``test`` folder is held out: it is for the command ``test``
    alone, unless ``val="test"`` says otherwise; images in it without class folders are for ``predict``. What lies in
    folders within a class's belongs to it. Any format that Pillow reads; `photos_in` says which files are photos, and a
    folder that has other files only is no class. Nothing but ``root/.lit_distill`` is written into the folder.

    Args:
        root: The folder.
        val: Folder in ``root`` to validate on; by default ``val``, ``valid`` or ``validation``, else a split.
        val_fraction: Share of each class to validate on where there is no folder for it, 0..1 exclusive.
        split_seed: Seed of the split.
        test_root: Folder with the same classes to test on, all of it; by default ``root/test``.
        predict_root: Folder of images to predict, at any depth; by default what is tested.
        train_per_class: Train on that many photos of each class, always the same ones for one ``split_seed``; by
            default on all.
        val_per_class: Validate on that many of each class.
        test_per_class: Test on that many of each class.
        wrong_labels: Share of the training photos of each class, 0..1, that are given another class's label, always
            the same ones for one ``split_seed``: to study labels that lie.
        **kwargs: All other arguments of `FilesDataModule`.

    Raises:
        ValueError: If the folder is not there or not readable, a class is empty, alone, has nothing to train on or
            fewer photos than asked for, or the stored split is of other images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        ...         path = Path(folder, name)
        ...         path.parent.mkdir(exist_ok=True)
        ...         Image.new("RGB", (40, 30)).save(path)
        ...     data = ImageFolderDataModule(folder, image_size=32, val_fraction=0.5)
        ...     print(data.class_names, len(data.splits["train"].files), len(data.splits["val"].files))
        ('cat', 'dog') 2 2
    """

    class_names: tuple[str, ...]

    def __init__(
        self,
        root: str | Path,
        val: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        test_root: str | Path | None = None,
        predict_root: str | Path | None = None,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        wrong_labels: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_inside(0, 1, val_fraction=val_fraction)
        check_fraction(wrong_labels=wrong_labels)
        check_at_least(1, train_per_class=train_per_class, val_per_class=val_per_class, test_per_class=test_per_class)
        self.root = Path(root)
        self.scan_file = self.root / _STORE / "scan.json"
        folders = _folder_of_split(self.root, val)
        train = self._classes(_class_folders(self.root, folders), self.root)
        if len(train) < 2:
            message = f"{folders.get('train', self.root)} has {_few_classes(train)}: {_EXPECTED}"
            raise ValueError(self.left_out.after(message))
        self.class_names = tuple(sorted(train))
        self.num_classes = len(self.class_names)
        if "val" in folders:
            val_classes = self._classes(folders_in(folders["val"]), self.root)
        else:
            train, val_classes = split_classes(train, self.root / _STORE / "split.json", val_fraction, split_seed)
        train = few_of_each(train, train_per_class, split_seed, "train_per_class")
        train = with_wrong_labels(train, wrong_labels, split_seed)
        val_classes = few_of_each(val_classes, val_per_class, split_seed, "val_per_class")
        self.splits = {"train": self._labelled(train, self.root), "val": self._labelled(val_classes, self.root)}
        if "test" in folders:
            tested = self._classes(folders_in(folders["test"]), self.root)
            if tested:
                tested = few_of_each(tested, test_per_class, split_seed, "test_per_class")
                self.splits["test"] = self._labelled(tested, self.root)
            else:  # images without class folders are Kaggle's way to say: predict these
                self.splits["predict"] = self._unlabelled(folders["test"], self.root)
        if test_root is not None:
            root = Path(test_root)
            tested = few_of_each(self._classes(folders_in(root), root), test_per_class, split_seed, "test_per_class")
            self.splits["test"] = self._labelled(tested, root)
        if predict_root is not None:
            self.splits["predict"] = self._unlabelled(Path(predict_root), Path(predict_root))
        for split, (files, _) in self.splits.items():
            if not len(files):
                raise ValueError(self.left_out.after(f"there are no images for {split} in {files.root}"))

    def _classes(self, folders: Iterable[Path], root: Path) -> Classes:
        """Return the photos of each class, as paths in ``root``."""
        classes: Classes = {}
        for folder in folders:
            photos = photos_in(folder, root)
            label = printable(folder.name)
            if photos.names:
                classes[label] = photos.names
                self.left_out.add_left_out(photos)
            elif is_empty(folder) or "heif" in photos.left_out:
                message = f"there are no images of class {label!r} in {root}: fill or remove its folder"
                raise ValueError(photos.after(message))
            else:  # outputs of a run, a folder of notes, a link back to the root
                self.left_out.leave_out("folder", os.path.relpath(folder, root))
        return classes

    def _unlabelled(self, folder: Path, root: Path) -> Labelled:
        photos = photos_in(folder, root)
        self.left_out.add_left_out(photos)
        return Labelled(Files(root, photos.names), torch.full((len(photos.names),), -1))

    def _labelled(self, classes: Mapping[str, Sequence[str]], root: Path) -> Labelled:
        unknown = sorted(classes.keys() - set(self.class_names))
        if unknown:
            hint = did_you_mean(unknown[0], self.class_names) or f"the classes are {', '.join(self.class_names)}"
            raise ValueError(f"class {unknown[0]!r} has images to evaluate on and none to train on: {hint}")
        return Labelled.by_class(root, [classes.get(label, ()) for label in self.class_names])


def _folder_of_split(root: Path, val: str | None) -> dict[str, Path]:
    """Return the folder of each split that has one."""
    check_folder(root, _EXPECTED)
    folders: dict[str, Path] = {}
    for folder in folders_in(root):
        split = _SPLIT_OF_FOLDER.get(folder.name.lower())
        if split in folders:
            raise ValueError(f"{root} has {folders[split].name} and {folder.name}, both for {split}: keep one")
        if split is not None:
            folders[split] = folder
    if val is not None:
        check_choice([folder.name for folder in folders_in(root)], val=val)
        folders["val"] = root / val
    return folders


def _class_folders(root: Path, folders: Mapping[str, Path]) -> list[Path]:
    """Return the folder of each class to train on, given those of the splits."""
    class_folders = [folder for folder in folders_in(root) if folder not in folders.values()]
    if "train" not in folders:
        return class_folders
    if class_folders:
        rank_zero_info(
            f"{root} has a folder for training; not used: {', '.join(folder.name for folder in class_folders)}"
        )
    return folders_in(folders["train"])


def _few_classes(classes: Classes) -> str:
    """Say which classes there are, if there is none or one."""
    if not classes:
        return "no folders of classes"
    ((label, names),) = classes.items()
    is_deep = len({Path(name).parent for name in names}) > 1
    return f"one class only, {label!r}" + (f" (was {label} meant as the root?)" if is_deep else "")
