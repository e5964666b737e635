from collections.abc import Sequence
import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
import yaml

from lit_distill.losses import HardDistillation, SoftDistillation
from lit_distill.models import ClassGroups

GROUPS: list[list[list[int]]] = [[[0, 2], [1]], [[4], [0, 1, 2, 3]], [[0], [1], [2, 3, 4]], [[2, 1], [1, 3, 0]]]
PRIOR = [0.4, 0.1, 0.2, 0.05, 0.25]


def bayes(logits: Tensor, groups: list[list[int]], prior: Sequence[float], target: Sequence[float]) -> Tensor:
    """Bayes' rule, one image and one group after the other."""
    rows = []
    for image in logits.double():
        probability = [torch.exp(z) / sum(torch.exp(other) for other in image) for z in image]
        likelihoods = [sum(probability[m] for m in group) / sum(prior[m] for m in group) for group in groups]
        joint = [likelihood * share for likelihood, share in zip(likelihoods, target, strict=True)]
        rows.append(torch.stack([part / sum(joint) for part in joint]))
    return torch.stack(rows)


@pytest.mark.parametrize("groups", GROUPS)
def test_sums_alone_add_the_probabilities_of_a_group_and_share_out_the_rest(groups: list[list[int]]) -> None:
    logits = 5 * torch.randn(8, 5)
    p = torch.softmax(logits.double(), dim=1)
    expected = torch.stack([p[:, group].sum(dim=1) for group in groups], dim=1)
    expected = expected / expected.sum(dim=1, keepdim=True)
    summing = ClassGroups(groups, 5, target_prior="teacher")
    combined = summing(logits)
    torch.testing.assert_close(torch.softmax(combined, dim=1).double(), expected, rtol=1e-5, atol=1e-7)
    assert summing.sums_only


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_is_bayes_rule_for_soft_and_hard_labels_at_any_temperature(
    groups: list[list[int]], given: bool, temperature: float
) -> None:
    logits, student = 5 * torch.randn(16, 5), torch.randn(16, len(groups))
    target = [3.0, 1.0, 2.0][: len(groups)] if given else [1.0] * len(groups)
    priors: dict[str, Any] = {"teacher_prior": PRIOR, "target_prior": target} if given else {}
    teacher = ClassGroups(groups, 5, **priors)(logits)
    posterior = bayes(logits, groups, PRIOR if given else [0.2] * 5, target)
    torch.testing.assert_close(teacher.softmax(dim=1).double(), posterior, rtol=0, atol=1e-6)

    tempered = posterior ** (1 / temperature)
    tempered = tempered / tempered.sum(dim=1, keepdim=True)
    log_student = (student.double() / temperature).log_softmax(dim=1)
    kl = (tempered * (tempered.log() - log_student)).sum(dim=1)
    soft = SoftDistillation(temperature, reduction="batchmean")(student, teacher, torch.zeros(16).long())
    torch.testing.assert_close(soft.double(), temperature**2 * kl.mean(), rtol=1e-6, atol=1e-6)
    hard = HardDistillation()(student, teacher, torch.zeros(16).long())
    chosen = posterior.argmax(dim=1)
    torch.testing.assert_close(hard.double(), F.cross_entropy(student.double(), chosen), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", GROUPS)
def test_its_gradient_is_that_of_bayes_rule(groups: list[list[int]]) -> None:
    logits = (3 * torch.randn(4, 5)).requires_grad_()
    same = logits.detach().double().requires_grad_()
    weight = torch.randn(4, len(groups))
    target = [3.0, 1.0, 2.0][: len(groups)]
    (ClassGroups(groups, 5, PRIOR, target)(logits).softmax(dim=1) * weight).sum().backward()
    (bayes(same, groups, PRIOR, target) * weight).sum().backward()
    assert logits.grad is not None
    assert same.grad is not None
    torch.testing.assert_close(logits.grad.double(), same.grad, rtol=0, atol=1e-6)


def test_a_group_of_many_classes_does_not_swallow_one_of_few() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 281:286] = 1.0  # each cat is likelier than each dog
    classes = {"cat": "281-285", "dog": "151-268"}
    assert ClassGroups(classes, 1000, target_prior="teacher")(logits).argmax() == 1
    assert ClassGroups(classes, 1000)(logits).argmax() == 0


def test_one_to_one_groups_leave_logits_as_they_are_and_what_it_computes_in_leaves_the_priors() -> None:
    logits = torch.randn(4, 3)
    assert torch.equal(ClassGroups([[2], [0], [1]], 3)(logits), logits[:, [2, 0, 1]])
    groups = ClassGroups([[0, 1], [2]], 3)
    before = groups(logits)
    assert torch.equal(copy.deepcopy(groups.half())(logits), before)
    assert groups.state_dict() == {}


def test_the_frequencies_are_counted_when_they_are_asked_for() -> None:
    groups, logits = ClassGroups({"dog": [0, 1], "cat": [2]}, 3, target_prior="frequencies"), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"'frequencies', but nobody has said how many .*: give target_prior as"):
        groups(logits)
    groups.order(["cat", "dog"])
    groups.set_counts(lambda: None)
    assert groups.grouping()["target_prior"] is None
    groups.set_counts(lambda: [30, 10])
    by_number = ClassGroups({"cat": [2], "dog": [0, 1]}, 3, target_prior={"dog": 1, "cat": 3})
    torch.testing.assert_close(groups(logits), by_number(logits))
    assert groups.grouping() == {
        "classes": {"cat": [2], "dog": [0, 1]},
        "teacher_shares": [1 / 3, 2 / 3],
        "target_prior": [0.75, 0.25],
    }
    with pytest.raises(ValueError, match="images of each class must be > 0, got 0 for dog"):
        groups.set_counts(lambda: [30, 0])
    by_number.set_counts(lambda: pytest.fail("nobody has asked"))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -3e4]])
    assert ClassGroups([[0], [1, 3], [2]], 4, target_prior="teacher")(logits).tolist() == [[0.0, -2e4, -1e4]]
    assert ClassGroups([[0], [1, 3], [2]], 4)(logits).isfinite().all()


@pytest.mark.parametrize(("spread", "shift"), [(50.0, 0.0), (1.0, 30.0), (5.0, -1000.0)])
def test_logits_of_any_size_are_as_near_to_bayes_rule(spread: float, shift: float) -> None:
    logits = (spread * torch.randn(64, 1000) + shift).requires_grad_()
    same = logits.detach().double().requires_grad_()
    members = torch.randperm(1000)[:900].split(300)  # a class in no group may be the likeliest
    weight = torch.randn(64, 3)
    probability = ClassGroups([group.tolist() for group in members], 1000)(logits).softmax(dim=1)
    # By logarithms, since all groups together may have less than the smallest number.
    expected = torch.stack([same[:, group].logsumexp(dim=1) for group in members], dim=1).softmax(dim=1)
    torch.testing.assert_close(probability.double(), expected, rtol=0, atol=1e-6)
    (probability * weight).sum().backward()
    (expected * weight).sum().backward()
    assert logits.grad is not None
    assert same.grad is not None
    torch.testing.assert_close(logits.grad.double(), same.grad, rtol=0, atol=1e-6)


def test_a_group_whose_logits_are_all_minus_infinity_has_no_probability_and_no_gradient() -> None:
    logits = torch.tensor([[1.0, -torch.inf, -torch.inf, 0.0]], requires_grad=True)
    probability = ClassGroups([[0, 3], [1, 2]], 4)(logits).softmax(dim=1)
    assert probability.tolist() == [[1.0, 0.0]]
    probability[:, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0] * 4]


def test_follows_the_datas_order_of_names() -> None:
    groups, logits = ClassGroups({"dog": [1, 2], "cat": [0]}, 3, [1, 2, 3], {"cat": 5, "dog": 1}), torch.randn(4, 3)
    before = groups(logits)
    groups.order(["cat", "dog"])
    assert groups.names == ["cat", "dog"]
    assert torch.equal(groups(logits), before[:, [1, 0]])
    with pytest.raises(ValueError, match="only the teacher has dog, only the data has fox; classes= "):
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


def test_notes_overlaps_what_is_in_no_group_and_the_priors() -> None:
    assert ClassGroups([[0, 1], [2, 3]], 4).notes() == []
    assert ClassGroups([[0, 1], [2, 3]], None).notes() == []
    notes = ClassGroups({"cat": [281, 282], "dog": [151, 282]}, 1000).notes()
    assert notes == [
        "1 of the teacher's classes in several groups, such as class 282 in those of cat, dog: its probability counts "
        "in each",
        "997 of the 1000 classes of the teacher in no group: 0, 1, 2, ...",
    ]
    note, prior = ClassGroups({"cat": [0, 1], "dog": [1, 0], "fox": [2, 0, 1]}, 3).notes()
    assert note.startswith("2 of the teacher's classes in several groups, such as class 0 in those of cat, dog, fox: ")
    assert prior == (
        "its probabilities are corrected from its own prior to the target's: cat from 28.6% to 33.3%, dog from 28.6% "
        "to 33.3%, fox from 42.9% to 33.3%"
    )


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "classes must have a group of the teacher's classes for each class, got none"),
        ({"cat": [0], "dog": []}, "classes: dog has no class of the teacher, it needs one or more"),
        ({"cat": [0, 5]}, r"classes: cat names class 5, but the teacher has classes 0..4"),
        ([[0], [-1]], r"classes: 1 names class -1, but the teacher has classes 0..4"),
        ({"cat": "5, 3-1"}, "classes: cat has a range that begins after its end, 3-1: write 1-3"),
        ({"cat": "0-9"}, r"classes: cat names class 5, but the teacher has classes 0..4"),
        ({"cat": "tabby"}, "classes: cat must be numbers, or text such as '7-24, 80-100', got 'tabby'"),
        ([["1"]], r"classes: 0 must be numbers, or text such as '7-24, 80-100', got \['1'\]"),
        ([[1.5]], r"classes: 0 must be numbers, .*, got \[1.5\]"),
        ([[0], [True]], r"classes: 1 must be numbers, .*, got \[True\]"),
        ({"cat": None}, "classes: cat must be numbers, .*, got None"),
        ({"cat": 1.5}, "classes: cat must be numbers, .*, got 1.5"),
        ({"cat": True}, "classes: cat must be numbers, .*, got True"),
        ("0-1", "classes must be a list or a mapping with a group for each class, got '0-1'"),
        (3, "classes must be a list or a mapping with a group for each class, got 3"),
    ],
)
def test_refuses_groups_that_name_what_is_not_there(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassGroups(groups, 5)


def test_numbers_of_other_libraries_and_in_quotes_are_numbers() -> None:
    groups = ClassGroups({"cat": torch.tensor([0, 2]), "dog": range(1, 2)}, 3, torch.ones(3), ["0.3", "0.7"])  # type: ignore[dict-item, list-item, arg-type]
    assert groups.grouping() == {
        "classes": {"cat": [0, 2], "dog": [1]},
        "teacher_shares": [2 / 3, 1 / 3],
        "target_prior": [0.3, 0.7],
    }


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"teacher_prior": [1, 1, 0, 1, 1]}, r"teacher_prior summed over each group must be > 0, got 0.0 for dog"),
        ({"teacher_prior": [1, 1, 1]}, "teacher_prior must have a finite number >= 0 for each of .* 5 classes, got 3"),
        ({"teacher_prior": [1, 1, 1, 1, -1]}, "teacher_prior must have a finite number >= 0"),
        ({"target_prior": [1, 0]}, "target_prior must be > 0, got 0 for dog: give a small number, such as 0.001"),
        ({"target_prior": [1, 2, 3]}, "target_prior must have 2 values, one for each class, got 3"),
        ({"target_prior": {"cat": 1}}, "target_prior must have a number for each of cat, dog, got cat"),
        ({"target_prior": {"cat": 1, "dog": float("nan")}}, "target_prior must be > 0, got nan for dog"),
        ({"target_prior": 0.5}, "target_prior must be numbers, one for each class, got 0.5"),
        ({"target_prior": ["much", 1]}, r"target_prior must be numbers, one for each class, got \['much', 1\]"),
        ({"teacher_prior": [1, 1, 1, 1, None]}, "teacher_prior must be numbers, one for each class, got"),
        ({"target_prior": "uniformly"}, "target_prior must be 'uniform', 'teacher' or 'frequencies', got 'uniformly'"),
    ],
)
def test_refuses_a_prior_that_is_zero_or_not_of_these_classes(priors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ClassGroups({"cat": [0, 1], "dog": [2]}, 5, **priors)
    assert "\n" not in str(error.value)


def test_a_name_that_is_nearly_one_of_the_data_is_pointed_out() -> None:
    groups = ClassGroups({"cats": [0], "dog": [1]}, 2)
    with pytest.raises(ValueError, match=r"only the data has cat \(did you mean 'cat'\?\); classes= "):
        groups.order(["cat", "dog"])
