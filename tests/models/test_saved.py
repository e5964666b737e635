"""What a file of this project says of its student, to whoever starts from it."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
import timm
import torch
from toys import make_photos
import yaml

from lit_distill import FrozenTeacher, StudentOutput, TimmStudent, load_student
from lit_distill.cli import main
from lit_distill.models import DistillableViT
from lit_distill.models.saved import origin_of

NAMES = ("ant", "bee", "cow")
SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SHORT += ["--trainer.accelerator=cpu", "--num_threads=1", "--data.batch_size=8"]


def fit(root: Path, name: str, *flags: str) -> Path:
    log = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={root}", f"--trainer.logger.name={name}"]
    main(["fit", "--data=ImageFolderDataModule", f"--data.root={root / 'photos'}", *SHORT, *log, *flags])
    return max((root / name).glob("*/checkpoints/last.ckpt"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    make_photos(root / "photos", [f"{name}/{i}.png" for name in NAMES for i in range(6)])
    return root


@pytest.fixture(scope="module")
def convnet(root: Path) -> Path:
    """A run whose statistics are the data's and whose images are 64 px, which are neither timm's nor the photos'."""
    student = ["--model.student=TimmStudent", "--model.student.name=resnet10t", "--model.student.img_size=64"]
    return fit(root, "convnet", *student, "--data.image_size=32")


@pytest.fixture(scope="module")
def vit(root: Path) -> Path:
    sizes = [f"--model.student.{size}=8" for size in ("patch_size", "dim", "heads", "mlp_dim")]
    return fit(root, "vit", "--model.student=DistillableViT", "--model.student.depth=1", *sizes, "--data.image_size=32")


def statistics(pixels: Any) -> list[float]:
    return [*pixels.mean.flatten().tolist(), *pixels.std.flatten().tolist()]


@pytest.fixture(scope="module")
def exported(convnet: Path) -> Path:
    main(["export", "--ckpt_path", str(convnet)])
    return convnet.parent / "student"


@pytest.mark.parametrize("source", ["checkpoint", "export", "its weights"])
def test_a_network_by_name_with_weights_of_an_own_run_sees_what_the_run_saw(
    convnet: Path, exported: Path, source: str
) -> None:
    path = {"checkpoint": convnet, "export": exported, "its weights": exported / "student.safetensors"}[source]
    own, image = load_student(convnet), torch.rand(2, 3, 32, 32)
    expected = StudentOutput.of(own(image)).logits
    assert statistics(own.pixels) != pytest.approx(statistics(TimmStudent("resnet10t", 3).pixels))
    for model in ("resnet10t", "timm.models.resnet10t", timm.create_model("resnet10t", num_classes=3)):
        teacher = FrozenTeacher(
            model, path, **({"model_args": {"num_classes": 3}} if model == "timm.models.resnet10t" else {})
        )
        assert teacher.pixels.input_size == [64, 64]
        assert teacher.groups is not None
        assert teacher.groups.names == list(NAMES)
        torch.testing.assert_close(teacher(image), expected)
    given = FrozenTeacher("resnet10t", path, mean=[0.1] * 3, std=[0.2] * 3, input_size=32)
    assert statistics(given.pixels) == pytest.approx([0.1] * 3 + [0.2] * 3)
    assert given.notes() == ["trained at 64x64 px and asked at 32x32: for its own leave input_size out (null)"]
    student = TimmStudent("resnet10t", 3, weights=path).eval()
    torch.testing.assert_close(StudentOutput.of(student(image)).logits, expected)
    other = TimmStudent("resnet10t", 3, weights=path, img_size=96, mean=[0.1] * 3, std=[0.2] * 3)
    assert (other.pixels.input_size, statistics(other.pixels)) == ([96, 96], pytest.approx([0.1] * 3 + [0.2] * 3))


def test_a_network_that_normalises_itself_is_not_given_its_statistics_twice(vit: Path) -> None:
    own, image = load_student(vit), torch.rand(2, 3, 32, 32)
    sizes: dict[str, Any] = dict.fromkeys(("patch_size", "dim", "heads", "mlp_dim"), 8) | {"depth": 1, "image_size": 32}
    started = DistillableViT(num_classes=3, weights=vit, **sizes)
    assert statistics(started.pixels) == statistics(own.pixels)
    expected = StudentOutput.of(own(image)).logits
    for model in (DistillableViT(num_classes=3, **sizes), started):
        teacher = FrozenTeacher(model, vit)
        teacher.head = "class"
        torch.testing.assert_close(teacher(image), expected)


def test_a_run_that_starts_from_an_own_run_keeps_what_it_saw_in_its_checkpoint(
    root: Path, convnet: Path, vit: Path
) -> None:
    """Also when the first run is gone, and on other photos."""
    more = make_photos(root / "more" / "photos", [f"{name}/{i}.png" for name in NAMES for i in range(6)], seed=9)
    weights = ["--model.student=TimmStudent", "--model.student.name=resnet10t", f"--model.student.weights={convnet}"]
    assert more.is_dir()
    second = fit(root / "more", "second", *weights, "--data.image_size=32")
    first, again = load_student(convnet), load_student(second)
    assert statistics(again.pixels) == statistics(first.pixels)
    assert again.pixels.input_size == [64, 64]
    sizes = [f"--model.student.{size}=8" for size in ("patch_size", "dim", "heads", "mlp_dim")]
    flags = ["--model.student=DistillableViT", "--model.student.depth=1", *sizes, f"--model.student.weights={vit}"]
    third = fit(root / "more", "third", *flags, "--data.image_size=32")
    assert statistics(load_student(third).pixels) == statistics(load_student(vit).pixels)


def test_weights_of_others_say_nothing(tmp_path: Path, exported: Path) -> None:
    save_file(load_file(exported / "student.safetensors"), tmp_path / "w.safetensors")
    torch.save({"hyper_parameters": {"lr": 0.1}, "state_dict": {}}, tmp_path / "theirs.ckpt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes(b"PK")
    for name in ("w.safetensors", "theirs.ckpt", "old.pt", "cut.pt", "none.pt"):
        assert origin_of(tmp_path / name) is None


def teaches(root: Path, teacher: Path, data: str, *flags: str) -> Path:
    sizes = [f"--model.student.{size}=8" for size in ("patch_size", "dim", "heads", "mlp_dim")]
    student = ["--model.student=DistillableViT", "--model.student.depth=1", *sizes]
    kind = [
        "--model.teacher=FrozenTeacher",
        f"--model.teacher.model={teacher}",
        "--model.distillation=HardDistillation",
    ]
    return fit(root, "taught", *student, *kind, f"--data={data}", "--data.image_size=32", *flags)


def test_a_teacher_of_the_same_classes_in_another_order_is_matched_by_name(vit: Path, exported: Path) -> None:
    teacher = FrozenTeacher(str(vit))
    image = torch.rand(2, 3, 32, 32)
    before = teacher(image)
    teacher.set_class_names(["cow", "ant", "bee"])
    assert teacher.notes() == ["its classes are in another order than the data's, and are matched by name"]
    torch.testing.assert_close(teacher(image), before[:, [2, 0, 1]], rtol=0, atol=0)
    teacher.set_class_names(NAMES)
    assert teacher.notes() == []
    assert torch.equal(teacher(image), before)
    with pytest.raises(
        ValueError,
        match="other classes than the data has: only the teacher has cow, only the data has dog; classes= ",
    ):
        teacher.set_class_names(["ant", "bee", "dog"])
    with pytest.raises(ValueError, match="only the teacher has cow; classes= "):
        teacher.set_class_names(["ant", "bee"])
    grouped = FrozenTeacher(str(exported), classes=[[2], [0], [1]])  # as they are given
    grouped.set_class_names(NAMES)
    assert grouped.groups is not None
    assert grouped.groups.members == [[2], [0], [1]]


@pytest.mark.filterwarnings("ignore:the teacher is right on")
def test_the_command_line_says_that_names_were_matched(root: Path, vit: Path, monkeypatch, caplog) -> None:
    from lit_distill.datamodules import ImageFolderDataModule

    class Backwards(ImageFolderDataModule):
        def __init__(self, root: str, image_size: int = 32, batch_size: int = 8) -> None:
            super().__init__(root, image_size=image_size, batch_size=batch_size)
            self.class_names = tuple(reversed(self.class_names or ()))
            for _, targets in self.splits.values():
                targets.copy_(2 - targets)

    import lit_distill.datamodules

    monkeypatch.setattr(lit_distill.datamodules, "Backwards", Backwards, raising=False)
    Backwards.__module__, Backwards.__qualname__ = "lit_distill.datamodules", "Backwards"
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        teaches(root, vit, "Backwards")
        (backwards,) = (line for line in caplog.messages if line.startswith("teacher: accuracy"))
        assert "teacher: its classes are in another order than the data's, and are matched by name" in caplog.messages
        caplog.clear()
        teaches(root, vit, "ImageFolderDataModule")
    assert backwards in caplog.messages
    assert "another order" not in caplog.text


def test_a_recipe_leaves_a_teacher_of_ones_own_at_its_size(convnet: Path, vit: Path) -> None:
    recipe = yaml.safe_load((Path(__file__).parents[2] / "configs/dogs_vs_cats_distill.yaml").read_text())
    arguments = recipe["model"]["teacher"]["init_args"] | {"model": str(convnet), "weights": None, "classes": None}
    assert FrozenTeacher(**arguments).pixels.input_size == [32, 32]
    assert FrozenTeacher(**arguments, input_size=224).notes() == [
        "trained at 32x32 px and asked at 224x224: for its own leave input_size out (null)"
    ]
    with pytest.raises(
        ValueError, match=r"cannot take images of 224x224 pixels: .*; trained at 32x32 px .* leave input_size"
    ):
        FrozenTeacher(str(vit), input_size=224)
