import pytest
import torch

from lit_distill.losses._logits import as_float32, as_labels, check_same_classes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_float32_and_float64_stays(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.5, -2.0]], dtype=dtype)
    wide = as_float32(logits)
    assert wide.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(wide, logits.to(wide.dtype))


def test_differences_of_the_largest_bfloat16_values_are_finite() -> None:
    logits = as_float32(torch.tensor([torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).min]).bfloat16())
    assert (logits[0] - logits[1]).isfinite()


def test_labels_are_the_likeliest_classes_of_probabilities() -> None:
    assert as_labels(torch.tensor([2, 0], dtype=torch.int32)).tolist() == [2, 0]
    assert as_labels(torch.tensor([[0.2, 0.8], [0.6, 0.4]])).tolist() == [1, 0]


@pytest.mark.parametrize(("student", "teacher"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2,), (2,))])
def test_other_shapes_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have one shape \(B, K\)"):
        check_same_classes(torch.zeros(student), torch.zeros(teacher))


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or more classes, got 1"):
        check_same_classes(torch.zeros(4, 1), torch.zeros(4, 1), least=2)
