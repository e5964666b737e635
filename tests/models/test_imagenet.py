import pytest
from timm.data import ImageNetInfo

from lit_distill.models import ClassGroups
from lit_distill.models.imagenet import imagenet_groups


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("bear", "brown bear", "sloth bear", 4),
        ("bird", "cock", "albatross", 59),
        ("butterfly", "admiral", "lycaenid", 6),
        ("cat", "tabby", "Egyptian cat", 5),
        ("dog", "Chihuahua", "Mexican hairless", 118),
        ("fox", "red fox", "grey fox", 4),
        ("frog", "bullfrog", "tailed frog", 3),
        ("rabbit", "wood rabbit", "Angora", 3),
        ("snake", "thunder snake", "sidewinder", 17),
        ("spider", "black and gold garden spider", "wolf spider", 6),
    ],
)
def test_the_first_and_the_last_class_of_a_name(name: str, first: str, last: str, count: int) -> None:
    groups, info = imagenet_groups([name]), ImageNetInfo()
    assert groups is not None
    (members,) = ClassGroups(groups, 1000).members
    descriptions = [info.index_to_description(members[place]).split(",")[0] for place in (0, -1)]
    assert (descriptions, len(members)) == ([first, last], count)


def test_capitals_and_plurals_are_understood_and_an_unknown_name_leaves_all_out() -> None:
    assert imagenet_groups(["Foxes", "cat"]) is None
    assert imagenet_groups(["CATS", "dog"]) == {"CATS": "281-285", "dog": "151-268"}
    assert imagenet_groups([]) is None
