"""The project has no label smoothing of its own: torch's is the one that timm, and so the origin, computes."""

import pytest
from timm.loss import LabelSmoothingCrossEntropy
import torch


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_torchs_label_smoothing_equals_timms(classes: int, smoothing: float) -> None:
    logits, target = 3 * torch.randn(16, classes), torch.randint(classes, (16,))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(ours, target)
    expected = LabelSmoothingCrossEntropy(smoothing)(theirs, target)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
