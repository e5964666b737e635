"""Which of ImageNet's classes stand for common names."""

from collections.abc import Sequence

# Of the 1000 classes of ILSVRC 2012, in the order that timm's and torchvision's networks have.
_NUMBERS = {
    "bear": "294-297",
    "bird": "7-24, 80-100, 127-146",
    "butterfly": "321-326",
    "cat": "281-285",
    "dog": "151-268",
    "fox": "277-280",
    "frog": "30-32",
    "rabbit": "330-332",
    "snake": "52-68",
    "spider": "72-77",
}


def imagenet_groups(names: Sequence[str]) -> dict[str, str] | None:
    """Return for each name the numbers of the classes of ImageNet that it stands for, or None if one is not known.

    A capital letter and a plural make no difference.

    Example:
        >>> imagenet_groups(["Cat", "dogs"]), imagenet_groups(["cat", "my_dog"])
        ({'Cat': '281-285', 'dogs': '151-268'}, None)
    """
    singular = {name: name.lower() if name.lower() in _NUMBERS else name.lower().removesuffix("s") for name in names}
    if not names or not set(singular.values()) <= set(_NUMBERS):
        return None
    return {name: _NUMBERS[word] for name, word in singular.items()}
