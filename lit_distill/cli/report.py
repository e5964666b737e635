"""What ``distill`` prints: what it found, how long it takes, and what came of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import shlex
from typing import Any, cast

from lightning.pytorch import Trainer

from lit_distill.checks import knows_little_below
from lit_distill.cli.plan import SizedData
from lit_distill.cli.stage import Stage
from lit_distill.datamodules import FilesDataModule
from lit_distill.datamodules.walk import printable
from lit_distill.losses import HardDistillation
from lit_distill.models import load_safely, load_student
from lit_distill.models.card import card_of
from lit_distill.models.output import Head
from lit_distill.module import LitDistiller


def data_line(root: str, data: SizedData) -> str:
    """Return a line about the data: its folder, images, classes and size."""
    count = f"{len(data.splits['train'].files)} images to train on, " if isinstance(data, FilesDataModule) else ""
    names = list(map(str, getattr(data, "class_names", None) or []))
    more = [f"... {len(names)} in all"] if len(names) > 5 else []
    classes = ", ".join([*names[:5], *more])
    shown = f" ({classes})" if names else ""
    return f"{printable(root)}: {count}{data.num_classes} classes{shown}, seen at {data.image_size} px"


def table(teachers: Sequence[Stage], student: Stage, exported: Path, data: SizedData, accelerator: str) -> str:
    """Measure the exported student, and return what came of the runs and where it is."""
    metrics = card_of(load_safely(student.checkpoint, "checkpoint"), student.checkpoint)["metrics"]
    served = load_student(exported)
    head = cast(Mapping[str, Head], served.card)["head"]
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = Trainer(accelerator=accelerator, devices=1, logger=False, **quiet)
    # With a distillation loss, both heads are measured as they answer.
    module = LitDistiller(served, distillation=HardDistillation(), head=head)
    (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    rows = {
        "teacher": metrics.get("val/teacher_accuracy"),
        "student": validated[f"val/accuracy_{head}"],
        "agreement of both": metrics.get("val/agreement"),
    }
    if isinstance(data, FilesDataModule) and "test" in data.splits:
        (tested,) = trainer.test(module, datamodule=data, verbose=False)
        rows["student, on the test folder"] = tested[f"test/accuracy_{head}"]
    places: dict[str, object] = {"student": exported, "checkpoint": student.checkpoint, "configuration": student.config}
    places |= {teacher.name: teacher.checkpoint for teacher in teachers}
    places["of photos"] = f"lit-distill predict {shlex.quote(str(exported))} photo.jpg"
    places["in Python"] = f"lit_distill.load_student({str(exported)!r})"
    accuracy, chance = validated[f"val/accuracy_{head}"], 1 / data.num_classes
    warning = (
        f"\nwarning: the student is right on {accuracy:.1%} of the validation images, where chance is {chance:.1%}: "
        "train it for longer (--epochs), on more photos, or from weights, such as "
        "--student=deit_tiny_distilled_patch16_224 --pretrained=true, which downloads them"
    )
    return "\n".join(
        [
            f"{'accuracy on the validation images':<38}{'last epoch':>12}",
            "-" * 50,
            *(f"{label:<38}{value:>12.2%}" for label, value in rows.items() if value is not None),
            "",
            *(f"{name:<15}{place}" for name, place in places.items()),
            *[warning] * (accuracy < knows_little_below(chance)),
        ]
    )
