"""A cache changes what is computed, never what is learned."""

from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
import random
import re
import time
from typing import Any

from lightning.pytorch import Callback, Trainer
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from toys import FewDigits, photos_on_device, small_photos, toy_data, trainer, weights

from lit_distill import DigitsCNN, DistillableViT, FrozenTeacher, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.batch import Batch
from lit_distill.callbacks import TeacherCaching, TeacherCheck
from lit_distill.datamodules import DigitsDataModule, IndexedDataset, KeyedSampler, Mixing
from lit_distill.models.answers import caches_in
from lit_distill.models.output import TeacherOutput
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.teacher_cache import TeacherCache


class Counting(nn.Module):
    """A network that counts the images it is asked about."""

    def __init__(self, seed: int = 1, classes: int = 10, features: int = 64, net: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = net or nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
        self.num_classes = classes
        self._asked = 0

    def forward(self, image: Tensor) -> Tensor:
        self._asked += len(image)
        return 3 * self.net(image)


class Answers(Callback):
    """Compares every answer with that of the live teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        self.live = FrozenTeacher(teacher)
        self.compared = 0
        self.lengths: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        cache = pl_module.teacher
        assert isinstance(cache, TeacherCache)
        torch.testing.assert_close(
            cache(batch).logits, self.live(Batch.of(batch)).logits.half().float(), rtol=1e-3, atol=1e-4
        )
        self.compared += len(batch.image)


def student(seed: int = 1, **kwargs: Any) -> DistillableViT:
    torch.manual_seed(seed)
    sizes = {"image_size": 8, "patch_size": 4, "num_classes": 10, "channels": 1, **kwargs}
    return DistillableViT(dim=8, depth=1, heads=1, mlp_dim=8, **sizes)


def fit(folder: Path, network: nn.Module, *callbacks: Callback, data: Any = None, **kwargs: Any) -> LitDistiller:
    """Train on a few digits with a cache, and return the module."""
    caching = {name: kwargs.pop(name) for name in ("views", "top_k", "single_view") if name in kwargs}
    teacher = FrozenTeacher(network, fast=False)  # a folded copy would be asked in place of the network that counts
    module = LitDistiller(kwargs.pop("student", None) or student(), teacher, distillation=SoftDistillation(2.0))
    data = data or FewDigits(batch_size=16, seed=3)
    caching = TeacherCaching(**{"views": 2, "folder": folder, **caching})
    options = {"max_epochs": 5, "num_sanity_val_steps": 0, "callbacks": [caching, *callbacks], **kwargs}
    trainer(**options).fit(module, datamodule=data)
    return module


def test_the_teacher_is_asked_once_for_each_view_and_validation_image(tmp_path) -> None:
    network, warm_network = (Counting(net=DigitsCNN(pretrained=True)) for _ in range(2))
    filling = fit(tmp_path, network, TeacherCheck())
    assert network._asked == 2 * 48 + 360
    assert filling.teacher.model is network  # it is the module's again
    warm = fit(tmp_path, warm_network, TeacherCheck(), max_epochs=5)
    assert warm_network._asked == 0
    again = fit(tmp_path, Counting(net=DigitsCNN(pretrained=True)))
    assert torch.equal(weights(warm.student), weights(again.student))
    assert torch.equal(weights(warm.student), weights(filling.student))
    assert torch.equal(weights(warm_network), weights(network))


def test_without_a_cache_the_weights_are_equal_to_float16_rounding(tmp_path) -> None:
    cached = fit(tmp_path, Counting())
    plain = LitDistiller(student(), Counting(), distillation=SoftDistillation(2.0))
    data = FewDigits(batch_size=16, seed=3, views=2)
    trainer(max_epochs=5, num_sanity_val_steps=0).fit(plain, datamodule=data)
    difference = (weights(plain.student) - weights(cached.student)).abs().max()
    assert 0 < difference < 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixing": Mixing(mixup=0.8, cutmix=1.0)},
        {"repeats": 2},
        {"repeats": 2, "mixing": Mixing(mixup=0.8)},
        {"storage": "host", "mixing": Mixing(cutmix=1.0)},
    ],
)
def test_answers_are_those_of_the_live_teacher(tmp_path, settings: dict[str, Any]) -> None:
    for _ in range(2):
        network, answers = Counting(), Answers(Counting())
        fit(
            tmp_path,
            network,
            answers,
            data=FewDigits(rows=70, batch_size=16, seed=3, **settings),
            views=4,
            max_epochs=9,
        )
        assert answers.compared == 9 * 70
    assert network._asked == 0


@pytest.mark.parametrize("settings", [{}, {"repeats": 2, "mixing": Mixing(mixup=0.8)}])
def test_two_ranks_fill_one_cache(tmp_path, fresh, settings: dict[str, Any]) -> None:
    asked = fresh(_fit_two_ranks, tmp_path, settings)
    assert asked == [2 * (48 // 2) + 180] * 2
    network, answers = Counting(), Answers(Counting())
    fit(tmp_path / "cache", network, answers, data=FewDigits(batch_size=8, seed=3, **settings))
    assert network._asked == 0
    assert answers.compared == 5 * 48


class Saved(Callback):
    def __init__(self, network: Counting, folder: Path) -> None:
        self.network, self.folder = network, folder

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        torch.save(self.network._asked, self.folder / f"{trainer.global_rank}.pt")


def _fit_two_ranks(folder: Path, settings: dict[str, Any]) -> list[int]:
    torch.set_num_threads(1)
    network = Counting()
    fit(
        folder / "cache",
        network,
        Saved(network, folder),
        data=FewDigits(batch_size=8, seed=3, **settings),
        devices=2,
        strategy="ddp_fork",
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _fit_and_save(folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    network = Counting()
    module = fit(folder / "cache", network, views=6, max_epochs=9)
    torch.save((network._asked, weights(module.student)), folder / f"{number}.pt")


def test_two_runs_fill_one_cache_at_once(tmp_path) -> None:
    context = get_context("fork")
    processes = [context.Process(target=_fit_and_save, args=(tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(500)
        assert process.exitcode == 0
    alone = fit(tmp_path / "alone", Counting(), views=6, max_epochs=9)
    for number in range(2):
        asked, found = torch.load(tmp_path / f"{number}.pt")
        assert asked <= 6 * 48 + 360
        assert torch.equal(found, weights(alone.student))
    network = Counting()
    fit(tmp_path / "cache", network, views=6, max_epochs=9)
    assert network._asked == 0


class Slow(Counting):
    def forward(self, image: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(image)


def test_the_time_that_is_saved_is_measured_and_said(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(tmp_path, Slow(), max_epochs=200, max_steps=6, limit_val_batches=0)
        (line,) = re.findall("teacher cache: asking takes .*", caplog.text)
        found = re.fullmatch(
            r".*asking takes (\d+) % of a step; 198 of 200 epochs need not ask, which saves (\d+) seconds of (\d+) .*",
            line.replace("%", " %"),
        )
        assert found is not None, line
        share, saved, whole = map(int, found.groups())
        assert 20 < share < 100
        assert 198 * 3 * 0.05 <= saved < whole
        caplog.clear()
        fit(tmp_path, Slow(), max_epochs=3)
    assert "asking takes" not in caplog.text  # there is nothing to measure
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(tmp_path / "other", Slow(), max_epochs=2)
    assert re.search(
        r"an epoch that need not ask is shorter by \d+ seconds?; this run has none: 2 epochs for 2 missing views",
        caplog.text,
    )


CHANGES: dict[str, Any] = {
    "teacher": lambda: {"network": Counting(seed=2)},
    "seed": lambda: {"data": FewDigits(batch_size=16, seed=4)},
    "augmentation": lambda: {"data": FewDigits(batch_size=16, seed=3, train_transform=v2.RandomRotation(10))},
    "training set": lambda: {"data": FewDigits(rows=47, batch_size=16, seed=3)},
    "mixing": lambda: {"data": FewDigits(batch_size=16, seed=3, mixing=Mixing(mixup=0.8))},
    "storage": lambda: {"data": FewDigits(batch_size=16, seed=3, storage="host")},
    "rows": lambda: {"top_k": 3},
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_part_begins_another_cache_and_is_named(tmp_path, caplog, part: str) -> None:
    fit(tmp_path, Counting(), max_epochs=2)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        changed = {"network": Counting(), "max_epochs": 1, **CHANGES[part]()}
        network = changed.pop("network")
        fit(tmp_path, network, **changed)
    assert network._asked >= 47
    differing = next(line for line in caplog.text.splitlines() if "a new one begins" in line and part in line)
    if part not in ("augmentation", "storage"):
        assert differing.endswith(f"differ in {part}")


def test_what_does_not_matter_keeps_the_cache(tmp_path) -> None:
    fit(tmp_path, Counting(), max_epochs=2)
    network = Counting()
    module = LitDistiller(student(seed=9), network, distillation=HardDistillation(), alpha=0.9)
    caching = TeacherCaching(views=2, folder=tmp_path)
    trainer(max_epochs=3, num_sanity_val_steps=0, callbacks=[caching]).fit(
        module, datamodule=FewDigits(batch_size=5, eval_batch_size=7, seed=3)
    )
    assert network._asked == 0
    more = Counting()
    fit(tmp_path, more, views=3, max_epochs=3)
    assert more._asked == 48  # the third view alone


class Stop(Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.at = epoch, batch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == self.at:
            raise ZeroDivisionError


def test_a_run_that_is_cut_off_keeps_what_it_has_asked(tmp_path) -> None:
    whole = fit(tmp_path / "whole", Counting())
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "cut", Counting(), Stop(1, 1))
    network = Counting()
    filled = fit(tmp_path / "cut", network)
    assert network._asked == 16  # the last batch of the second view
    assert torch.equal(weights(whole.student), weights(filled.student))


def damage(folder: Path, how: str) -> None:
    files = sorted(folder.glob("train-*/*.answers"))
    content = bytearray(files[1].read_bytes())
    if how == "flipped":
        content[-7] ^= 16
    files[1].write_bytes(content[:-40] if how == "truncated" else content)


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_shard_is_filled_again(tmp_path, caplog, how: str) -> None:
    filled = fit(tmp_path, Counting())
    damage(tmp_path, how)
    network, answers = Counting(), Answers(Counting())
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        again = fit(tmp_path, network, answers)
    assert "; 1 damaged shard to be filled again" in caplog.text
    assert network._asked == 2 * 48  # `Answers` asks too
    assert torch.equal(weights(again.student), weights(filled.student))
    warm = Counting()
    fit(tmp_path, warm)
    assert warm._asked == 0


def convolutional(folder: Path, **kwargs: Any) -> tuple[FrozenTeacher, list[int]]:
    """Train with a teacher that runs as a folded copy; return it, and the values in memory of it after each epoch."""

    class Values(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            copy = teacher.fast_network._copy
            networks = [teacher.model, *([] if copy is None else [copy.network])]
            values.append(sum(part.numel() for net in networks for part in (*net.parameters(), *net.buffers())))

    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9), nn.Conv2d(9, 10, 6), nn.Flatten()).eval()
    teacher, values = FrozenTeacher(net, num_classes=10), []
    callbacks = [TeacherCaching(views=2, folder=folder), Values(), TeacherCheck()]
    module = LitDistiller(student(), teacher, distillation=SoftDistillation(2.0))
    trainer(callbacks=callbacks, **kwargs).fit(module, datamodule=FewDigits(batch_size=16, seed=3))
    return teacher, values


@pytest.mark.filterwarnings("ignore:the teacher is right on")
def test_a_warm_cache_leaves_nothing_of_a_fast_teacher_in_memory(tmp_path) -> None:
    teacher, values = convolutional(tmp_path, max_epochs=4)
    weights_of_teacher = sum(part.numel() for part in (*teacher.parameters(), *teacher.buffers()))
    assert values[1] > weights_of_teacher  # the folded copy beside it
    assert values[2:] == [0, 0]
    _, values = convolutional(tmp_path, max_epochs=2)  # with Lightning's check, which asks the teacher, before
    assert values == [0, 0]


class Means(nn.Module):
    """A loss on a layer inside the student and one inside the teacher."""

    student_layer, teacher_layer = "encoder", "net"

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return (student.flatten(1).mean(dim=1) - teacher.mean(dim=1)).pow(2).mean()


def fit_on_features(folder: Path, network: nn.Module | Teacher, features: Any, **kwargs: Any) -> LitDistiller:
    losses = {"means": {"loss": Means()}, "soft": {"loss": SoftDistillation(2.0)}}
    teacher = network if isinstance(network, Teacher) else FrozenTeacher(network, fast=False)
    module = LitDistiller(student(), teacher, distillation=kwargs.pop("distillation", losses))
    options = {"max_epochs": 4, "num_sanity_val_steps": 0, **kwargs}
    caching = TeacherCaching(views=2, folder=folder, features=features)
    trainer(callbacks=[caching], **options).fit(module, datamodule=FewDigits(batch_size=16, seed=3))
    return module


@pytest.mark.parametrize("features", [True, "net", ["net.0", "net"]])
def test_features_are_kept_if_that_is_wanted(tmp_path, features: Any) -> None:
    networks = [Counting() for _ in range(3)]
    filling, warm = (fit_on_features(tmp_path, network, features) for network in networks[:2])
    assert [network._asked for network in networks[:2]] == [2 * 48 + 360 + 1, 1]  # one image for the shapes
    assert torch.equal(weights(filling.student), weights(warm.student))
    uncached = LitDistiller(student(), networks[2], distillation=filling.distillation)
    data = FewDigits(batch_size=16, seed=3, views=2)
    trainer(max_epochs=4, num_sanity_val_steps=0).fit(uncached, datamodule=data)
    assert 0 < (weights(uncached.student) - weights(filling.student)).abs().max() < 1e-2


def test_a_cache_without_the_features_of_a_loss_is_refused_or_begun_anew(tmp_path, caplog) -> None:
    message = r"a loss needs the teacher's net, and teacher_cache keeps {}: set teacher_cache.features=true"
    for features, kept in ((False, "its logits only"), (["net.0"], "net.0")):
        with pytest.raises(ValueError, match=message.format(kept)):
            fit_on_features(tmp_path, Counting(), features)
    with pytest.raises(ValueError, match="the teacher Counting has no layer 'nett'; did you mean 'net'"):
        fit_on_features(tmp_path, Counting(), ["net", "nett"])
    fit(tmp_path, Counting(), max_epochs=2)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        network = Counting()
        fit_on_features(tmp_path, network, True)
    assert "a new one begins" in caplog.text
    assert caplog.text.split("a new one begins")[1].splitlines()[0].endswith(" differ in features")
    assert network._asked == 2 * 48 + 1  # the validation images are there


class Pooled(Teacher):
    """A teacher without classes."""

    asked = 0

    def forward(self, batch: Batch) -> TeacherOutput:
        self.asked += len(batch.image)
        return TeacherOutput(None, {"pooled": batch.image.float().flatten(1) / 16})


def test_a_teacher_without_classes_is_cached_with_its_features(tmp_path) -> None:
    loss = Means()
    loss.teacher_layer = "pooled"
    with pytest.raises(ValueError, match="a loss needs the teacher's pooled, and teacher_cache keeps its logits only"):
        fit_on_features(tmp_path, Pooled(), False, distillation=loss)
    filling, warm = (fit_on_features(tmp_path, Pooled(), True, distillation=loss, limit_val_batches=0) for _ in "12")
    assert [module.teacher.asked for module in (filling, warm)] == [2 * 48 + 1, 1]
    assert torch.equal(weights(filling.student), weights(warm.student))


class Damage(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            assert sum(part.numel() for part in pl_module.teacher.parameters()) == 0  # put away
            damage(Path(trainer.callbacks[0].folder), "flipped")


def test_damage_in_the_middle_of_a_run_brings_the_teacher_back(tmp_path) -> None:
    filled = fit(tmp_path, Counting())
    network = Counting()
    again = fit(tmp_path, network, Damage())
    assert network._asked == 48
    assert torch.equal(weights(again.student), weights(filled.student))


@pytest.mark.parametrize("error", [28, 30])  # no space left; read-only file system
def test_where_nothing_can_be_written_training_goes_on(tmp_path, monkeypatch, error: int) -> None:
    filled = fit(tmp_path / "other", Counting())

    def fails(*args: Any) -> None:
        raise OSError(error, "no")

    network = Counting()
    monkeypatch.setattr("lit_distill.files.os.fsync", fails)
    with pytest.warns(UserWarning, match="answers cannot be written to") as caught:
        uncached = fit(tmp_path / "full", network)
    assert len([each for each in caught if "cannot be written" in str(each.message)]) == 1
    assert network._asked == 5 * (48 + 360)
    assert torch.equal(weights(uncached.student), weights(filled.student))


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path, monkeypatch) -> None:
    fit(tmp_path, Counting())

    def fails(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lit_distill.models.answers.write_atomically", fails)
    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    network = Counting()
    fit(tmp_path, network)
    assert network._asked == 0


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._random = random.Random(1)

    def forward(self, image: Tensor) -> Tensor:
        return image * self._random.random()


def test_a_transform_that_is_not_keyed_is_refused(tmp_path) -> None:
    data = FewDigits(batch_size=16, seed=3, train_transform=OwnGenerator())
    with pytest.raises(ValueError, match="a view of a training image is not the same when it is read again"):
        fit(tmp_path, Counting(), data=data)


def test_one_view_needs_a_flag(tmp_path) -> None:
    with pytest.raises(ValueError, match="views=1 shows the student every image in one form only"):
        TeacherCaching(views=1)
    network = Counting()
    fit(tmp_path, network, views=1, single_view=True)
    assert network._asked == 48 + 360


def test_more_views_than_epochs_are_no_mistake(tmp_path) -> None:
    network = Counting()
    fit(tmp_path, network, views=9, max_epochs=2)
    assert network._asked == 2 * 48 + 360


def test_loaders_of_ones_own_are_keyed_or_refused(tmp_path) -> None:
    def loader(**kwargs: Any) -> DataLoader[Any]:
        data = IndexedDataset([(image.view(1, 2, 3), int(y)) for image, y in toy_data(30)], with_view=True)
        return DataLoader(data, batch_size=8, sampler=KeyedSampler(data, **kwargs))

    def module(network: nn.Module) -> LitDistiller:
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
        return LitDistiller(net, network, distillation=SoftDistillation(2.0))

    network = Counting(classes=4, features=6)
    options = {"max_epochs": 4, "callbacks": [TeacherCaching(views=2, folder=tmp_path)]}
    trainer(**options).fit(module(network), loader(views=2))
    assert network._asked == 60
    with pytest.raises(
        ValueError, match=r"teacher_cache needs batches with a view and an index, of KeyedSampler\(..., vi"
    ):
        trainer(**options).fit(module(network), loader())
    with pytest.raises(ValueError, match="teacher_cache needs a teacher and a distillation loss"):
        trainer(**options).fit(LitDistiller(nn.Linear(6, 4)), loader(views=2))
    with pytest.raises(ValueError, match=r"teacher_cache.views=2, but data.views=3: give the first alone"):
        fit(tmp_path, Counting(), data=FewDigits(views=3))


def test_photos_are_the_same_cache_in_a_second_run(tmp_path) -> None:
    root = small_photos(tmp_path / "photos")
    for storage in ("device", "host"):
        asked = []
        for _ in range(2):
            network = Counting(classes=3, features=3 * 16 * 16)
            data = photos_on_device(root, storage=storage, mixing=Mixing(mixup=0.8), num_workers=0)
            net = student(image_size=16, num_classes=3, channels=3)
            fit(tmp_path / "cache", network, data=data, student=net, max_epochs=3)
            asked.append(network._asked)
        assert asked == [2 * 45 + 6 * (storage == "device"), 0]  # they share the validation images


def test_a_sanity_check_and_a_test_ask_the_live_teacher(tmp_path) -> None:
    module = fit(tmp_path, Counting())
    network = Counting()
    run = trainer(max_epochs=3, num_sanity_val_steps=2, callbacks=[TeacherCaching(views=2, folder=tmp_path)])
    module = LitDistiller(student(), network, distillation=SoftDistillation(2.0))
    run.fit(module, datamodule=FewDigits(batch_size=16, eval_batch_size=100, seed=3))
    assert network._asked == 200
    assert run.test(module, datamodule=DigitsDataModule(seed=3), verbose=False)
    assert network._asked == 200 + 360


class Fails(Callback):
    """Raises an error at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("as a search for hyper-parameters does")


@pytest.mark.parametrize("epoch", [1, 2, 4])  # while the cache fills, and when the teacher is away
def test_after_an_error_the_module_and_its_teacher_are_as_they_were(tmp_path, epoch: int) -> None:
    network = Counting()
    before = weights(network)
    module = LitDistiller(student(), FrozenTeacher(network, fast=False), distillation=SoftDistillation(2.0))
    teacher = module.teacher

    def run(seed: int, *callbacks: Callback) -> None:
        caching = TeacherCaching(views=2, folder=tmp_path)
        options = {"max_epochs": 5, "num_sanity_val_steps": 0, "callbacks": [caching, *callbacks]}
        trainer(**options).fit(module, datamodule=FewDigits(batch_size=16, seed=seed))

    with pytest.raises(RuntimeError, match="as a search"):
        run(3, Fails(epoch))
    assert module.teacher is teacher
    assert torch.equal(weights(network), before)
    answers = Answers(Counting())
    run(4, answers)
    assert answers.compared == 5 * 48


class Coarse(nn.Module):
    """A network whose answers are lost in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.num_classes = DigitsCNN(pretrained=True), 10
        self.register_buffer("unit", torch.eye(10))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.linear(self.net(image) + 3000, self.unit) - 3000


def stored(folder: Path) -> list[tuple[str, int, Tensor]]:
    """Return kind, view and logits of each view that is whole."""
    return [
        (cache.kind, view, rows.contiguous().view(torch.float16).float())
        for cache in caches_in(folder)
        for view in cache.views()
        if (rows := cache.table(view)) is not None
    ]


def test_a_teacher_that_must_not_be_fast_fills_its_cache_plainly_in_each_run(tmp_path) -> None:
    learned = []
    for epochs in (2, 4, 4, 4):
        teacher = FrozenTeacher(Coarse())
        module = LitDistiller(student(), teacher, distillation=SoftDistillation(2.0))
        callbacks = [TeacherCaching(views=4, folder=tmp_path), TeacherCheck()]
        options = {"max_epochs": epochs, "num_sanity_val_steps": 0, "precision": "bf16-mixed", "callbacks": callbacks}
        with pytest.warns(UserWarning, match="which it does from now on"):
            trainer(**options).fit(module, datamodule=FewDigits(batch_size=16, seed=3))
        assert teacher.fast_network.chosen["variant"] == "own precision"
        learned.append(weights(module.student))
    views = [(view, logits) for kind, view, logits in stored(tmp_path) if kind == "train" and logits.any(dim=1).sum()]
    assert [view for view, _ in views] == [0, 1, 2, 3]
    for _, logits in views:
        assert not (logits % 8 == 0).all()  # as all are in bfloat16 near 3000
    assert torch.equal(learned[2], learned[3])


def test_validation_answers_are_those_that_are_given(tmp_path) -> None:
    teacher = FrozenTeacher(Counting(net=DigitsCNN(pretrained=True)))
    module = LitDistiller(student(), teacher, distillation=SoftDistillation(2.0))
    callbacks = [TeacherCaching(views=2, folder=tmp_path), TeacherCheck()]
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "precision": "bf16-mixed", "callbacks": callbacks}
    trainer(**options).fit(module, datamodule=FewDigits(batch_size=16, seed=3))
    for _, _, logits in stored(tmp_path):
        assert torch.equal(logits.bfloat16().float(), logits)  # not those of the plain network beside it


def test_answers_that_are_infinite_are_found_out_with_a_cache_too(tmp_path) -> None:
    network = Counting()
    network.net[1].bias.data[3] = torch.inf
    with pytest.raises(ValueError, match="outputs are NaN or infinite on 360 of 360"):
        fit(tmp_path, network, TeacherCheck())


def test_a_line_says_when_epochs_are_cut_short(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(tmp_path, Counting(), limit_train_batches=2)
    assert "limit_train_batches takes other images in each epoch, so views do not become whole" in caplog.text
    assert "need not ask, which saves" not in caplog.text


def test_a_teacher_for_which_there_is_no_room_on_disk_stays_and_that_is_said_once(
    tmp_path, caplog, monkeypatch
) -> None:
    def is_full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(TeacherCache, "put_away", is_full)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(tmp_path, Counting(), max_epochs=6)
    assert caplog.text.count("the teacher stays in memory: no room") == 1


@pytest.mark.parametrize(("offset", "warned"), [(0, False), (3000, True)])
def test_logits_that_float16_holds_badly_are_said(tmp_path, offset: int, warned: bool, recwarn) -> None:
    network = Counting()
    network.net[1].bias.data += offset / 3
    with (
        pytest.warns(UserWarning, match=r"logits reach 30\d\d, .* has steps of 2: subtract")
        if warned
        else nullcontext()
    ):
        fit(tmp_path, network)


def test_a_whole_cache_in_mixed_precision_is_compared_with_the_plain_network_again(tmp_path) -> None:
    learned = []
    for _ in range(3):
        network = Counting(net=DigitsCNN(pretrained=True))
        module = LitDistiller(student(), FrozenTeacher(network), distillation=SoftDistillation(2.0))
        callbacks = [TeacherCaching(views=2, folder=tmp_path), TeacherCheck()]
        options = {"max_epochs": 3, "num_sanity_val_steps": 0, "precision": "bf16-mixed", "callbacks": callbacks}
        trainer(**options).fit(module, datamodule=FewDigits(batch_size=16, seed=3))
        learned.append(weights(module.student))
    assert torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])


def test_a_teacher_that_is_to_run_as_it_is_is_not_compared_with_another_precision(tmp_path, caplog) -> None:
    module = LitDistiller(student(), FrozenTeacher(Coarse(), fast=False), distillation=SoftDistillation(2.0))
    callbacks = [TeacherCaching(views=2, folder=tmp_path), TeacherCheck()]
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "precision": "bf16-mixed", "callbacks": callbacks}
    with pytest.warns(UserWarning, match="a student will learn little from it"):
        trainer(**options).fit(module, datamodule=FewDigits(batch_size=16, seed=3))
    assert {cache.made_of["precision"] for cache in caches_in(tmp_path)} == {"bf16-mixed"}
