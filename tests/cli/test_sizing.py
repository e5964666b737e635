import pytest
import torch
from toys import make_photos

from lit_distill import StudentOutput
from lit_distill.cli import sizing
from lit_distill.datamodules import Augmentation, ImageFolderDataModule
from lit_distill.models import ConvTokenizer
from lit_distill.models.saved import build


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), 8),
        ((28, 28), 28),
        ((30, 90), 28),
        ((36, 32), 32),
        ((60, 70), 64),
        ((300, 120), 128),
        ((900, 1200), 224),
    ],
)
def test_images_are_seen_at_about_their_size(tmp_path, size: tuple[int, int], expected: int) -> None:
    make_photos(tmp_path, [f"{kind}/{i}.png" for kind in "ab" for i in range(3)], size=size)
    (tmp_path / "a" / "0.png").write_bytes(b"damaged")
    assert sizing.image_size_of(ImageFolderDataModule(tmp_path)) == expected


@pytest.mark.parametrize("size", [4, 8, 12, 16, 20, 28, 32, 64, 96, 128, 160, 192, 224])
def test_the_networks_take_these_images(size: int) -> None:
    student = sizing.student_for(size, 3)
    student["init_args"] |= {"image_size": size, "num_classes": 3, "depth": 1}
    made = build(student, "here")
    assert isinstance(made.tokenizer, ConvTokenizer)
    assert StudentOutput.of(made(torch.rand(2, 3, size, size))).logits.shape == (2, 3)
    student["init_args"]["tokenizer"] = None  # as --model.student.tokenizer=null
    assert StudentOutput.of(build(student, "here")(torch.rand(2, 3, size, size))).logits.shape == (2, 3)
    teacher = sizing.teacher_for("resnet10t", size, 1, pretrained=False)
    teacher["init_args"] |= {"num_classes": 3, "mean": [0.5], "std": [0.2]}
    assert build(teacher, "here").eval()(torch.rand(2, 1, size, size)).shape == (2, 3)
    Augmentation(**sizing.augmentation_for(size)).train(size)


def test_few_images_make_small_batches() -> None:
    assert [sizing.batch_size_for(count) for count in (1, 499, 500, 1999, 2000, 10**6)] == [16, 16, 32, 32, 64, 64]
