"""What the images of a data set depend on, part by part."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Subset

from lit_distill.batch import image_of
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.resident import ResidentDataset
from lit_distill.fingerprint import digest_of
from lit_distill.keys import seeded

_SAMPLES = 16  # that are read to see what becomes of them


def training_parts(data: IndexedDataset, repeats: int = 1) -> dict[str, str]:
    """Return a digest of each part that training images depend on, by name.

    Some samples are read twice, with the process's generators in other states, for a transform may draw from a
    generator that nobody seeds.

    Args:
        data: The training set as its loader has it.
        repeats: Views of a sample in an epoch.

    Raises:
        ValueError: If a view is not the same when it is read again.

    Example:
        >>> import torch
        >>> list(training_parts(IndexedDataset([(torch.zeros(1), 3)] * 20)))
        ['training set', 'augmentation', 'seed', 'mixing', 'storage', 'training images']
    """
    source, transforms = _parts(data)
    mixing = getattr(data, "mixing", None)
    images = _images(data, views=(0, 1))
    if images is None:
        raise ValueError(
            "a view of a training image is not the same when it is read again, so answers to it cannot be cached: its "
            "transform draws from a generator of its own; draw from torch's, random's or numpy's, which are seeded for "
            "each view, or leave the teacher's cache out"
        )
    return {
        "training set": source,
        "augmentation": transforms,
        "seed": str(data.seed),
        "mixing": "none" if mixing is None else f"{mixing}, repeats={repeats}",
        "storage": "device" if isinstance(data, ResidentDataset) and data.transform is not None else "one by one",
        "training images": images,
    }


def evaluation_parts(data: IndexedDataset) -> dict[str, str] | None:
    """Return a digest of each part that images for evaluation depend on; None if they are not the same each time."""
    source = digest_of(_parts(data))  # before it is read, which may change what it holds
    images = _images(data, views=())
    return None if images is None else {"validation set": source, "validation images": images}


def _parts(data: IndexedDataset) -> tuple[str, str]:
    """Return digests of the data set and of its transforms."""
    dataset: object = data.dataset
    rows: list[object] = [data.rows]
    while isinstance(dataset, Subset):
        rows.append(dataset.indices)
        dataset = dataset.dataset
    attributes = dict(getattr(dataset, "__dict__", {"dataset": dataset}))
    transforms = {name: attributes.pop(name) for name in list(attributes) if "transform" in name}
    content = attributes if data.identities is None else data.identities
    return digest_of([type(dataset), data.num_rows, rows, content]), digest_of(transforms)


def images_of(data: IndexedDataset, keys: Sequence[int | tuple[int, int]]) -> list[Tensor]:
    """Return the images of some samples, each with a view or without, as the loader has them."""
    read = data.make(keys) if isinstance(data, ResidentDataset) else data.__getitems__(keys)
    return [image_of(each) for each in read] if isinstance(read, list) else [*image_of(read)]


def _images(data: IndexedDataset, views: Sequence[int]) -> str | None:
    """Return a digest of some samples; None if they are others when they are read again."""
    samples = range(0, len(data), max(1, len(data) // _SAMPLES))[:_SAMPLES]
    keys: list[int | tuple[int, int]] = [(view, sample) for view in views for sample in samples] or [*samples]
    digests = set()
    for seed in (1, 2):
        with seeded(seed):
            digests.add(digest_of(images_of(data, keys)))
    return digests.pop() if len(digests) == 1 else None
