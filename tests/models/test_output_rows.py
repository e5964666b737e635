"""Logits and features come back from one row of bytes, to float16 rounding."""

import pytest
import torch

from lit_distill.models.answer_rows import AnswerRows
from lit_distill.models.output import TeacherOutput
from lit_distill.models.output_rows import OutputRows


@pytest.mark.parametrize("logits", [None, AnswerRows(7), AnswerRows(1000, 3), AnswerRows(40_000, 3)])
@pytest.mark.parametrize("features", [{}, {"pooled": (5,)}, {"a": (3, 2, 1), "one": (), "b": (4,)}])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_an_answer_comes_back_to_float16_rounding(logits, features, count) -> None:
    rows = OutputRows(logits, features)
    if not rows.stride:
        return
    answer = TeacherOutput(
        None if logits is None else torch.randn(count, logits.num_classes),
        {"left out": torch.ones(count), **{name: torch.randn(count, *shape) for name, shape in features.items()}},
    )
    packed = rows.pack(answer)
    assert packed.shape == (count, rows.stride)
    restored = rows.unpack(packed)
    assert restored.features.keys() == features.keys()
    for name in features:
        assert torch.equal(restored.features[name], answer.features[name].half().float())
    if logits is None:
        assert restored.logits is None
    else:
        assert torch.equal(restored.logits, logits.unpack(logits.pack(answer.logits)))
    assert torch.equal(rows.pack(restored), packed)


def test_it_says_in_words_what_is_kept() -> None:
    assert str(OutputRows(AnswerRows(1000, 8))) == "top 8 of 1000 classes"
    assert str(OutputRows(None, {"blocks.3": (49, 8), "one": ()})) == "feature blocks.3 of 49x8, feature one of 1"
    assert str(OutputRows(None)) == ""


def test_an_answer_of_another_shape_is_refused() -> None:
    rows = OutputRows(AnswerRows(3), {"pooled": (4,)})
    for answer, message in (
        (TeacherOutput(None), "the teacher has no logits, and nothing else is cached"),
        (TeacherOutput(torch.zeros(2, 3)), "the teacher's feature 'pooled' is missing, expected"),
        (TeacherOutput(torch.zeros(2, 3), {"pooled": torch.zeros(2, 5)}), r"'pooled' has the shape \(5,\), expected"),
    ):
        with pytest.raises(ValueError, match=message):
            rows.pack(answer)
