"""What losses and exports are compared with; in a module of its own, for other processes to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
import warnings

import torch
from torch import Tensor, nn

from lit_distill import StudentOutput
from lit_distill.models.export import export_student
from lit_distill.models.output import HEADS

Loss = Callable[[Tensor, Tensor], Tensor]


def check_equal(loss: Loss, published: Loss, classes: int, scale: float = 3.0) -> None:
    """Value and gradient are the formula's, the gradient to 1e-6 of its largest entry."""
    student, teacher = (scale * torch.randn(16, classes) for _ in range(2))
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    value, expected = loss(ours, teacher), published(theirs, teacher.double())
    value.backward()
    expected.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=1e-7)
    size = theirs.grad.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(ours.grad.double() / size, theirs.grad / size, rtol=0, atol=2e-6)
    assert theirs.grad.abs().max() > 1e-5


def check_finite(loss: Loss, dtype: torch.dtype, scale: float | str) -> None:
    """Half precision, logits of any size: float32, finite, with a finite gradient."""
    size = torch.finfo(dtype).max if scale == "largest" else scale
    signs = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    for teacher in (-signs, signs, signs.flip(1), torch.zeros(4, 3)):
        student = (signs * size).to(dtype).requires_grad_()
        value = loss(student, (teacher * size).to(dtype))
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite(), (teacher, value)
        assert student.grad is not None
        assert student.grad.isfinite().all(), (teacher, student.grad)


def check_conduct(loss: Loss) -> None:
    """Autocast changes nothing, and the teacher gets no gradient."""
    student, teacher = torch.randn(4, 10), torch.randn(4, 10, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher)
    assert torch.equal(value, loss(student, teacher))
    loss(student.requires_grad_(), teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def onnx_differences(student: nn.Module, described: dict[str, Any], shape: list[int], folder: Path) -> list[float]:
    """By how much ONNX Runtime's outputs differ from the student's: for each head, batch size and output."""
    import onnxruntime

    warnings.simplefilter("ignore")
    differences = []
    for head in HEADS:
        export_student(student, folder, {"student": described}, shape, head=head, onnx=True, overwrite=True)
        session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
        for batch in (1, 2, 7):
            image = torch.rand(batch, *shape)
            got = session.run(["probabilities", "logits", "distill_logits"], {"image": image.numpy()})
            with torch.no_grad():
                output = StudentOutput.of(student.eval()(image))
            expected = (output.log_probs(head).exp(), *output)
            differences += [float((torch.from_numpy(b) - a).abs().max()) for a, b in zip(expected, got, strict=True)]
    return differences
