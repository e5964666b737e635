"""An exported student answers as the trained one did, and nothing is half-written."""

import json
from pathlib import Path
from typing import Any

from oracles import onnx_differences
import pytest
import torch
from torch import nn

from lit_distill import DistillableViT, StudentOutput, TimmStudent, load_student
from lit_distill.models import ConvTokenizer, read_state_dict
from lit_distill.models.export import export_student

VIT: dict[str, Any] = {
    "class_path": "lit_distill.DistillableViT",
    "init_args": {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8},
}
CONV: dict[str, Any] = {
    "class_path": "lit_distill.models.ConvTokenizer",
    "init_args": {"image_size": 8, "patch_size": 4, "dim": 8},
}
CONV_VIT = {**VIT, "init_args": {**VIT["init_args"], "tokenizer": CONV}}
TIMM = {
    "class_path": "lit_distill.TimmStudent",
    "init_args": {"name": "vit_tiny_patch16_224", "num_classes": 5, "img_size": 32, "patch_size": 8},
    "dict_kwargs": {"depth": 2},
}
RESNET = {"class_path": "lit_distill.TimmStudent", "init_args": {"name": "resnet10t", "num_classes": 5, "img_size": 32}}
BY_PIXEL = {**RESNET, "init_args": {**RESNET["init_args"], "channels_last": True}}


def make(described: dict[str, Any]) -> tuple[nn.Module, list[int]]:
    torch.manual_seed(0)
    kind = {"DistillableViT": DistillableViT, "TimmStudent": TimmStudent}[described["class_path"].rpartition(".")[2]]
    arguments = {**described["init_args"], **described.get("dict_kwargs", {})}
    if "tokenizer" in arguments:
        arguments["tokenizer"] = ConvTokenizer(**CONV["init_args"])
    student = kind(**arguments)
    return student, [3, 8, 8] if kind is DistillableViT else [3, 32, 32]


@pytest.mark.parametrize(
    "described",
    [VIT, CONV_VIT, TIMM, RESNET, BY_PIXEL],
    ids=["vit", "convolutional", "timm", "one head", "channels_last"],
)
def test_comes_back_with_the_same_bits_and_its_card(tmp_path, described: dict[str, Any]) -> None:
    student, shape = make(described)
    card = {"student": described, "class_names": ["a", "b", "c", "d", "e"], "metrics": {"val/nll": 0.5}}
    assert export_student(student, tmp_path / "out", card, shape) == tmp_path / "out"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["student.json", "student.safetensors"]
    back, image = load_student(tmp_path / "out"), torch.rand(4, *shape)
    assert not back.training
    assert read_state_dict(tmp_path / "out").keys() == student.state_dict().keys()  # as weights= of the next run
    for ours, theirs in zip(
        StudentOutput.of(back(image)).heads, StudentOutput.of(student.eval()(image)).heads, strict=True
    ):
        assert torch.equal(ours, theirs)
    written = json.loads((tmp_path / "out" / "student.json").read_text())
    assert back.card == written
    assert written.items() >= {**card, "image_shape": shape, "head": "mean_probs"}.items()
    assert written["made_with"].keys() == {"lit-distill", "torch", "torchvision", "timm"}


@pytest.mark.slow
@pytest.mark.parametrize("described", [VIT, CONV_VIT, TIMM, RESNET], ids=["vit", "convolutional", "timm", "one head"])
def test_onnx_runtime_answers_as_the_student_for_any_batch(tmp_path, unforked: Any, described: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    student, shape = make(described)
    differences = unforked(onnx_differences, student, described, shape, tmp_path / "out")
    assert len(differences) == 4 * 3 * 3  # heads, batch sizes, outputs
    assert max(differences) < 1e-4


def test_a_student_without_description_comes_back_into_its_network(tmp_path) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    export_student(student, tmp_path / "out", {"student": None}, [3, 4, 4])
    with pytest.raises(ValueError, match="does not say how to make its student: give student="):
        load_student(tmp_path / "out")
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    image = torch.rand(2, 3, 4, 4)
    assert torch.equal(load_student(tmp_path / "out", other)(image), student(image))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrites_only_an_export_and_only_if_told(tmp_path) -> None:
    student, shape = make(VIT)
    export_student(student, tmp_path / "out", {"student": VIT}, shape)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    before = everything(tmp_path)
    with pytest.raises(
        ValueError, match="out exists and is not overwritten: choose another folder, or add --overwrite"
    ):
        export_student(student, tmp_path / "out", {"student": VIT}, shape)
    with pytest.raises(ValueError, match="mine is not an earlier export and is not overwritten"):
        export_student(student, tmp_path / "mine", {"student": VIT}, shape, overwrite=True)
    with pytest.raises(ValueError, match="there is no folder"):
        export_student(student, tmp_path / "no" / "out", {"student": VIT}, shape)
    with pytest.raises(ValueError, match="head must be 'class', 'distill', 'mean_logits' or 'mean_probs', got 'best'"):
        export_student(student, tmp_path / "new", {"student": VIT}, shape, head="best")  # type: ignore[arg-type]
    assert everything(tmp_path) == before
    with torch.no_grad():
        student.head.bias.add_(1.0)
    export_student(student, tmp_path / "out", {"student": VIT}, shape, overwrite=True)
    assert torch.equal(load_student(tmp_path / "out").head.bias, student.head.bias)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_difference_or_a_crash_leaves_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, shape = make(VIT)
    with pytest.raises(ValueError, match=r"student.safetensors answers otherwise than the student, by .*: nothing"):
        export_student(
            student,
            tmp_path / "out",
            {"student": {**VIT, "init_args": {**VIT["init_args"], "mean": [0.5] * 3, "std": [0.5] * 3}}},
            shape,
        )
    monkeypatch.setattr("lit_distill.models.export.load_student", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_student(student, tmp_path / "out", {"student": VIT}, shape)
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_make_anything_but_a_module(tmp_path) -> None:
    student, shape = make(VIT)
    export_student(student, tmp_path / "out", {"student": VIT}, shape)
    card = json.loads((tmp_path / "out" / "student.json").read_text())
    trace = tmp_path / "ran"
    for described, message in (
        (
            {"class_path": "os.mkdir", "init_args": {"path": str(trace)}},
            "it names os.mkdir, and a file may only name classes of lit_distill and torch.nn",
        ),
        (
            {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(trace)]}},
            "it names subprocess.Popen, and a file",
        ),
        ({"class_path": "no_such_package.Net"}, r"add trust=\['no_such_package'\] to the call"),
        ({"class_path": "lit_distill.NoSuchNet"}, "needs lit_distill.NoSuchNet, which cannot be imported"),
        ({"class_path": "torch.nn.Parameter"}, "it names torch.nn.Parameter, which is no torch.nn.Module"),
        ({**VIT, "init_args": {**VIT["init_args"], "tokenizer": {"class_path": "os.mkdir"}}}, "it names os.mkdir"),
    ):
        (tmp_path / "out" / "student.json").write_text(json.dumps({**card, "student": described}))
        with pytest.raises(ValueError, match=message):
            load_student(tmp_path / "out")
    assert not trace.exists()
    (tmp_path / "out" / "student.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*student.json"):
        load_student(tmp_path / "out")
    with pytest.raises(ValueError, match=r"is a directory without student.json: .*; there is one in .*out$"):
        load_student(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no export of a student, and no checkpoint$"):
        load_student(tmp_path / "empty")
