"""What losses and exports are compared with; in a module of its own, for other processes to import."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any
import warnings

import numpy as np
from PIL import Image, ImageOps
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
            expected = (output.log_probs(head).exp(), *output.heads)
            differences += [float((torch.from_numpy(b) - a).abs().max()) for a, b in zip(expected, got, strict=True)]
    return differences


def onnx_says(path: Path, photo: Path) -> tuple[str, list[float]]:
    """The class of a photo by ONNX Runtime, Pillow, NumPy and what the file's metadata says; nothing else."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    steps = about["preprocessing"]
    image = ImageOps.exif_transpose(Image.open(photo))  # steps["upright"]
    if image.has_transparency_data:  # steps["transparent"]
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    image = image.convert(steps["color"])
    width, height = image.size
    longer = int(steps["resize"] * max(image.size) / min(image.size))  # steps["longer_side"]
    size = (steps["resize"], longer) if width <= height else (longer, steps["resize"])
    image = image.resize(size, Image.Resampling[steps["interpolation"].upper()])
    top, left = (round((side - crop) / 2) for side, crop in zip(image.size[::-1], steps["crop"], strict=True))
    image = image.crop((left, top, left + steps["crop"][1], top + steps["crop"][0]))
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)  # steps["scale"]
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    (probabilities,) = session.run(["probabilities"], {"image": pixels[None]})
    return about["class_names"][int(probabilities.argmax())], probabilities[0].tolist()
