"""What is odd about photos that can all be read."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

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
    return [*_doubles(train, val), *_sizes(train, val, class_names)]


def _doubles(train: Photos, val: Photos) -> Iterator[str]:
    same: defaultdict[str, list[tuple[str, int, bool]]] = defaultdict(list)  # by content: name, class, held out
    for held_out, photos in enumerate((train, val)):
        for name, (target, content) in photos.items():
            if content:
                same[content].append((name, target, bool(held_out)))
    several = [copies for copies in same.values() if len(copies) > 1]
    # Photos, and the first two names that show it.
    torn = [pair for copies in several if (pair := _pair(copies, 1))]
    leaked = [pair for copies in several if (pair := _pair(copies, 2))]
    if torn:
        line = f"{_photos(torn)} in two classes, such as {torn[0]}"
        trained = {content for _, content in train.values()}
        if len(torn) >= len(trained) and all(_pair(same[content], 1) for content in trained):
            raise ValueError(f"{line}, and no class has a photo of its own to train on: is one a copy of another?")
        yield f"{line}: keep {'it' if len(torn) == 1 else 'each'} in one"
    if leaked:
        yield f"{_photos(leaked)} trained on and validated, such as {leaked[0]}: accuracies are too high by that"


def _pair(copies: Sequence[tuple[str, int, bool]], at: int) -> str | None:
    """Return the names of two copies that differ in the class (1), or in whether they are held out (2)."""
    first = copies[0]
    other = next((copy for copy in copies if copy[at] != first[at]), None)
    return None if other is None else f"{printable(first[0])} and {printable(other[0])}"


def _photos(pairs: Collection[str]) -> str:
    return "1 photo is" if len(pairs) == 1 else f"{len(pairs)} photos are"


def _sizes(train: Photos, val: Photos, class_names: Sequence[str]) -> Iterator[str]:
    trained, validated = (Counter(target for target, _ in photos.values()) for photos in (train, val))
    single = [k for k in range(len(class_names)) if trained[k] == 1]
    unseen = [k for k in range(len(class_names)) if trained[k] > 1 and not validated[k]]
    if single:
        yield f"{_classes(single, class_names)} one photo to train on: {_listed(single, class_names)}"
    if unseen:
        yield f"{_classes(unseen, class_names)} no photo to validate on: {_listed(unseen, class_names)}"
    if trained:
        (most, many), (least, few) = trained.most_common()[0], trained.most_common()[-1]
        if many >= _STRONG * few:
            yield (
                f"strong imbalance: {many} photos to train on are of {class_names[most]!r} and {few} of "
                f"{class_names[least]!r}, {many / few:.0f} times fewer: the accuracy says little of the rarer classes"
            )


def _classes(some: Collection[int], class_names: Sequence[str]) -> str:
    return f"{len(some)} of {len(class_names)} classes {'has' if len(some) == 1 else 'have'}"


def _listed(some: Sequence[int], class_names: Sequence[str]) -> str:
    shown = ", ".join(class_names[k] for k in some[:_SHOWN])
    return shown + (f", ... {len(some)} in all" if len(some) > _SHOWN else "")
