from pathlib import Path
from typing import Any
import warnings

from lightning.pytorch import Callback
import pytest
import torch
from torch import nn
from torch.utils.data import Subset
from toys import trainer, weights

from lit_distill import DigitsCNN, DistillableViT, FrozenTeacher, HardDistillation, LitDistiller
from lit_distill.callbacks import TeacherCheck
from lit_distill.callbacks.teacher_check import _bias
from lit_distill.datamodules import DigitsDataModule, Mixing


def fit(teacher: nn.Module, *callbacks: Callback, **kwargs: Any) -> LitDistiller:
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1, dropout=0.1)
    module = LitDistiller(student, teacher, distillation=HardDistillation())
    options = {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 3,
        "callbacks": list(callbacks),
        **kwargs,
    }
    trainer(**options).fit(module, datamodule=DigitsDataModule(eval_batch_size=100, seed=3))
    return module


def permuted(order: list[int]) -> FrozenTeacher:
    return FrozenTeacher(DigitsCNN(pretrained=True), classes=[[k] for k in order])


@pytest.mark.parametrize("steps", [0, 2])
def test_prints_the_accuracy_and_changes_nothing(caplog: pytest.LogCaptureFixture, steps: int) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"), warnings.catch_warnings():
        checked = fit(DigitsCNN(pretrained=True), TeacherCheck(), num_sanity_val_steps=steps)
    teacher, data = FrozenTeacher(DigitsCNN(pretrained=True)), DigitsDataModule(eval_batch_size=300)
    data.setup()
    image, target, _ = next(iter(data.val_dataloader()))
    accuracy = teacher(image).argmax(dim=1).eq(target).float().mean()
    assert f"teacher: accuracy {accuracy:.2%} on 300 images of the validation set" in caplog.text
    plain = fit(DigitsCNN(pretrained=True), num_sanity_val_steps=steps)
    assert torch.equal(weights(checked.student), weights(plain.student))


class Labels(DigitsDataModule):
    """The digits as the last ten of 30 classes, with labels of one byte: 29 * 30 is none."""

    num_classes, class_names = 30, None

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set, self.val_set = (
            [(x, torch.tensor(y + 20).byte()) for x, y in part] for part in (self.train_set, self.val_set)
        )


def test_counts_labels_of_one_byte(caplog: pytest.LogCaptureFixture) -> None:
    cnn = DigitsCNN(pretrained=True)
    teacher = FrozenTeacher(nn.Sequential(cnn, nn.ConstantPad1d((20, 0), -100.0)), num_classes=30)
    module = LitDistiller(DistillableViT(8, 4, 30, dim=8, depth=1, heads=1, mlp_dim=8, channels=1), teacher)
    options = {"max_epochs": 1, "limit_train_batches": 1, "num_sanity_val_steps": 0, "callbacks": TeacherCheck()}
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(**options).fit(module, datamodule=Labels(seed=3))
    assert "teacher: accuracy 99.44% on 360 images of the validation set" in caplog.text


def test_calls_out_a_teacher_that_knows_nothing() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"right on [\d.]+% of .*, where chance is 10.0%: a student will"):
        fit(DigitsCNN(), TeacherCheck())


@pytest.mark.parametrize(("classes", "says_so"), [(10, False), (2, False), (2, True)])
def test_a_teacher_of_images_of_one_class_is_measured_by_chance_and_not_called_permuted(
    classes: int, says_so: bool
) -> None:
    class Wrong(nn.Module):
        if says_so:
            num_classes = classes

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.eye(classes)[torch.full((len(image),), classes - 1)]

    class Zeros(DigitsDataModule):
        num_classes, class_names = classes, None

        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.train_set, self.val_set = ([(x, 0) for x, _ in part] for part in (self.train_set, self.val_set))

    student = DistillableViT(8, 4, classes, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    options = {"max_epochs": 1, "limit_train_batches": 1, "num_sanity_val_steps": 0, "callbacks": TeacherCheck()}
    with pytest.warns(UserWarning, match=f"where chance is {1 / classes:.1%}: a student will learn little"):
        trainer(**options).fit(LitDistiller(student, Wrong()), datamodule=Zeros())


def test_calls_out_a_permutation_with_the_order_that_undoes_it() -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    named = {name: [k] for name, k in zip("0123456789", order, strict=True)}
    scrambled = DigitsCNN(pretrained=True)
    last = [module for module in scrambled.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight[:], last.bias[:] = last.weight[order], last.bias[order]
    wrongly_named = DigitsCNN(pretrained=True)
    wrongly_named.card = {"class_names": [str(order.index(k)) for k in range(10)]}  # type: ignore[assignment]
    for teacher, advice in (
        (permuted(order), [[k] for k in range(10)]),  # numbers of the teacher's classes, not of its groups
        (FrozenTeacher(DigitsCNN(pretrained=True), classes=named), {str(k): [k] for k in range(10)}),
        (FrozenTeacher(scrambled), [[order.index(k)] for k in range(10)]),
        (FrozenTeacher(wrongly_named), {str(k): [k] for k in range(10)}),
    ):
        with pytest.warns(
            UserWarning, match="its classes look permuted, in another order it would be right on 9"
        ) as warned:
            fit(teacher, TeacherCheck())
        said = next(str(w.message) for w in warned if "permuted" in str(w.message))
        assert said.endswith(f"give the teacher classes={advice}")


def test_long_groups_are_named_in_the_order_that_undoes_a_permutation() -> None:
    groups = {"cat": list(range(200)), "dog": list(range(200, 300)), "fox": [300]}
    teacher = FrozenTeacher(nn.Linear(2, 301), classes=groups)
    assert teacher.advice_to_reorder([1, 0, 2]) == "of the teacher's classes=, give cat those of dog, dog those of cat"


def test_a_teacher_of_an_own_run_is_not_told_to_check_what_it_brings() -> None:
    weak = DigitsCNN()
    weak.card = {"trained": {"epochs": 3}}  # type: ignore[assignment]
    with pytest.warns(
        UserWarning, match="will learn little from it; it was trained for 3 epochs: train it longer"
    ) as warned:
        fit(weak, TeacherCheck())
    assert not [w for w in warned if "mean" in str(w.message)]


def test_says_which_classes_are_in_no_group(caplog: pytest.LogCaptureFixture) -> None:
    class Two(DigitsDataModule):
        num_classes, class_names = 2, ("odd", "even")

        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            for part in (self.train_set, self.val_set):
                part.targets = [int(target % 2 == 0) for target in part.targets]

    teacher = FrozenTeacher(DigitsCNN(pretrained=True), classes={"even": [0, 2, 4, 6], "odd": [1, 3, 5, 7, 9]})
    student = DistillableViT(8, 4, 2, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    module = LitDistiller(student, teacher, distillation=HardDistillation())
    with caplog.at_level("INFO", logger="lightning.pytorch"), pytest.warns(UserWarning, match="it says odd for 5"):
        trainer(max_epochs=1, limit_train_batches=1, callbacks=TeacherCheck()).fit(module, datamodule=Two())
    assert "1 of the 10 classes of the teacher in no group: 8" in caplog.text
    assert teacher.groups.names == ["odd", "even"]  # in the data's order
    accuracy = float(caplog.text.partition("teacher: accuracy ")[2].partition("%")[0])
    assert accuracy > 90


class Favouring(nn.Module):
    """Right on all digits, except that some are taken for another one."""

    def __init__(self, favourite: int, strength: float) -> None:
        super().__init__()
        self.net, self.num_classes = DigitsCNN(pretrained=True), 10
        self.register_buffer("more", strength * nn.functional.one_hot(torch.tensor(favourite), 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(image) + self.more
        return logits


def test_says_with_figures_that_a_teacher_favours_a_class() -> None:
    teacher = Favouring(3, 4.0)
    data = DigitsDataModule(eval_batch_size=300, seed=3)
    data.setup()
    image, target, _ = next(iter(data.val_dataloader()))
    share_of_3 = FrozenTeacher(teacher)(image).argmax(dim=1).eq(3).float().mean()
    assert 0.15 < share_of_3 < 0.5
    figures = rf"it says 3 for {share_of_3:.1%} of the images, of which {target.eq(3).float().mean():.1%} are 3: if its"
    with pytest.warns(UserWarning, match=f"the teacher favours a class, and the student will too: {figures}"):
        fit(teacher, TeacherCheck())
    with pytest.warns(UserWarning, match=r"will learn little from it; .*; it says 3 for 100.0% of the images"):
        fit(Favouring(3, 100.0), TeacherCheck())


def answers_of(named: list[list[int]], teacher: nn.Module | None = None) -> str:
    return _bias(teacher or nn.Identity(), torch.tensor(named), None)


def test_a_bias_is_more_than_chance_and_not_small() -> None:
    assert answers_of([[70, 30], [30, 70]]) == ""
    assert answers_of([[40, 10], [8, 42]]) == ""
    assert "it says 1 for 58.2% of the images, of which 50.0% are 1" in answers_of([[117, 23], [0, 140]])
    assert answers_of([[9, 1], [0, 10]]) == ""  # too few to tell
    many = torch.eye(1000, dtype=torch.int64) * 40
    many[:, 7] += 10  # of 50 images each
    assert "it says 7 for 20.1% of the images, of which 0.1% are 7" in answers_of(many.tolist())
    summing = FrozenTeacher(nn.Linear(2, 3), classes={"cat": [0], "dog": [1, 2]}, target_prior="teacher")
    assert answers_of([[60, 40], [0, 100]], summing).endswith("give the teacher target_prior='uniform'")


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_is_silent_without_a_teacher_or_validation(caplog: pytest.LogCaptureFixture) -> None:
    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        run = trainer(max_epochs=1, limit_train_batches=1, callbacks=TeacherCheck(), limit_val_batches=0)
        run.fit(LitDistiller(student, DigitsCNN()), datamodule=DigitsDataModule())
        run = trainer(max_epochs=1, limit_train_batches=1, callbacks=TeacherCheck())
        run.fit(LitDistiller(student), datamodule=DigitsDataModule())
    assert "teacher: accuracy" not in caplog.text


def test_what_is_mixed_in_training_is_not_mixed_here(caplog: pytest.LogCaptureFixture) -> None:
    def said(mixing: Mixing | None) -> str:
        caplog.clear()
        data = DigitsDataModule(eval_batch_size=100, seed=3, mixing=mixing)
        student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
        module = LitDistiller(student, DigitsCNN(pretrained=True), distillation=HardDistillation())
        run = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=3, callbacks=[TeacherCheck()])
        with caplog.at_level("INFO", logger="lightning.pytorch"):
            run.fit(module, datamodule=data)
        return next(line for line in caplog.messages if line.startswith("teacher: accuracy"))

    assert said(Mixing(mixup=5.0, cutmix=5.0)) == said(None)


def _told_by_two(folder: Path) -> None:
    """Fit on two ranks with five validation images; write what is said of the teacher."""

    class Five(DigitsDataModule):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.val_set = Subset(self.val_set, range(5))

    def note(message: str, **_: Any) -> None:
        (folder / "said.txt").write_text(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_distill.callbacks.teacher_check.rank_zero_info", note)
        student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
        module = LitDistiller(student, DigitsCNN(pretrained=True), distillation=HardDistillation())
        options = {"max_epochs": 1, "limit_train_batches": 1, "callbacks": TeacherCheck()}
        trainer(devices=2, strategy="ddp_fork", precision="bf16-true", **options).fit(module, datamodule=Five())


def test_ranks_count_no_image_twice(tmp_path: Path, away: Any) -> None:
    away(_told_by_two, tmp_path)
    assert (tmp_path / "said.txt").read_text() == "teacher: accuracy 100.00% on 5 images of the validation set"


def test_a_teacher_whose_outputs_are_not_finite_teaches_nobody() -> None:
    teacher = DigitsCNN(pretrained=True)
    next(teacher.parameters()).data[0] = float("nan")
    with pytest.raises(ValueError, match=r"the teacher's outputs are NaN or infinite on 300 of 300 images"):
        fit(teacher, TeacherCheck())
