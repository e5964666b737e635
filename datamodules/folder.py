"""A folder of your own photos."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
import torch

from lit_distill.datamodules.from_files import FilesDataModule, Labelled
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.scan import write_json
from lit_distill.datamodules.walk import Found, folders_in, is_empty, photos_in, printable
from lit_distill.keys import derive_seed

# How the folders of a split may be called; no class is.
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_OWN = ".lit_distill"  # what is stored beside the photos


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
        **kwargs: ``image_size``, ``channels``, ``augmentation``, ``mixing``, ``repeats``, ``batch_size``,
            ``eval_batch_size``, ``num_workers``, ``seed``, ``decode_memory``, ``check`` and ``max_damaged`` of
            `FilesDataModule`.

    Raises:
        ValueError: If the folder is not there or not readable, a class is empty, alone or has nothing to train on, or
            the stored split is of other images.

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

    def __init__(
        self,
        root: str | Path,
        val: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        test_root: str | Path | None = None,
        predict_root: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be in (0, 1), got {val_fraction}")
        self.root = Path(root)
        self.scan_file = self.root / _OWN / "scan.json"
        folders, training = _find(self.root, val)
        classes = self._classes(training)
        self.class_names = tuple(sorted(classes))
        self.num_classes = len(self.class_names)
        if self.num_classes < 2:
            raise ValueError(_few_classes(self.root, classes, self.left_out))
        if "val" in folders:
            held_out = self._classes(folders_in(folders["val"]))
        else:
            classes, held_out = self._split(classes, val_fraction, split_seed)
        self.splits = {"train": self._labelled(classes), "val": self._labelled(held_out)}
        if "test" in folders:
            tested = self._classes(folders_in(folders["test"]))
            if tested:
                self.splits["test"] = self._labelled(tested)
            else:  # images without class folders are Kaggle's way to say: predict these
                self.splits["predict"] = self._unlabelled(folders["test"], self.root)
        if test_root is not None:
            tested = self._classes(folders_in(Path(test_root)), Path(test_root))
            self.splits["test"] = self._labelled(tested, Path(test_root))
        if predict_root is not None:
            self.splits["predict"] = self._unlabelled(Path(predict_root), Path(predict_root))
        for split, (files, _) in self.splits.items():
            if not len(files):
                raise ValueError(_with(self.left_out, f"there are no images for {split} in {files.root}"))

    def _classes(self, folders: Iterable[Path], root: Path | None = None) -> dict[str, list[str]]:
        """Return the photos of each class, as paths in ``root``."""
        root = root or self.root
        classes: dict[str, list[str]] = {}
        for folder in folders:
            found = photos_in(folder, root)
            label = printable(folder.name)
            if found.names:
                classes[label] = found.names
                self.left_out.add_left_out(found)
            elif is_empty(folder) or "heif" in found.left_out:
                message = f"there are no images of class {label!r} in {root}: fill or remove its folder"
                raise ValueError(_with(found, message))
            else:  # outputs of a run, a folder of notes, a link back to the root
                self.left_out.leave_out("folder", os.path.relpath(folder, root))
        return classes

    def _unlabelled(self, folder: Path, root: Path) -> Labelled:
        found = photos_in(folder, root)
        self.left_out.add_left_out(found)
        return Labelled(Files(root, found.names), torch.full((len(found.names),), -1))

    def _labelled(self, classes: Mapping[str, Sequence[str]], root: Path | None = None) -> Labelled:
        unknown = sorted(set(classes) - set(self.class_names or ()))
        if unknown:
            near = get_close_matches(unknown[0], self.class_names or (), n=1, cutoff=0.6)
            raise ValueError(
                f"class {unknown[0]!r} has images to evaluate on and none to train on"
                + (f"; was {near[0]!r} meant?" if near else f": the classes are {', '.join(self.class_names or ())}")
            )
        names = [name for label in self.class_names or () for name in classes.get(label, ())]
        targets = [k for k, label in enumerate(self.class_names or ()) for _ in classes.get(label, ())]
        return Labelled(Files(root or self.root, names), torch.tensor(targets, dtype=torch.int64))

    def _split(
        self, classes: Mapping[str, Sequence[str]], fraction: float, seed: int
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Split each class: as it was split before, and by keyed order what is new."""
        path = self.root / _OWN / "split.json"
        stored = _read_split(path, seed, fraction)
        everything = {name for names in classes.values() for name in names}
        known = stored["train"] | stored["val"]
        if known and len(known & everything) < len(known) / 2:
            raise ValueError(
                f"{path} is of other images: {len(known & everything)} of its {len(known)} are in {self.root}; "
                "delete it to split anew"
            )
        train, held_out = {}, {}
        for label, names in classes.items():
            new = sorted((n for n in names if n not in known), key=lambda name: (_place(seed, name), name))
            old = [name for name in names if name in stored["val"]]
            # At least one on either side, as far as there are two; what is new brings the class to its share.
            count = min(max(round(fraction * len(names)), 1), len(names) - 1)
            chosen = {*old, *new[: max(0, count - len(old))]}
            held_out[label] = [name for name in names if name in chosen]
            train[label] = [name for name in names if name not in chosen]
            if not train[label]:
                raise ValueError(
                    f"class {label!r} has no photo to train on, and {len(names)} to validate on by {path}: add some, "
                    "or delete that file to split anew"
                )
        sides = {
            "train": sorted(name for names in train.values() for name in names),
            "val": sorted(name for names in held_out.values() for name in names),
        }
        changed = {side: set(names) for side, names in sides.items()} != stored
        if changed and not write_json(path, {"seed": seed, "fraction": fraction, **sides}):
            rank_zero_info(f"{path} could not be written: the split is the same only as long as the images are")
        return train, held_out


def _read_split(path: Path, seed: int, fraction: float) -> dict[str, set[str]]:
    try:
        content = json.loads(path.read_text())
        if (content["seed"], content["fraction"]) != (seed, fraction):
            raise ValueError(
                f"{path} was made with split_seed={content['seed']} and val_fraction={content['fraction']}, "
                f"not with {seed} and {fraction}: delete it to split anew"
            )
        return {side: set(content[side]) for side in ("train", "val")}
    except OSError:
        return {"train": set(), "val": set()}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no stored split: delete it to split anew") from error


def _place(seed: int, name: str) -> int:
    """Return where a name stands in the keyed order; the folder's own name is no part of it."""
    return derive_seed(seed, *name.encode("utf-8", "surrogateescape"))


def _find(root: Path, val: str | None) -> tuple[dict[str, Path], list[Path]]:
    """Return the folder of each split that has one, and the folder of each class to train on."""
    if not root.is_dir():
        beside = [folder.name for folder in folders_in(root.parent)] if root.parent.is_dir() else []
        near = get_close_matches(root.name, beside, n=1)
        raise ValueError(
            f"{root} {'is a file' if root.exists() else 'does not exist'}: expected a folder with train/<class>/ and "
            "val/<class>/, or with <class>/" + (f"; was {root.parent / near[0]} meant?" if near else "")
        )
    folders = folders_in(root)
    found: dict[str, Path] = {}
    for split, called in _SPLITS.items():
        for folder in folders:
            if folder.name.lower() in called:
                if split in found:
                    raise ValueError(f"{root} has {found[split].name} and {folder.name}, both for {split}: keep one")
                found[split] = folder
    others = [folder for folder in folders if folder not in found.values()]
    if val is not None:
        found["val"] = next((folder for folder in folders if folder.name == val), Path())
        if found["val"] not in folders or found["val"] == found.get("train"):
            raise ValueError(f"val={val!r} is none of the folders in {root}: {', '.join(f.name for f in folders)}")
        others = [folder for folder in others if folder != found["val"]]
    if "train" not in found and not others:
        names = ", ".join(folder.name for folder in folders) or "no folders"
        raise ValueError(f"{root} has {names}: expected train/<class>/ with val/<class>/, or <class>/")
    if "train" in found and others:
        rank_zero_info(f"{root} has a folder for training; not used: {', '.join(folder.name for folder in others)}")
    classes = folders_in(found["train"]) if "train" in found else others
    if not classes:
        raise ValueError(f"there are no class folders in {found['train']}: expected {found['train'].name}/<class>/")
    return found, classes


def _few_classes(root: Path, classes: Mapping[str, Sequence[str]], left_out: Found) -> str:
    expected = "expected a folder for each of two or more classes"
    if not classes:
        return _with(left_out, f"{root} has no images in its folders: {expected}")
    ((name, files),) = classes.items()
    deeper = len({Path(file).parent for file in files}) > 1
    hint = f"; {root / name} has folders in it: was that meant as the root?" if deeper else ""
    return _with(left_out, f"{root} has one class only, {name!r}: {expected}{hint}")


def _with(found: Found, message: str) -> str:
    """Return the message, and what was left out."""
    left_out = found.told()
    return f"{message} ({left_out})" if left_out else message
