from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_distill.models.output import HEADS, StudentOutput

LOGITS, OTHERS = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.5]])


@pytest.mark.parametrize(
    "output",
    [LOGITS, (LOGITS,), {"logits": LOGITS, "hidden_states": None}, SimpleNamespace(logits=LOGITS)],
    ids=["tensor", "tuple of one", "mapping", "object"],
)
def test_one_head_serves_both_losses(output: Any) -> None:
    assert all(head is LOGITS for head in StudentOutput.of(output)[:2])


@pytest.mark.parametrize("output", [(LOGITS, OTHERS), [LOGITS, OTHERS], StudentOutput(LOGITS, OTHERS)])
def test_a_pair_is_two_heads(output: Any) -> None:
    logits, distill_logits = StudentOutput.of(output)[:2]
    assert logits is LOGITS
    assert distill_logits is OTHERS


@pytest.mark.parametrize("output", [None, {"other": LOGITS}, (LOGITS,) * 3, "text"])
def test_other_outputs_are_refused(output: Any) -> None:
    with pytest.raises(ValueError, match=r"expected its logits \(B, K\)"):
        StudentOutput.of(output)


def test_heads_are_combined_as_deit_does() -> None:
    output = StudentOutput(LOGITS, OTHERS)
    mean = (LOGITS.softmax(dim=1) + OTHERS.softmax(dim=1)) / 2
    expected = {
        "class": LOGITS.softmax(dim=1),
        "distill": OTHERS.softmax(dim=1),
        "mean_logits": ((LOGITS + OTHERS) / 2).softmax(dim=1),
        "mean_probs": mean,
    }
    assert set(expected) == set(HEADS)
    for head in HEADS:
        torch.testing.assert_close(output.log_probs(head).exp(), expected[head])
        torch.testing.assert_close(output.combined(head).softmax(dim=1), expected[head])


def test_an_unknown_head_is_refused() -> None:
    unknown: Any = "mean"
    with pytest.raises(ValueError, match="head must be"):
        StudentOutput(LOGITS, OTHERS).combined(unknown)
