"""ImageNet-1k."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_info
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets import ImageNet

from lit_distill.datamodules.from_files import FilesDataModule, Labelled
from lit_distill.datamodules.walk import check_folder, folders_in, photos_in

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
        **kwargs: All other arguments of `FilesDataModule`.

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

    def __init__(self, root: str | Path, decode_memory: float = 0.0, check: bool = False, **kwargs: Any) -> None:
        super().__init__(decode_memory=decode_memory, check=check, **kwargs)
        self.root = Path(root)
        self.scan_file = self.root / ".lit_distill" / "imagenet.json"
        check_folder(self.root, _EXPECTED)
        train, val = _photos_of_class(self.root, "train"), _photos_of_class(self.root, "val")
        if odd := sorted(train.keys() ^ val.keys()):
            raise ValueError(f"{root} has {len(odd)} classes in one of train and val only, such as {odd[0]}")
        self.class_names = _named([*train])
        self.num_classes = len(self.class_names)
        self.splits = {
            "train": Labelled.by_class(self.root, train.values()),
            "val": Labelled.by_class(self.root, val.values()),
        }


def _photos_of_class(root: Path, split: str) -> dict[str, list[str]]:
    """Return the photos of each class of a split by its WordNet number; unpack the archives if need be."""
    folder = root / split
    try:
        if not folder.is_dir():
            rank_zero_info(f"making {folder} from the archives in {root}, if they are there: it takes a while")
            ImageNet(root, split)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{root}: {' '.join(str(error).split())} ({_EXPECTED})") from error
    if left := sorted([*folder.glob("*.tar"), *folder.glob("*.JPEG")]):
        raise ValueError(
            f"{folder} has {left[0].name} in no class folder: unpacking was cut off, or is going on; "
            f"remove {folder} to unpack again"
        )
    classes = {found.name: photos_in(found, root).names for found in folders_in(folder)}
    if empty := [name for name, photos in (classes or {"any": []}).items() if not photos]:
        raise ValueError(f"there are no images of class {empty[0]} in {folder}: {_EXPECTED}")
    return classes


def _named(wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the first English name of each class, with its number where another class has the same."""
    names_of = cast("dict[str, str]", ImageNetInfo().label_descriptions(as_dict=True))
    first = [names_of.get(wnid, wnid).split(",")[0] for wnid in wnids]
    count = Counter(first)
    return tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(first, wnids, strict=True))
