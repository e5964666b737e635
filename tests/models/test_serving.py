"""A photo gets the answer that was measured, whatever it comes as."""

from collections.abc import Callable
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
import pytest
import torch
from torch import Tensor, nn
from toys import make_photos

from lit_distill import DistillableViT, LitDistiller, StudentOutput, load_student
from lit_distill.datamodules import Augmentation, DigitsDataModule, ImageFolderDataModule
from lit_distill.models.export import export_student
from lit_distill.models.serving import predict
from lit_distill.photos import as_image, read_image
from lit_distill.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """An exported student of two classes, with nothing special about it but a card."""
    torch.manual_seed(1)
    vit = DistillableViT(24, 8, 2, dim=16, depth=1, heads=2, mlp_dim=16, mean=[0.5] * 3, std=[0.2] * 3)
    args: dict[str, Any] = {
        "image_size": 24,
        "patch_size": 8,
        "num_classes": 2,
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 16,
    }
    card = {
        "student": {
            "class_path": "lit_distill.DistillableViT",
            "init_args": {**args, "mean": [0.5] * 3, "std": [0.2] * 3},
        },
        "class_names": ["cat", "dog"],
        "preprocessing": Augmentation().evaluate(24).as_dict(),
    }
    folder = tmp_path_factory.mktemp("served") / "out"
    return load_student(export_student(vit, folder, card, [3, 24, 24], head="mean_probs"))


def photo(width: int = 61, height: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width * 2, height * 2), Image.Resampling.BICUBIC)


FORMS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "a path": lambda image, path: path,
    "a string": lambda image, path: str(path),
    "an image": lambda image, path: image,
    "an array": lambda image, path: np.asarray(image),
    "a tensor": lambda image, path: torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
    "with transparency": lambda image, path: image.convert("RGBA"),
    "an opened file": lambda image, path: Image.open(path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_photo_gets_the_same_answer(student: Any, tmp_path, form: str) -> None:
    image = photo()
    image.save(tmp_path / "photo.png")
    pixels = Augmentation().evaluate(24)(image)
    expected = StudentOutput.of(student(pixels[None])).log_probs("mean_probs").exp().detach()
    classes, probabilities = student.predict(FORMS[form](image, tmp_path / "photo.png"))
    assert torch.equal(probabilities, expected)
    assert classes == [("cat", "dog")[int(expected.argmax())]]
    several = predict(student, [FORMS[form](image, tmp_path / "photo.png"), photo(seed=1), image], batch_size=2)
    assert several.probabilities.shape == (3, 2)
    torch.testing.assert_close(several.probabilities[[0, 2]], torch.cat([expected, expected]))


def test_a_grey_picture_and_a_turned_one_are_read_as_in_training(student: Any, tmp_path) -> None:
    grey, turned = photo(seed=2).convert("L"), photo(seed=3)
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    grey.save(tmp_path / "grey.png")
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    for kind in ("cat", "dog"):
        for name in ("turned.jpg", "grey.png"):
            (tmp_path / kind / name).write_bytes((tmp_path / name).read_bytes())
    data = ImageFolderDataModule(tmp_path, image_size=24, val_fraction=0.5, max_damaged=1.0)
    data.setup()
    files = data.splits["val"].files
    for row in range(len(files)):
        served = student.predict(tmp_path / files[row]).probabilities
        measured = StudentOutput.of(student(data.val_set[row][0][None])).log_probs("mean_probs").exp().detach()
        assert torch.equal(served, measured)


def test_the_preprocessing_is_the_data_modules(tmp_path) -> None:
    root = make_photos(tmp_path, [f"{kind}/{n}.png" for kind in ("a", "b") for n in range(4)])
    data = ImageFolderDataModule(root, image_size=20, augmentation=Augmentation(crop_pct=0.8, interpolation="bilinear"))
    described = data.preprocessing
    assert described["resize"] == 25
    assert (described["crop"], described["interpolation"], described["channels"]) == ([20, 20], "bilinear", 3)
    assert Preprocessing.of(described).as_dict() == described
    assert ImageFolderDataModule(root, image_size=20, channels=1).preprocessing["color"] == "L"
    digits = DigitsDataModule().preprocessing
    assert (digits["crop"], digits["channels"]) == ([8, 8], 1)
    with pytest.raises(ValueError, match="expected a preprocessing with resize, crop, interpolation and channels"):
        Preprocessing.of({"resize": 3})


def test_a_transform_serves_where_the_card_says_nothing() -> None:
    student = DistillableViT(8, 4, 3, dim=8, depth=1, heads=1, mlp_dim=8)
    with pytest.raises(ValueError, match=r"does not say how a photo becomes its input: export it again, or in Python"):
        predict(student, photo())

    def transform(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((8, 8))).transpose(2, 0, 1).copy())

    assert predict(student, photo(), transform=transform).classes[0] in "012"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no/such.jpg", r"there is no photo no/such.jpg; looked in"),
        ([], "expected one photo or more, got none"),
        (
            np.zeros((4, 4, 3)),
            r"a uint8 \(H, W\) or \(H, W, C\) array .* of 1, 3 or 4 channels, got ndarray \(4, 4, 3\) of",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"a uint8 \(C, H, W\) tensor of .*, got Tensor \(2, 3, 4, 4\) of"),
        (7, r"expected a path, a Pillow image, .* got int"),
    ],
)
def test_what_is_no_photo_is_one_line(student: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student.predict(wrong)


def test_a_folder_and_a_file_that_is_no_photo(student: Any, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the photo .*: Is a directory"):
        student.predict(tmp_path)
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(ValueError, match=r"cannot read the photo .*text.jpg: cannot identify image file"):
        student.predict(tmp_path / "text.jpg")


def test_a_student_that_answers_with_nan_is_refused(student: Any) -> None:
    broken = DistillableViT(24, 8, 2, dim=16, depth=1, heads=2, mlp_dim=16)
    broken.card = student.card
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the student answers with NaN or infinity"):
        predict(broken, photo())


def test_an_export_of_an_earlier_version_loads_and_says_what_it_lacks(tmp_path) -> None:
    vit = DistillableViT(24, 8, 2, dim=16, depth=1, heads=2, mlp_dim=16)
    args = {"image_size": 24, "patch_size": 8, "num_classes": 2, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
    about = {
        "student": {"class_path": "lit_distill.DistillableViT", "init_args": args},
        "trained": {"config": {"model": {"distillation": None}}},
    }
    folder = export_student(vit, tmp_path / "old", about, [3, 24, 24])
    card = json.loads((folder / "student.json").read_text())
    del card["preprocessing"]
    (folder / "student.json").write_text(json.dumps(card))
    with pytest.warns(UserWarning, match=r"exported by an earlier version: its card does not say how a photo becomes"):
        old: Any = load_student(folder)
    assert old.card["head"] == "class"  # the other one was not trained, though its card named both
    with pytest.raises(ValueError, match="export it again"):
        old.predict(photo())


def test_a_copy_predicts_with_its_own_weights(student: Any) -> None:
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.head.bias += torch.tensor([9.0, -9.0])
    assert other.predict(photo()).classes == ["cat"]
    assert other.predict(photo()).probabilities[0, 0] > student.predict(photo()).probabilities[0, 0]


def test_images_of_floats_are_served_as_floats() -> None:
    class Student(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            assert image.is_floating_point()
            return torch.stack([image.mean((1, 2, 3)), torch.full((len(image),), 0.5)], dim=1)

    served: Any = Student()
    served.card = {"preprocessing": Preprocessing(8, (8, 8)).as_dict(), "image_dtype": "float"}
    assert predict(served, Image.new("RGB", (9, 9), "white")).classes == ["0"]
    assert isinstance(LitDistiller(served), nn.Module)


def test_an_image_is_what_its_file_is(tmp_path) -> None:
    photo(seed=5).save(tmp_path / "p.jpg")
    assert np.array_equal(
        np.asarray(as_image(tmp_path / "p.jpg", "L")), np.asarray(read_image(tmp_path / "p.jpg", "L"))
    )
