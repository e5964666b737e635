"""What is odd about photos that can all be read."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import NamedTuple

from lit_distill.datamodules.walk import printable

_STRONG = 10  # times as many photos of one class as of another
_SHOWN = 5

# The class and the digest of each file, by its name; the digest is empty where nobody has read the file.
Photos = Mapping[str, tuple[int, str]]


def oddities(train: Photos, val: Photos, class_names: Sequence[str]) -> list[str]:
    """Return a line about each kind of thing that is hardly meant: doubles, classes of one photo, imbalance.

    Args:
        train: The photos to train on: class and digest of the content, by name.
        val: Those to validate on.
        class_names: Of the classes.

    Raises:
        ValueError: If every photo to train on is in another class too.

    Example:
        >>> train = {"cat/1.jpg": (0, "a"), "cat/2.jpg": (0, "b"), "dog/1.jpg": (1, "a")}
        >>> for line in oddities(train, {"dog/2.jpg": (1, "c"), "cat/3.jpg": (0, "b")}, ["cat", "dog"]):
        ...     print(line)
        1 photo is in two classes, such as cat/1.jpg and dog/1.jpg: keep it in one
        1 photo is trained on and validated, such as cat/2.jpg and cat/3.jpg: accuracies are too high by that
        1 of 2 classes has one photo to train on: dog
    """
    return [*_copies(train, val), *_class_sizes(train, val, class_names)]


class _Copy(NamedTuple):
    """One of several files with the same content."""

    name: str
    target: int
    is_validated: bool


def _copies(train: Photos, val: Photos) -> Iterator[str]:
    copies: defaultdict[str, list[_Copy]] = defaultdict(list)  # by content
    for photos, is_validated in ((train, False), (val, True)):
        for name, (target, content) in photos.items():
            copies[content].append(_Copy(name, target, is_validated))
    copies.pop("", None)
    torn = _pairs(copies, lambda copy: copy.target)
    if torn:
        line = f"{_photos_are(torn)} in two classes, such as {next(iter(torn.values()))}"
        if torn.keys() >= {content for _, content in train.values()}:
            raise ValueError(f"{line}, and no class has a photo of its own to train on: is one a copy of another?")
        yield f"{line}: keep {'it' if len(torn) == 1 else 'each'} in one"
    leaked = _pairs(copies, lambda copy: copy.is_validated)
    if leaked:
        example = next(iter(leaked.values()))
        yield f"{_photos_are(leaked)} trained on and validated, such as {example}: accuracies are too high by that"


def _pairs(copies: Mapping[str, Sequence[_Copy]], key: Callable[[_Copy], object]) -> dict[str, str]:
    """Return by content the names of the first two copies that differ in a key, where some do."""
    pairs: dict[str, str] = {}
    for content, (first, *others) in copies.items():
        for other in others:
            if key(other) != key(first):
                pairs.setdefault(content, f"{printable(first.name)} and {printable(other.name)}")
    return pairs


def _photos_are(pairs: Sized) -> str:
    return "1 photo is" if len(pairs) == 1 else f"{len(pairs)} photos are"


def _class_sizes(train: Photos, val: Photos, class_names: Sequence[str]) -> Iterator[str]:
    trained, validated = (Counter(target for target, _ in photos.values()) for photos in (train, val))
    single = [name for target, name in enumerate(class_names) if trained[target] == 1]
    unseen = [name for target, name in enumerate(class_names) if trained[target] > 1 and not validated[target]]
    for purpose, names in (("one photo to train on", single), ("no photo to validate on", unseen)):
        if names:
            have = "has" if len(names) == 1 else "have"
            yield f"{len(names)} of {len(class_names)} classes {have} {purpose}: {_shortened(names)}"
    (most, largest), (least, smallest) = trained.most_common()[0], trained.most_common()[-1]
    if largest >= _STRONG * smallest:
        yield (
            f"strong imbalance: {largest} photos to train on are of {class_names[most]!r} and {smallest} of "
            f"{class_names[least]!r}, {largest / smallest:.0f} times fewer: the accuracy says little about the rarer "
            "classes"
        )


def _shortened(names: Sequence[str]) -> str:
    more = f", ... {len(names)} in all" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
