"""Split classes of photos into those to train on and those to validate on, the same way again and again."""

from collections.abc import Mapping, Sequence
from itertools import chain
import json
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lit_distill.datamodules.scan import write_json
from lit_distill.keys import derive_seed

Classes = dict[str, list[str]]  # the photos of each class


def split_classes(
    classes: Mapping[str, Sequence[str]], path: Path, fraction: float, seed: int
) -> tuple[Classes, Classes]:
    """Return the photos of each class to train on, and those to validate on.

    Photos that are in the stored split keep their side. Of new ones, those first in an order keyed by seed and name
    bring the class to its share for validation. A class of two or more photos is on both sides.

    Args:
        classes: The photos of each class, by name.
        path: File of the stored split, read and written; if it cannot be written the split is returned all the same.
        fraction: Share of each class to validate on, 0..1 exclusive.
        seed: Seed of the split.

    Raises:
        ValueError: If the file is no stored split, was made with another seed or fraction or of other images, or a
            class has nothing to train on.
    """
    train_before, val_before = _read(path, fraction, seed)
    photos_before = train_before | val_before
    still_there = len(photos_before.intersection(chain(*classes.values())))
    if still_there < len(photos_before) / 2:
        raise ValueError(
            f"{path} is of other images: {still_there} of its {len(photos_before)} are there; delete it to split anew"
        )
    train: Classes = {}
    val: Classes = {}
    for label, names in classes.items():
        chosen = val_before.intersection(names)
        new = sorted(set(names) - photos_before, key=lambda name: (_place(seed, name), name))
        count = min(max(round(fraction * len(names)), 1), len(names) - 1)
        chosen.update(new[: max(0, count - len(chosen))])
        if len(chosen) == len(names):
            raise ValueError(
                f"class {label!r} has no photo to train on, and {len(names)} to validate on by {path}: add some, "
                "or delete that file to split anew"
            )
        train[label] = [name for name in names if name not in chosen]
        val[label] = [name for name in names if name in chosen]
    sides = {"train": sorted(chain(*train.values())), "val": sorted(chain(*val.values()))}
    is_new = (set(sides["train"]), set(sides["val"])) != (train_before, val_before)
    if is_new and not write_json(path, {"seed": seed, "fraction": fraction, **sides}):
        rank_zero_info(f"{path} could not be written: the split is the same only as long as the images are")
    return train, val


def few_of_each(classes: Mapping[str, Sequence[str]], count: int | None, seed: int, option: str) -> Classes:
    """Return ``count`` photos of each class: the first ones in an order keyed by seed and name.

    So the choice is the same on every machine, and a larger ``count`` adds photos without replacing any.

    Args:
        classes: The photos of each class, by name.
        count: Photos of each class; None keeps all.
        seed: Seed of the choice.
        option: What ``count`` is called, for the message.

    Raises:
        ValueError: If a class has fewer photos.

    Example:
        >>> few_of_each({"cat": ["a", "b", "c"], "dog": ["d", "e"]}, 1, 42, "train_per_class")
        {'cat': ['c'], 'dog': ['e']}
    """
    few: Classes = {}
    for label, names in classes.items():
        if count is not None and len(names) < count:
            raise ValueError(f"{option} must be at most {len(names)}, the photos of class {label!r}, got {count}")
        first_names = sorted(names, key=lambda name: (_place(seed, name), name))[:count] if count else names
        kept = set(first_names)
        few[label] = [name for name in names if name in kept]
    return few


def with_wrong_labels(classes: Mapping[str, Sequence[str]], share: float, seed: int) -> Classes:
    """Give a share of each class's photos to other classes, each of these as likely.

    Which photos and which classes is a pure function of seed and names; a larger ``share`` adds to a smaller one.

    Args:
        classes: The photos of each class, by name.
        share: Share of each class that gets a wrong label, 0..1.
        seed: Seed of the choice.

    Example:
        >>> with_wrong_labels({"cat": ["a", "b"], "dog": ["c", "d"]}, 0.5, 42)
        {'cat': ['a', 'c'], 'dog': ['d', 'b']}
    """
    labels, wrong = list(classes), {label: list(names) for label, names in classes.items()}
    for label, names in classes.items():
        order = sorted(names, key=lambda name: (_place(seed, f"wrong/{name}"), name))
        other_labels = [each for each in labels if each != label]
        for name in order[: round(share * len(names))]:
            wrong[label].remove(name)
            wrong[other_labels[_place(seed, f"label/{name}") % len(other_labels)]].append(name)
    return wrong


def _read(path: Path, fraction: float, seed: int) -> tuple[set[str], set[str]]:
    """Return the photos on each side of a stored split; none if there is none."""
    try:
        stored = json.loads(path.read_text())
        settings, sides = (stored["seed"], stored["fraction"]), (set(stored["train"]), set(stored["val"]))
    except OSError:
        return set(), set()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no stored split: delete it to split anew") from error
    if settings != (seed, fraction):
        raise ValueError(
            f"{path} was made with split_seed={settings[0]} and val_fraction={settings[1]}, "
            f"not with {seed} and {fraction}: delete it to split anew"
        )
    return sides


def _place(seed: int, name: str) -> int:
    """Return where a name stands in the keyed order; the folder's own name is no part of it."""
    return derive_seed(seed, *name.encode("utf-8", "surrogateescape"))
