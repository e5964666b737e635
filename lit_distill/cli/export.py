"""``lit-distill export``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
import shlex

from lit_distill.cli.arguments import command_parser, parse
from lit_distill.models import load_student
from lit_distill.models.card import card_on
from lit_distill.models.export import export_student
from lit_distill.models.output import Head


def export(
    ckpt_path: str | Path,
    output: str | Path | None = None,
    head: Head | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    trust: Iterable[str] = (),
) -> Path:
    """Write the student of a checkpoint of the command line, and say where it is.

    Args:
        ckpt_path: The checkpoint; or an earlier export, with ``output``.
        output: Folder to make; by default ``student`` beside the checkpoint.
        head: What predicts; by default as the run was set.
        onnx: Write ``student.onnx`` too.
        overwrite: Replace an earlier export.
        trust: As of `load_student`.

    Raises:
        ValueError: If an export is to be exported again without ``output``; and as `load_student` and `export_student`
            do.
    """
    if output is None and Path(ckpt_path).is_dir() and (Path(ckpt_path) / "student.json").is_file():
        raise ValueError(f"{ckpt_path} is an export already: give its run's checkpoint, or --output for another export")
    student = load_student(ckpt_path, trust=trust)
    card = dict(card_on(student))
    shape, chosen = card.pop("image_shape", None), card.pop("head", "mean_probs")
    if not shape:
        raise ValueError(f"{ckpt_path} does not say what images its student takes: it was saved before the first step")
    if head not in (None, "class") and "distill" not in card.get("trained_heads", ["distill"]):
        raise ValueError(f"head {head} is of a second head that {ckpt_path} has not trained: it was not distilled")
    folder = Path(ckpt_path).parent / "student" if output is None else output
    folder = export_student(student, folder, card, shape, head=head or chosen, onnx=onnx, overwrite=overwrite)
    size = sum(p.numel() for p in student.parameters())
    what = "student.safetensors, student.json" + (", student.onnx" if onnx else "")
    print(f"wrote {what} to {folder}: {size:,} parameters, each file checked against the student")
    print(f"  of photos: lit-distill predict {shlex.quote(str(folder))} photo.jpg")
    print(f"  in Python: lit_distill.load_student({str(folder)!r})")
    return folder


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill export``."""
    parser = command_parser("export", "Write the student of a checkpoint as safetensors with a JSON card, and as ONNX.")
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of a run of this command line.")
    parser.add_argument("--output", type=str | None, help="Folder to make; by default student, beside the checkpoint.")
    parser.add_argument(
        "--head",
        type=Head | None,
        help="What predicts: a head, or both by the mean of their logits or softmaxes; by default as the run was set.",
    )
    parser.add_argument("--onnx", action="store_true", help="Write student.onnx too; needs lit-distill[onnx].")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export.")
    config = parse(parser, args).as_dict()
    config.pop("debug")
    export(**config)
