"""A fit with each kind of teacher, in one process and in two: its file is the student's, and loads strictly."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
import pytest
import timm
import torch
from torch.utils.data import TensorDataset
import torchvision
from toys import QUIET, trainer

from lit_distill import DistillableViT, FrozenTeacher, LitDistiller, SoftDistillation
from lit_distill.datamodules import ImageDataModule

CLASSES = 4


class Made(ImageDataModule):
    """Coloured noise, by class."""

    num_classes, class_names = CLASSES, ("a", "b", "c", "d")

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        targets = torch.arange(32) % CLASSES
        images = torch.rand(32, 3, 32, 32, generator=generator) * 0.5 + targets.view(-1, 1, 1, 1) / 8
        self.train_set = self.val_set = self.test_set = self.predict_set = TensorDataset(images, targets)


def student() -> DistillableViT:
    torch.manual_seed(1)
    return DistillableViT(32, 8, CLASSES, dim=192, depth=3, heads=3, mlp_dim=384)


def checkpoint_of_a_run(folder: Path) -> str:
    """What somebody's first phase leaves: a student that teaches."""
    module = LitDistiller(student(), distillation=None)
    module.save_hyperparameters()
    run = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(module, datamodule=Made(batch_size=8))
    run.save_checkpoint(folder / "first.ckpt")
    state = torch.load(folder / "first.ckpt", weights_only=True)
    init_args = {"image_size": 32, "patch_size": 8, "num_classes": CLASSES, "dim": 192, "depth": 3, "heads": 3}
    described = {"class_path": "lit_distill.DistillableViT", "init_args": {**init_args, "mlp_dim": 384}}
    state["hyper_parameters"] = {"student": described}  # as the command line writes it
    torch.save(state, folder / "first.ckpt")
    return str(folder / "first.ckpt")


def teacher(source: str, folder: Path) -> FrozenTeacher:
    torch.manual_seed(2)
    path = folder / "weights.pt"
    if source == "timm":
        torch.save(timm.create_model("resnet10t", num_classes=CLASSES).state_dict(), path)
        return FrozenTeacher("resnet10t", path)
    if source == "torchvision":
        torch.save(torchvision.models.get_model("squeezenet1_1", num_classes=CLASSES).state_dict(), path)
        return FrozenTeacher("torchvision.models.squeezenet1_1", path)
    if source == "dotted path":
        torch.save({"model": timm.create_model("resnet10t", num_classes=CLASSES).state_dict()}, path)
        return FrozenTeacher("timm.models.resnet10t", path, CLASSES)
    if source == "checkpoint":
        return FrozenTeacher(checkpoint_of_a_run(folder))
    if source == "module":
        return FrozenTeacher(timm.create_model("resnet10t", num_classes=CLASSES))
    torch.save(timm.create_model("resnet10t", num_classes=9).state_dict(), path)
    groups = {"b": [1, 2], "a": [0], "d": [8], "c": [3, 4, 5]}
    return FrozenTeacher("resnet10t", path, classes=groups, input_size=40, precision="bf16", channels_last=True)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("source", ["timm", "torchvision", "dotted path", "checkpoint", "module", "groups"])
def test_a_fit_with_each_kind_of_teacher(tmp_path, source: str, ranks: int) -> None:
    teaches = teacher(source, tmp_path)
    before = {name: value.clone() for name, value in teaches.state_dict().items()}
    module = LitDistiller(student(), teaches, distillation=SoftDistillation(2.0))
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    run = Trainer(**{**QUIET, **strategy, "max_epochs": 1, "limit_val_batches": 1})
    path = tmp_path / "run.ckpt"
    module.on_train_end = lambda: run.save_checkpoint(path)  # type: ignore[method-assign]
    run.fit(module, datamodule=Made(batch_size=8 // ranks))
    assert all(torch.equal(value, before[name]) for name, value in teaches.state_dict().items())

    saved: dict[str, Any] = torch.load(path, weights_only=True)
    assert not [key for key in saved["state_dict"] if "teacher" in key]
    again = LitDistiller.load_from_checkpoint(path, student=student())
    assert again.state_dict().keys() == saved["state_dict"].keys()
    optimizer = saved["optimizer_states"][0]["state"].values()
    tensors = [*saved["state_dict"].values(), *(value for state in optimizer for value in state.values())]
    size = sum(tensor.nbytes for tensor in tensors)
    assert size <= path.stat().st_size <= 1.01 * size
