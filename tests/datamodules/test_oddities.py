import pytest

from lit_distill.datamodules.oddities import oddities


def photos(prefix: str, *counts: int, content: str = "") -> dict[str, tuple[int, str]]:
    return {
        f"{prefix}/{k}/{n}.jpg": (k, content and f"{content}{k}-{n}")
        for k, count in enumerate(counts)
        for n in range(count)
    }


NAMES = ["cat", "dog", "fox"]


def test_ordinary_photos_are_not_odd() -> None:
    assert oddities(photos("train", 20, 9, 3, content="t"), photos("val", 2, 2, 2, content="v"), NAMES) == []
    assert oddities(photos("train", 20, 9, 3), photos("val", 2, 2, 2), NAMES) == []  # nobody has read them


def test_the_same_photo_in_two_classes_is_counted_across_the_split() -> None:
    train, val = photos("train", 4, 4, 4, content="t"), photos("val", 2, 2, 2, content="v")
    train["train/1/0.jpg"] = train["train/2/9.jpg"] = 1, "t0-0"
    train["train/2/9.jpg"] = 2, "t0-0"
    val["val/2/1.jpg"] = 2, "t1-3"
    assert oddities(train, val, NAMES) == [
        "photos in two classes: 2, such as train/0/0.jpg and train/1/0.jpg: keep each in one",
        "photos trained on and validated: 1, such as train/1/3.jpg and val/2/1.jpg: accuracies are too high by that",
    ]
    assert oddities(photos("train", 3, 3, 3, content="t") | {"again.jpg": (0, "t0-1")}, val, NAMES) == []


def test_two_classes_of_the_same_photos_are_an_error() -> None:
    train = {f"{name}/{n}.jpg": (k, str(n)) for k, name in enumerate(NAMES[:2]) for n in range(3)}
    with pytest.raises(ValueError, match=r"photos in two classes: 3, such as cat/0\.jpg and dog/0\.jpg, and no class"):
        oddities(train, {}, NAMES[:2])


def test_classes_of_one_photo_and_those_without_validation_are_counted() -> None:
    assert oddities(photos("train", 5, 1, 1), photos("val", 1, 0, 0), NAMES) == [
        "classes with one photo to train on: 2 of 3, such as dog, fox"
    ]
    assert oddities(photos("train", 5, 1, 4), photos("val", 1, 1, 0), NAMES) == [
        "classes with one photo to train on: 1 of 3, such as dog",
        "classes with no photo to validate on: 1 of 3, such as fox",
    ]


def test_strong_imbalance_is_counted() -> None:
    (line,) = oddities(photos("train", 100, 50, 10), photos("val", 2, 2, 2), NAMES)
    assert line.startswith("strong imbalance: 100 photos to train on are of 'cat' and 10 of 'fox', 10 times fewer")
    assert oddities(photos("train", 99, 50, 10), photos("val", 2, 2, 2), NAMES) == []
