"""A foreign configuration is in the form that this project writes, and names no foreign code; all else is refused."""

from pathlib import Path
import sys
from typing import Any

import pytest
import torch

from lit_distill import LitDistiller
from lit_distill.datamodules import Augmentation, DigitsDataModule, ImageFolderDataModule
from lit_distill.models.described import check_arguments, check_value

VIT = {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
TIMM = {"class_path": "lit_distill.TimmStudent"}
STUDENT = {"class_path": "lit_distill.DistillableViT", "init_args": VIT}


def teacher(model: Any, **more: Any) -> dict[str, Any]:
    return {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": model, **more}}


def test_what_this_project_writes_is_fine() -> None:
    check_arguments(
        {
            "student": {**STUDENT, "init_args": {**VIT, "tokenizer": None, "mean": [0.5], "pool": "cls"}},
            "teacher": teacher("resnet18.a1_in1k", classes={"cat.1": [0, 1], "dog: 2": [2]}, mean=None, trust=[]),
            "criterion": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.99]}},
            "scheduler": {"class_path": "lit_distill.WarmupCosine", "init_args": {"warmup": 0.1}},
            "head": "mean_probs",
            "alpha": 0.5,
        },
        LitDistiller,
        "x.ckpt",
    )
    for model in ("logs/os.d/last.ckpt", "torchvision.models.resnet18", "2024-99-99", "teacher.ckpt"):
        check_arguments({"teacher": teacher(model)}, LitDistiller, "x.ckpt")
    data = {"root": "photos: {all}", "augmentation": {"crop": "padded", "policy": "rand-m9-mstd0.5-inc1"}}
    check_arguments(data, ImageFolderDataModule, "x.ckpt")
    check_arguments({"crop": "none", "scale": [0.1, 1.0]}, Augmentation, "x.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": {"class_path": "evil.Net"}}, "it names evil.Net"),
        ({"student": {"class_path": "\u00e9vil.Net"}}, "it names \u00e9vil.Net"),
        ({"student": {"class_path": "Net"}}, "it names Net, and a file may only name"),
        ({"student": {"class_path": "evil.Net\n"}}, "it names evil.Net"),
        ({"student": "evil.Net"}, "LitDistiller.student is the text 'evil.Net', which could be read as a class"),
        ({"student": "{class_path: evil.Net}"}, "is the text"),
        ({"student": "student.yaml"}, "is the text 'student.yaml'"),
        ({"criterion": "class_path:\tevil.Net"}, "is the text"),
        ({"optimizer": "evil.touch"}, "LitDistiller.optimizer is the text"),
        ({"scheduler": {"class_path": "os.system"}}, "it names os.system"),
        ({"optimizer": {"class_path": "torch.hub.load"}}, "it names torch.hub.load"),
        ({"student": {**STUDENT, "init_args.trust": "evil"}}, "has 'init_args.trust' beside its class_path"),
        ({"student": {**STUDENT, "init_args": {**VIT, "dim+": 1}}}, "'dim+' is no name of an argument"),
        ({"teacher+": None}, "'teacher+' is no name of an argument of LitDistiller"),
        ({"teacher": teacher("x", trust=["evil"])}, "it asks to trust ['evil']"),
        ({"teacher": teacher("os.system", model_args={"command": "touch trace"})}, "it names os.system"),
        ({"teacher": teacher("evil:Net")}, "it names evil:Net"),
        ({"teacher": teacher("evil.Net:")}, "it names evil.Net:"),
        ({"teacher": teacher("\u00e9vil.Net")}, "it names \u00e9vil.Net"),
        ({"teacher": teacher({"class_path": "evil.Net"})}, "it names evil.Net"),
        ({"student": {"class_path": "torch.nn.ModuleList", "init_args": {"modules": {"evil.Net"}}}}, "is a set"),
        ({"student": {"class_path": "torch.nn.ModuleList", "init_args": {"modules": ["evil.Net"]}}}, "is the text"),
        ({"student": {"class_path": "torch.nn.ModuleDict", "init_args": {"modules": {"a": "evil.Net"}}}}, "a mapping"),
        ({"student": {**TIMM, "dict_kwargs": {"x": "{class_path: evil.Net}"}}}, "is the text"),
        ({"student": {**TIMM, "dict_kwargs": {"x": {"class_path": "evil.Net"}}}}, "it names evil.Net"),
        ({"student": {"class_path": "torch.nn.ReLU", "init_args": {"x": 1}}}, "ReLU has no argument 'x'"),
        ({"student": {"class_path": "lightning.pytorch.callbacks.LambdaCallback"}}, "it names lightning.pytorch"),
        ({"student": {"name": "resnet18"}}, "is a mapping without a class_path"),
        ({"student": torch.zeros(1)}, "is a Tensor"),
        ({"student": {**STUDENT, "init_args": [1]}}, "the init_args of LitDistiller.student are a list"),
    ],
)  # fmt: skip
def test_all_else_is_refused(arguments: dict[str, Any], message: str, tmp_path, monkeypatch) -> None:
    trace = tmp_path / "trace"
    for name in ("evil", "\u00e9vil"):
        (tmp_path / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "student.yaml").write_text("class_path: evil.Net\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"refused x.ckpt: ") as refusal:
        check_arguments(arguments, LitDistiller, "x.ckpt")
    assert message in str(refusal.value)
    assert not trace.exists()


def test_a_parameter_of_a_base_is_known_and_so_is_its_type() -> None:
    with pytest.raises(ValueError, match=r"ImageFolderDataModule.mixing is the text 'evil.Mixing'"):
        check_arguments({"root": "x", "mixing": "evil.Mixing"}, ImageFolderDataModule, "x.ckpt")
    with pytest.raises(ValueError, match=r"DigitsDataModule.train_transform is the text 'evil.Net'"):
        check_value({"train_transform": "evil.Net"}, DigitsDataModule, "data", Path("x.ckpt"))
