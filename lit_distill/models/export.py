"""Write a trained student for use without this project's training code, and check what was written."""

from collections.abc import Mapping, Sequence
import copy
from importlib.metadata import version
from importlib.util import find_spec
import json
from pathlib import Path
import tempfile
from typing import cast
import warnings

from safetensors.torch import save_file
import torch
from torch import Tensor, nn

from lit_distill.checks import check_choice
from lit_distill.models.card import without_places
from lit_distill.models.finite import refuse_not_finite
from lit_distill.models.output import Head, StudentOutput
from lit_distill.models.saved import load_student
from lit_distill.models.weights import plain_names

_TOLERANCE = 1e-4  # ONNX Runtime sums in another order


def export_student(
    student: nn.Module,
    path: str | Path,
    card: Mapping[str, object],
    image_shape: Sequence[int],
    *,
    head: Head = "mean_probs",
    onnx: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write ``student.safetensors``, ``student.json`` and perhaps ``student.onnx`` into a new folder.

    Reads each file back and compares it with the student on random images. Only then does the folder appear in its
    place.

    Args:
        student: Images to `StudentOutput` or to one ``(B, K)`` tensor.
        path: The folder.
        card: The content of ``student.json``; its ``student`` tells `load_student` how to make the network.
        image_shape: ``(C, H, W)`` of the images.
        head: The head that predicts, here and in the ONNX output ``probabilities``; see `StudentOutput.log_probs`.
        onnx: Write ``student.onnx`` too: a float image batch 0..1 of any size B to ``probabilities``, ``logits`` and
            ``distill_logits``, each ``(B, K)``. Its metadata holds ``class_names``, ``preprocessing``, ``image_shape``
            and ``head`` of the card, each as JSON. Needs the extra ``lit-distill[onnx]``.
        overwrite: Replace the folder if it exists.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder exists, its parent does not, the extra is missing, weights or outputs are not finite,
            or a written file answers otherwise than the student.
    """
    path = Path(path)
    _check_place(path, overwrite)
    check_choice(Head, head=head)
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if onnx and find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'lit-distill[onnx]'")
    refuse_not_finite(student)
    student = student.eval().float().cpu()
    whole = {"preprocessing": None, **card, "image_shape": list(image_shape), "head": head}
    whole["trained"] = without_places(card.get("trained"))
    whole["files"] = ["student.safetensors", "student.onnx"] if onnx else ["student.safetensors"]
    whole["made_with"] = {name: version(name) for name in ("lit-distill", "torch", "torchvision", "timm")}
    image = torch.rand(3, *image_shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}-") as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        _write_student(student, folder, whole)
        with torch.no_grad():
            expected = StudentOutput.of(student(image))
            if not all(output.isfinite().all() for output in expected.heads):
                raise ValueError("the student's outputs are NaN or infinite on random images: nothing was written")
            reloaded = StudentOutput.of(_reloaded(student, folder, card)(image))
            _compare("student.safetensors", expected.heads, reloaded.heads, 0.0)
        if onnx:
            _write_onnx(student, image[:2], head, folder / "student.onnx", whole)
            outputs = _run_onnx(folder / "student.onnx", image)
            probabilities = expected.log_probs(head).exp()
            _compare("student.onnx", (probabilities, *expected.heads), outputs, _TOLERANCE)
        if path.exists():
            path.rename(Path(temporary) / "before")
        folder.rename(path)
    return path


def _check_place(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists and is not overwritten: choose another folder, or add --overwrite")
    if path.exists() and not (path / "student.json").is_file():
        raise ValueError(f"{path} is not an earlier export and is not overwritten: choose another folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}: make it first")


def _write_student(student: nn.Module, folder: Path, card: Mapping[str, object]) -> None:
    weights, text = folder / "student.safetensors", folder / "student.json"
    save_file({name: value.contiguous().clone() for name, value in plain_names(student.state_dict()).items()}, weights)
    text.write_text(json.dumps(card, indent=2) + "\n")
    weights.chmod(text.stat().st_mode)  # safetensors lets the user alone read them


def _reloaded(student: nn.Module, folder: Path, card: Mapping[str, object]) -> nn.Module:
    if card.get("student"):
        packages = {type(module).__module__.partition(".")[0] for module in student.modules()}
        return load_student(folder, trust=packages)  # this process runs their code already
    return load_student(folder, copy.deepcopy(student))


class _ForOnnx(nn.Module):
    def __init__(self, student: nn.Module, head: Head) -> None:
        super().__init__()
        self.student = student
        self.head: Head = head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = StudentOutput.of(self.student(image))
        return output.log_probs(self.head).exp(), output.logits, output.distill_logits


def _write_onnx(student: nn.Module, image: Tensor, head: Head, path: Path, card: Mapping[str, object]) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # an extra

    with warnings.catch_warnings(action="ignore"):  # the exporter's, about torch itself
        exported = torch.onnx.export(
            _ForOnnx(student, head).eval(),
            (image,),
            input_names=["image"],
            output_names=["probabilities", "logits", "distill_logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    program = cast(torch.onnx.ONNXProgram, exported)
    ClearMetadataAndDocStringPass()(program.model)  # torch's local paths
    # What a user of the file must know.
    for key in ("class_names", "preprocessing", "image_shape", "head"):
        program.model.metadata_props[key] = json.dumps(card.get(key))
    program.save(path, external_data=False)


def _run_onnx(path: Path, image: Tensor) -> list[Tensor]:
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]


def _compare(name: str, expected: Sequence[Tensor], outputs: Sequence[Tensor], tolerance: float) -> None:
    for wanted, output in zip(expected, outputs, strict=True):
        difference = float((wanted - output).abs().max()) if wanted.shape == output.shape else float("inf")
        if not difference <= tolerance:
            raise ValueError(f"{name} answers otherwise than the student, by {difference:.1e}: nothing was written")
