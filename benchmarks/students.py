"""What an export and a checkpoint of several students are: ONNX Runtime's error, and the file's size.

    python benchmarks/students.py --seed 0

Random weights and random images, float32, on the CPU. The error is the largest absolute difference between ONNX
Runtime's outputs and the eager student's over 16 images, of the file that `export --onnx` writes. The checkpoint is
Lightning's after a step of AdamW beside a teacher; its size is set against the bytes of the student's and the
optimizer's tensors.
"""

from collections.abc import Callable
from pathlib import Path
import tempfile

from lightning.pytorch import Trainer
from measure import Report, options_of, quiet
import onnxruntime
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillableViT, HardDistillation, LitDistiller, StudentOutput, TimmStudent
from lit_distill.models.export import export_student

CLASSES = 10
VIT = {"dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768}
DIGITS = {"dim": 64, "depth": 4, "heads": 4, "mlp_dim": 128, "dim_head": 16, "channels": 1}
STUDENTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "`DistillableViT`, 224 px": (lambda: DistillableViT(224, 16, CLASSES, **VIT), (3, 224, 224)),
    "`DistillableViT` of the digits, 8 px": (lambda: DistillableViT(8, 4, CLASSES, **DIGITS), (1, 8, 8)),
    "`deit_tiny_distilled_patch16_224`": (
        lambda: TimmStudent("deit_tiny_distilled_patch16_224", CLASSES),
        (3, 224, 224),
    ),
    "`vit_tiny_patch16_224`, token added": (lambda: TimmStudent("vit_tiny_patch16_224", CLASSES), (3, 224, 224)),
    "`resnet18`, one head": (lambda: TimmStudent("resnet18", CLASSES), (3, 224, 224)),
}


def onnx_errors(student: nn.Module, shape: tuple[int, int, int], folder: Path) -> tuple[float, float, float]:
    """Return the errors of the probabilities and of the logits, and the largest logit."""
    export_student(student, folder / "student", {}, shape, onnx=True)
    session = onnxruntime.InferenceSession(folder / "student" / "student.onnx", providers=["CPUExecutionProvider"])
    image = torch.rand(16, *shape)
    with torch.no_grad():
        output = StudentOutput.of(student(image))
    expected = (output.log_probs().exp(), *output.heads)
    got = session.run(["probabilities", "logits", "distill_logits"], {"image": image.numpy()})
    errors = [float((torch.from_numpy(b) - a).abs().max()) for a, b in zip(expected, got, strict=True)]
    return errors[0], max(errors[1:]), float(torch.stack(output.heads).abs().max())


def checkpoint_ratio(student: nn.Module, shape: tuple[int, int, int], folder: Path) -> tuple[float, float]:
    """Return the checkpoint's size in MB of 10^6 bytes, and over that of the tensors of student and optimizer."""
    teacher = timm.create_model("resnet18", num_classes=CLASSES, in_chans=shape[0])
    module = LitDistiller(student.train(), teacher, distillation=HardDistillation())
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.rand(2, *shape), torch.tensor([0, 1])), 2))
    trainer.save_checkpoint(folder / "last.ckpt")
    state = trainer.optimizers[0].state.values()
    tensors = [*student.state_dict().values(), *(value for one in state for value in one.values())]
    size = (folder / "last.ckpt").stat().st_size
    return size / 1e6, size / sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    options = options_of(__doc__)
    report = Report(__file__, options, "student")
    students = list(STUDENTS.items())
    for name, (make, shape) in students if options.length == 1 else students[1:2]:

        def measure(make: Callable[[], nn.Module] = make, shape: tuple[int, int, int] = shape) -> dict[str, float]:
            torch.manual_seed(options.seed)
            student = make()
            with tempfile.TemporaryDirectory() as folder, quiet():
                probabilities, logits, largest = onnx_errors(student, shape, Path(folder))
                megabytes, ratio = checkpoint_ratio(student, shape, Path(folder))
            errors = {"probabilities": probabilities, "logits": logits, "largest logit": largest}
            return {**errors, "checkpoint (MB)": megabytes, "/ student + optimizer": ratio}

        report.once("largest error of ONNX Runtime, and the checkpoint", name, measure)
    report.finish()


if __name__ == "__main__":
    main()
