from typing import Any

import pytest
import torch
import yaml

from lit_distill.models import ClassGroups


@pytest.mark.parametrize("groups", [[[0, 2], [1]], [[4], [0, 1, 2, 3]], [[0], [1], [2, 3, 4]], [[2, 1], [1, 3, 0]]])
def test_adds_the_probabilities_of_a_group_and_shares_out_the_rest(groups: list[list[int]]) -> None:
    logits = 5 * torch.randn(8, 5)
    p = torch.softmax(logits.double(), dim=1)
    expected = torch.stack([p[:, group].sum(dim=1) for group in groups], dim=1)
    expected = expected / expected.sum(dim=1, keepdim=True)
    combined = ClassGroups(groups, 5)(logits)
    torch.testing.assert_close(torch.softmax(combined, dim=1).double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(combined, torch.stack([logits[:, g].logsumexp(dim=1) for g in groups], dim=1))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -3e4]])
    assert ClassGroups([[0], [1, 3], [2]], 4)(logits).tolist() == [[1e4, -1e4, 0.0]]


def test_follows_the_datas_order_of_names() -> None:
    groups, logits = ClassGroups({"dog": [1, 2], "cat": [0]}, 3), torch.randn(4, 3)
    before = groups(logits)
    groups.order(["cat", "dog"])
    assert groups.names == ["cat", "dog"]
    assert torch.equal(groups(logits), before[:, [1, 0]])
    with pytest.raises(ValueError, match="only the teacher has dog, only the data has fox; give it classes="):
        groups.order(["cat", "fox"])


@pytest.mark.parametrize("text", ["{yes: [0], no: [1]}", '{"true": [0], "false": [1]}', "{'yes': [0], 'no': [1]}"])
def test_names_that_yaml_takes_for_values_are_the_datas(text: str) -> None:
    groups, logits = ClassGroups(yaml.safe_load(text), 2), torch.randn(4, 2)
    groups.order(["no", "yes"])
    assert groups.names == ["no", "yes"]
    assert torch.equal(groups(logits), logits[:, [1, 0]])


def test_numbers_and_null_without_quotes_are_names_too() -> None:
    groups = ClassGroups(yaml.safe_load("{01: [0], 1.50: [1], null: [2], 2020-01-01: [3]}"), 4)
    groups.order(["01", "1.50", "2020-01-01", "null"])
    assert groups.members == [[0], [1], [3], [2]]
    with pytest.raises(ValueError, match="knows other classes than the data has: only the data has on"):
        ClassGroups(yaml.safe_load("{on: [0]}"), 2).order(["on", "yes"])


def test_notes_overlaps_and_what_is_in_no_group() -> None:
    assert ClassGroups([[0, 1], [2]], 3).notes() == []
    assert ClassGroups([[0, 1], [2]], None).notes() == []
    notes = ClassGroups({"cat": [281, 282], "dog": [151, 282]}, 1000).notes()
    assert notes == [
        "1 of the teacher's classes in several groups, such as class 282 in those of cat, dog: its probability counts "
        "in each",
        "997 of the 1000 classes of the teacher in no group: 0, 1, 2, ...",
    ]
    (note,) = ClassGroups({"cat": [0, 1], "dog": [1, 0], "fox": [2, 0]}, 3).notes()
    assert note.startswith("2 of the teacher's classes in several groups, such as class 0 in those of cat, dog, fox: ")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "classes must have a group of the teacher's classes for each class, got none"),
        ({"cat": [0], "dog": []}, "classes: dog has no class of the teacher, it needs one or more"),
        ({"cat": [0, 5]}, r"classes: cat names class 5, but the teacher has classes 0..4"),
        ([[0], [-1]], r"classes: 1 names class -1, but the teacher has classes 0..4"),
    ],
)
def test_refuses_groups_that_name_what_is_not_there(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassGroups(groups, 5)
