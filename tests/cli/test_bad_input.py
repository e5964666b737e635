"""Each mistake ends before the first step, with a non-zero exit and one line on standard error."""

import os
from pathlib import Path
import pickle

import pytest
import torch
from toys import SMALL_DIGITS

from lit_distill import DigitsCNN
from lit_distill.cli import main

ROOT = Path(__file__).parents[2]
BASE = ["fit", "--config", SMALL_DIGITS, "--trainer.num_sanity_val_steps=2"]
BASE += ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]

FOREIGN = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

class Unindexed(LightningDataModule):
    num_classes = 10
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(16, 1, 8, 8), torch.randint(10, (16,))), 8)
    val_dataloader = train_dataloader

class OtherClasses(Unindexed):
    num_classes = 3

class Uncounted(Unindexed):
    num_classes = None

class Rows(IterableDataset):
    def __iter__(self):
        return iter([(torch.rand(1, 8, 8), 1)] * 16)

class BadTarget(Unindexed):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(16, 1, 8, 8), torch.full((16,), 12), torch.arange(16)), 8)

class Grey(Unindexed):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(16, 3, 8, 8), torch.zeros(16).long(), torch.arange(16)), 8)
    val_dataloader = train_dataloader

class Stream(Unindexed):
    def train_dataloader(self):
        return DataLoader(Rows(), 8)
"""

# fmt: off
CASES = {
    "--model.student.tokenizer=convs": "tokenizer: expected 'conv' or a class, got 'convs': did you mean 'conv'",
    "--model.student.tokenizer=ConvTokenizr": (
        "tokenizer: expected 'conv' or a class, got 'ConvTokenizr': did you mean 'ConvTokenizer'"
    ),
    "--model.student.patch_size=3": "patch_size must divide image_size, got patch_size 3x3 and image_size 8x8",
    "--model.distillation=SoftDistillation --model.distillation.temperature=-1": "temperature must be > 0, got -1.0",
    "--model.alpha=1.5": "alpha must be in [0, 1], got 1.5",
    "--model.criterion=torch.nn.CrossEntropyLoss --model.criterion.label_smoothing=1.5": "label_smoothing must be in",
    "--retrospection.interval=0": "interval must be >= 1, got 0",
    "--retrospection.temperature=0": "temperature must be > 0, got 0",
    "--retrospection.criterion=loss": "no submodule 'loss' to hook; name its criterion with criterion=, of",
    "--trainer.max_epochs=-1": "retrospection needs the number of epochs for its schedule, got max_epochs=-1",
    "--model.teacher=null": "HardDistillation needs a teacher, got teacher=None",
    "--model.teacher.model.num_classes=7 --model.teacher.model.pretrained=false": "student has 10, the teacher has 7",
    "--model.student.num_classes=12": "the student has 12, the teacher has 10, the data has 10",
    "--data=foreign.OtherClasses": "the student has 3, the teacher has 10, the data has 3",
    "--data=foreign.Uncounted": "Uncounted has no num_classes: give --model.student.num_classes",
    "--data=foreign.Unindexed --trainer.limit_val_batches=0": "wrap the training set in lit_distill",
    "--data=foreign.BadTarget --retrospection.index=2 --trainer.limit_val_batches=0":
        "a target is 12, which is none of the student's classes",
    "--data=foreign.Grey --retrospection.index=2": "(B, C, H, W) = (B, 1, 8, 8), got (8, 3, 8, 8)",
    "--data=foreign.Uncounte": "no class 'foreign.Uncounte': did you mean 'Uncounted'",
    "--data=foriegn.Uncounted": "there is no module 'foriegn', neither installed nor in",
    "--data=broken.Photos": "importing broken failed: there is no module 'nonexistent_lib'",
    "--trainer.max_epoch=3": "unknown option --trainer.max_epoch: did you mean '--trainer.max_epochs'?",
    "--data=foreign.Stream --trainer.limit_val_batches=0 --model.scheduler=null": "no length and so no sample indices",
    "--model.distillation=SoftDistilation": "no class 'SoftDistilation': did you mean 'SoftDistillation'",
    "--model.distillation=lit_distill.SoftDistilation": "did you mean 'SoftDistillation'",
    "--model.optimizer=torch.optim.AdamWW": "no class 'torch.optim.AdamWW': did you mean 'AdamW'",
    "--model.scheduler=StepLR": "model.scheduler: required: step_size; add --model.scheduler.NAME=VALUE for each",
    "--data=DigitDataModule": "no class 'DigitDataModule': did you mean 'DigitsDataModule'",
    "--model.aplha=0.5": "unknown option --model.aplha: did you mean '--model.alpha'?",
    "--retrospection.intervall=3": "has no argument 'intervall': did you mean 'interval'?",
    "--model.distillation.nome=1": "HardDistillation has no argument 'nome': it takes none",
    "--model.alpha=half": "model.alpha: expected float, got half",
    "--config {class}": "no class 'lit_distill.HardDistilation': did you mean 'HardDistillation'",
    "--config {option}": "unknown option --model.alfa: did you mean '--model.alpha'?",
    "--config {argument}": "has no argument 'temprature': did you mean 'temperature'?",
    "--config {inner_argument}": "DigitsCNN has no argument 'pretraned': did you mean 'pretrained'?",
    "--config {inner_class}": "no class 'lit_distill.DigitCNN': did you mean 'DigitsCNN'",
    "--config some/folder/digits.yaml": "File does not exist: ",
    "--config nowhere.yaml": "no configuration file nowhere.yaml, and no recipe of that name: did you mean '",
    "--ckpt_path nowhere.ckpt": "no checkpoint file at nowhere.ckpt",
    "--ckpt_path {truncated}": "truncated or not a checkpoint file",
    "--ckpt_path {code}": "is a pickle that would run",
    "--model.teacher.weights=nowhere.pt": "no weights file at nowhere.pt",
    "--model.teacher.weights={truncated}": "truncated or not a weights file",
    "--model.teacher.weights={other}": "do not fit DigitsCNN: keys 26 missing (features.0.weight, features.1.weight,",
    "--model.teacher.weights={code}": "refused {code}: it is a pickle that would run",
    "--model.teacher.weights={pickle}": "refused {pickle}: it is a pickle that would run code",
    "--model.teacher.model=resnt18": "timm has no model 'resnt18': did you mean 'resnet18",
    "--model.teacher.model=torchvision.models.resnt18": "torchvision has no model 'resnt18': did you mean 'resnet18",
    "--model.teacher.model={folder}": "is a directory without student.json",
    "--model.teacher.model={code}": "is a pickle that would run",
    "--model.teacher.classes=[[0,1],[2,11]]": "classes: 1 names class 11, but the teacher has classes 0..9",
    "--model.teacher.classes=[[0,1],[2]]": "the student has 10, the teacher has 2, the data has 10",
    "--model.teacher.input_size=1": "the teacher DigitsCNN cannot take images of 1x1 pixels: ",
    "--model.student=TimmStudent --model.student.name=vit_tinny_patch16_224": "did you mean 'vit_tiny_patch16_224'",
    "--model.student=TimmStudent --model.student.name=resnet10t --model.student.weights={other} "
    "--model.student.patch_size=null": "the weights in {other} are not for resnet10t: Missing key(s)",
    "--model.student=TimmStudent --model.student.name=vit_tiny_patch16_224 --model.student.img_size=30":
        "patches of 4 pixels, of which 30 is no multiple; the nearest are 28 and 32",
    "--model.student.weights={folder}": "{folder} is a directory, expected a weights file",
    "--model.student.weights={other}": "do not fit DistillableViT",
    "--model.student.weights={code}": "refused {code}: it is a pickle that would run",
    "--model.head=best": "model.head: expected one of 'class', 'distill', 'mean_logits', 'mean_probs'",
    "--trainer.callbacks+=SelfAdaptiveTraining --trainer.callbacks.start=-1": "start must be >= 0, got -1",
    "--data=ImageFolderDataModule --data.root=nope": "nope does not exist: expected train/<class>/",
    "--data=ImageFolderDataModule --data.root={folder}":
        "has no folders of classes: expected train/<class>/ with val/<class>/, or <class>/",
    "--data=ImageFolderDataModule --data.root=x --data.split_seed=x": "data.split_seed: expected int, got x",
    "--trainer.logger=CSVLogger --trainer.logger.save_dir={other}/logs": "Not a directory; a file is where a folder is",
}
# fmt: on


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "foreign.py").write_text(FOREIGN)
    (folder / "broken.py").write_text("import nonexistent_lib")
    made = {name: folder / f"{name}.pt" for name in ("truncated", "other", "code", "pickle")}
    made |= {name: folder / f"{name}.yaml" for name in ("class", "option", "argument", "inner_argument", "inner_class")}
    torch.save(DigitsCNN().state_dict(), made["truncated"])
    made["truncated"].write_bytes(made["truncated"].read_bytes()[:20_000])
    torch.save(torch.nn.Linear(2, 2).state_dict(), made["other"])
    torch.save({"w": Code()}, made["code"])
    made["pickle"].write_bytes(pickle.dumps(Code()))
    soft = "model: {distillation: {class_path: lit_distill.SoftDistillation, init_args: {temprature: 3}}}"
    made["argument"].write_text(soft)
    made["class"].write_text("model: {distillation: {class_path: lit_distill.HardDistilation}}")
    inner = "model: {{teacher: {{init_args: {{model: {{class_path: lit_distill.{}}}}}}}}}"
    made["inner_argument"].write_text(inner.format("DigitsCNN, init_args: {pretraned: true}"))
    made["inner_class"].write_text(inner.format("DigitCNN"))
    made["option"].write_text("model: {alfa: 0.5}")
    return {"folder": folder, **made}


def filled(text: str, files: dict[str, Path]) -> str:
    for name, path in files.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


@pytest.mark.parametrize("flags", CASES)
def test_one_line_names_the_mistake(flags: str, files, monkeypatch, tmp_path, capfd) -> None:
    monkeypatch.syspath_prepend(str(files["folder"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.optim.Optimizer, "step", lambda *a, **k: pytest.fail("a step was taken"))
    with pytest.raises(SystemExit) as exit_:
        main([*BASE, *filled(flags, files).split()])
    errors = capfd.readouterr().err.strip().splitlines()
    assert exit_.value.code not in (0, None)
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert filled(CASES[flags], files) in errors[0]
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_cannot_be_written_are_found_out_before_the_first_step(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(torch.optim.Optimizer, "step", lambda *a, **k: pytest.fail("a step was taken"))
    (tmp_path / "file").touch()
    flags = ["--trainer.enable_checkpointing=true", f"--trainer.default_root_dir={tmp_path / 'file'}"]
    with pytest.raises(SystemExit):
        main([*BASE, *flags])
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"error: cannot use {tmp_path / 'file'}")


def test_an_option_without_its_place_names_the_one_with_it(capfd) -> None:
    for flag, near in (
        ("--root", "--data.root"),
        ("--batch_size", "--data.batch_size"),
        ("--max_epochs", "--trainer.max_epochs"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", "--config", "digits", f"{flag}=3"])
        assert capfd.readouterr().err == f"error: unknown option {flag}: did you mean '{near}'?\n"
