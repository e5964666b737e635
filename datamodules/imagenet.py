"""ImageNet-1k."""

from collections import Counter
from collections.abc import Sequence
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from timm.data.imagenet_info import ImageNetInfo
import torch
from torchvision.datasets import ImageNet

from lit_distill.datamodules.from_files import FilesDataModule, Labelled
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.walk import folders_in, photos_in

_EXPECTED = (
    "expected train/<class>/*.JPEG and val/<class>/*.JPEG with classes as n01440764, or what image-net.org has to "
    "download: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"
)


class ImageNetDataModule(FilesDataModule):
    """ImageNet-1k (ILSVRC 2012): 1,281,167 photos to train on, and 50,000 to validate and test on.

    Archives as downloaded are compared with their checksums and unpacked into ``root`` by torchvision, once, which
    takes long and as much space again. The classes are in the order of their WordNet numbers, as in every model's head,
    and named by the first of their English names.

    Papers report the accuracy of the last epoch on the validation images: compare the last epoch, not the best.

    Args:
        root: Folder with the three archives, or with ``train`` and ``val``.
        decode_memory: Share of the free memory that decoded images may take, 0..1. ImageNet's take hundreds of GB, so
            by default 0, which reads files in every epoch.
        check: Read all files before training, and leave out damaged ones. By default not: there are many, and
            torchvision has compared the archives with their checksums.
        **kwargs: ``image_size``, ``channels``, ``augmentation``, ``mixing``, ``repeats``, ``batch_size``,
            ``eval_batch_size``, ``num_workers``, ``seed`` and ``max_damaged`` of `FilesDataModule`.

    Raises:
        ValueError: If neither images nor archives are there, an archive is damaged, unpacking was cut off, or a class
            has no images.

    Source:
        Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for split in ("train", "val"):
        ...         for name in ("n01440764", "n02123045"):
        ...             path = Path(folder, split, name, "1.JPEG")
        ...             path.parent.mkdir(parents=True)
        ...             path.touch()
        ...     data = ImageNetDataModule(folder)
        >>> data.class_names, list(data.splits["val"].files)
        (('tench', 'tabby'), ['val/n01440764/1.JPEG', 'val/n02123045/1.JPEG'])
    """

    def __init__(
        self,
        root: str | Path,
        decode_memory: float = 0.0,
        check: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(decode_memory=decode_memory, check=check, **kwargs)
        self.root = Path(root)
        self.scan_file = self.root / ".lit_distill" / "imagenet.json"
        if not self.root.is_dir():
            raise ValueError(f"{root} {'is a file' if self.root.exists() else 'does not exist'}: {_EXPECTED}")
        train, val = _labelled(self.root, "train"), _labelled(self.root, "val")
        if train[0] != val[0]:
            odd = sorted(set(train[0]) ^ set(val[0]))
            raise ValueError(f"{root} has {len(odd)} classes in one of train and val only, such as {odd[0]}")
        self.class_names = _named(train[0])
        self.num_classes = len(self.class_names)
        self.splits = {"train": train[1], "val": val[1]}


def _labelled(root: Path, split: Literal["train", "val"]) -> tuple[list[str], Labelled]:
    """Return the classes of a split by their WordNet numbers, and its images."""
    folder = root / split
    try:
        if not folder.is_dir():
            rank_zero_info(
                f"making {folder} from the archives in {root}, if they are there and whole: it takes a while"
            )
            ImageNet(root, split)
        left = next((name for name in sorted(os.listdir(folder)) if name.endswith((".tar", ".JPEG"))), None)
        if left is not None:
            raise ValueError(
                f"{folder} has {left} in no class folder: unpacking was cut off, or is going on; remove {folder} to "
                "unpack again"
            )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{root}: {' '.join(str(error).split())} ({_EXPECTED})") from error
    classes = {found.name: photos_in(found, root).names for found in folders_in(folder)}
    empty = [name for name, photos in classes.items() if not photos]
    if empty or not classes:
        what = f"class {empty[0]}" if empty else "any class"
        raise ValueError(f"there are no images of {what} in {folder}: {_EXPECTED}")
    names = [name for photos in classes.values() for name in photos]
    targets = [k for k, photos in enumerate(classes.values()) for _ in photos]
    return [*classes], Labelled(Files(root, names), torch.tensor(targets))


def _named(wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the first English name of each class, with its number where another class has the same."""
    info = ImageNetInfo()
    known = set(info.label_names())  # type: ignore[no-untyped-call]
    first = [info.label_name_to_description(wnid).split(",")[0] if wnid in known else wnid for wnid in wnids]
    count = Counter(first)
    return tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(first, wnids, strict=True))
