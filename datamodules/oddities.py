"""What is odd about photos that can all be read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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
        photos in two classes: 1, such as cat/1.jpg and dog/1.jpg: keep each in one
        photos trained on and validated: 1, such as cat/2.jpg and cat/3.jpg: accuracies are too high by that
        classes with one photo to train on: 1 of 2, such as dog
    """
    return [*_copies(train, val), *_class_sizes(train, val, class_names)]


def _copies(train: Photos, val: Photos) -> Iterator[str]:
    torn: dict[str, str] = {}  # two names, by content
    leaked: dict[str, str] = {}
    first: dict[str, tuple[str, int, int]] = {}
    for name, target, content, side in _known(train, val):
        first_name, first_target, first_side = first.setdefault(content, (name, target, side))
        pair = f"{printable(first_name)} and {printable(name)}"
        if target != first_target:
            torn.setdefault(content, pair)
        if side != first_side:
            leaked.setdefault(content, pair)
    if torn:
        line = f"photos in two classes: {len(torn)}, such as {next(iter(torn.values()))}"
        if torn.keys() >= {content for _, content in train.values()}:
            raise ValueError(f"{line}, and no class has a photo of its own to train on: is one a copy of another?")
        yield f"{line}: keep each in one"
    if leaked:
        example = next(iter(leaked.values()))
        yield f"photos trained on and validated: {len(leaked)}, such as {example}: accuracies are too high by that"


def _known(train: Photos, val: Photos) -> Iterator[tuple[str, int, str, int]]:
    """Yield name, class, content and side of the split of each photo that has been read."""
    for side, photos in enumerate((train, val)):
        yield from ((name, target, content, side) for name, (target, content) in photos.items() if content)


def _class_sizes(train: Photos, val: Photos, class_names: Sequence[str]) -> Iterator[str]:
    trained, validated = (Counter(target for target, _ in photos.values()) for photos in (train, val))
    single = [name for target, name in enumerate(class_names) if trained[target] == 1]
    unseen = [name for target, name in enumerate(class_names) if trained[target] > 1 and not validated[target]]
    for purpose, names in (("one photo to train on", single), ("no photo to validate on", unseen)):
        if names:
            yield f"classes with {purpose}: {len(names)} of {len(class_names)}, such as {', '.join(names[:_SHOWN])}"
    (most, largest), *_, (least, smallest) = trained.most_common()
    if largest >= _STRONG * smallest:
        yield (
            f"strong imbalance: {largest} photos to train on are of {class_names[most]!r} and {smallest} of "
            f"{class_names[least]!r}, {largest / smallest:.0f} times fewer: the accuracy says little about the rarer "
            "classes"
        )
