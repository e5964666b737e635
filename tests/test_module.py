"""The module: the loss it computes, the guest it hosts, what it saves and how it is loaded again."""

from contextlib import nullcontext
import copy
from functools import cache, partial
import logging
import math
from pathlib import Path
import pickle
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.cli import ReduceLROnPlateau
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, ExponentialLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from toys import FewDigits, trainer, weights

from lit_distill import (
    DKD,
    DigitsCNN,
    DistillableViT,
    FrozenTeacher,
    HardDistillation,
    LitDistiller,
    SoftDistillation,
    StudentOutput,
    TimmStudent,
    WarmupCosine,
    load_student,
)
from lit_distill.callbacks import LearningWithRetrospection, StepSeed, TeacherCheck
from lit_distill.datamodules import DigitsDataModule, IndexedDataset
from lit_distill.models.output import HEADS
from lit_distill.models.weights import plain_names


def vit(classes: int = 5, **kwargs: Any) -> DistillableViT:
    torch.manual_seed(3)
    return DistillableViT(8, 4, classes, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, **kwargs)


def timm_student(name: str) -> TimmStudent:
    torch.manual_seed(3)
    small = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    return TimmStudent(name, 5, img_size=8, patch_size=4, mean=[0.5] * 3, std=[0.5] * 3, **small)


STUDENTS = {
    "DistillableViT": vit,
    "token added": lambda: timm_student("vit_tiny_patch16_224"),
    "timm's own token": lambda: timm_student("deit_tiny_distilled_patch16_224"),
}
every_student = pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS.keys())


def convnet(classes: int = 5) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))


def loader(samples: int = 24, classes: int = 5, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(classes, (samples,), generator=generator)), batch_size)


def distiller(**kwargs: Any) -> LitDistiller:
    return LitDistiller(**{"student": vit(), "teacher": convnet(), "distillation": HardDistillation(), **kwargs})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("distillation", [HardDistillation(), SoftDistillation(3.0), SoftDistillation(1.0, "deit")])
def test_loss_and_gradient_equal_the_published_total(alpha: float, distillation: nn.Module) -> None:
    module = distiller(alpha=alpha, distillation=distillation)
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    image, target = next(iter(loader()))
    loss = module.training_step((image, target, torch.arange(8)), 0)
    loss.backward()
    student = copy.deepcopy(module.student)
    student.zero_grad()
    output = student(image)
    teacher = convnet().eval()(image / 255)
    expected = (1 - alpha) * F.cross_entropy(output.logits, target)
    expected = expected + alpha * distillation(output.distill_logits, teacher, target)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(module.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_one_head_serves_both_losses() -> None:
    module = distiller(student=vit(distillation_token=False))
    output = module(torch.rand(2, 3, 8, 8))
    assert output.logits is output.distill_logits


def test_without_distillation_the_class_head_answers_alone() -> None:
    module = LitDistiller(vit())
    output = module(torch.rand(2, 3, 8, 8))
    assert output.logits is output.distill_logits
    probabilities = module.predict_step((torch.rand(2, 3, 8, 8), torch.zeros(2)), 0)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))


def test_prediction_is_the_mean_of_the_softmaxes() -> None:
    module, image = distiller().eval(), torch.rand(2, 3, 8, 8)
    output = module.student(image)
    expected = (output.logits.softmax(dim=1) + output.distill_logits.softmax(dim=1)) / 2
    torch.testing.assert_close(module.predict_step(image), expected)
    torch.testing.assert_close(module.predict_step((image, torch.zeros(2)), 0), expected)


def test_logs_every_term_under_its_name() -> None:
    run = trainer(max_epochs=2)
    run.fit(distiller(alpha=0.25), loader(), loader())
    names = {"accuracy_class", "accuracy_distill", "accuracy_mean_logits", "accuracy_mean_probs", "nll", "ece"}
    names |= {"agreement", "teacher_accuracy"}
    train = {"train/loss", "train/criterion", "train/distillation"}
    assert set(run.callback_metrics) == train | {f"val/{name}" for name in names}
    logged = run.callback_metrics
    total = 0.75 * logged["train/criterion"] + 0.25 * logged["train/distillation"]
    torch.testing.assert_close(logged["train/loss"], total)
    run = trainer()
    assert {f"test/{name}" for name in names} == set(run.test(distiller(), loader(), verbose=False)[0])


class Meddler(Callback):
    """Calls ``.train()`` on everything it can reach, as some callbacks do."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.train()
        pl_module.teacher.train()
        pl_module.teacher.model.train()


def test_the_teacher_is_bit_identical_after_a_fit() -> None:
    module = distiller()
    before = copy.deepcopy(module.teacher.state_dict())
    trainer(max_epochs=2, callbacks=Meddler()).fit(module, loader(), loader())
    after = module.teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert module.teacher.model[1].num_batches_tracked == 0


def test_the_teacher_is_a_guest() -> None:
    module = distiller()
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert "teacher" not in dict(module.named_children())
    theirs = {id(p) for p in module.teacher.parameters()}
    assert not theirs & {id(p) for group in module.parameter_groups() for p in group["params"]}
    module.double()
    assert module.teacher.model[0].weight.dtype == torch.float64
    module.teacher = convnet()  # assigned later, it is frozen and hidden as well
    assert isinstance(module.teacher, FrozenTeacher)
    assert not [name for name in module.state_dict() if "teacher" in name]
    module.teacher = None
    assert module.teacher is None


@every_student
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_student_and_teacher_follow_the_precision_plugin(student: Any, precision: Any) -> None:
    module, run = distiller(student=student()), trainer(max_epochs=2, precision=precision)
    before, output_dtypes = copy.deepcopy(module.student.state_dict()), set()
    module.student.register_forward_hook(lambda m, args, out: output_dtypes.update((out[0].dtype, out[1].dtype)))
    run.fit(module, loader(), loader())
    assert output_dtypes == {torch.float64 if precision == "64-true" else torch.bfloat16}
    kept = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert {value.dtype for value in module.student.state_dict().values()} == {kept}
    assert {p.dtype for p in module.teacher.parameters()} == {kept}
    assert run.callback_metrics["train/loss"].isfinite()
    assert run.callback_metrics["val/nll"].isfinite()
    now = module.student.state_dict()
    moved = {key for key in now if not torch.equal(now[key], before[key].to(kept))}
    assert any("distillation_token" in key or "dist_token" in key for key in moved)


@pytest.mark.parametrize(
    "precision", ["32-true", "bf16-true", "bf16-mixed", pytest.param("64-true", marks=pytest.mark.slow)]
)
def test_what_an_epoch_measures_is_that_of_its_weights_in_any_precision(precision: Any) -> None:
    """Sums over many batches in bfloat16, of three digits, would be off by far more than the tolerance."""
    measured_and_expected: list[tuple[float, float]] = []

    class Compare(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            losses = []
            for image, target in loader(320):
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    log_probs = pl_module(image).log_probs()
                losses.append(F.nll_loss(log_probs.double(), target, reduction="sum").item())
            measured_and_expected.append((trainer.callback_metrics["val/nll"].item(), sum(losses) / 320))

    run = trainer(max_epochs=2, precision=precision, callbacks=Compare(), num_sanity_val_steps=0)
    run.fit(distiller(), loader(), loader(320))
    assert len({measured for measured, _ in measured_and_expected}) == 2
    for value, expected in measured_and_expected:
        assert value == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples() -> None:
    """Of batches of 10, 10 and 4, each counts by its samples."""
    module = distiller(optimizer=lambda p: torch.optim.SGD(p, lr=0.0), scheduler=None)
    run = trainer(max_epochs=1)
    run.fit(module, loader(batch_size=10))
    expected = trainer(max_epochs=1)
    expected.fit(module, loader(batch_size=24))
    for name in ("train/loss", "train/criterion", "train/distillation"):
        torch.testing.assert_close(run.callback_metrics[name], expected.callback_metrics[name])


@every_student
def test_an_average_of_the_weights_is_the_students_alone(student: Any, tmp_path) -> None:
    module = distiller(student=student())
    teacher = module.teacher
    average = EMAWeightAveraging(decay=0.5)
    run = trainer(max_epochs=2, callbacks=average)
    run.fit(module, loader(), loader())
    assert module.teacher is teacher
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not [key for key in saved["state_dict"] if not key.startswith("student.")]
    assert average._average_model.module.teacher is None
    copied = copy.deepcopy(module).double()
    assert copied.teacher is None
    assert {value.dtype for value in copied.student.parameters()} == {torch.float64}
    assert {value.dtype for value in [*module.parameters(), *teacher.parameters()]} == {torch.float32}
    assert all(torch.equal(value.float(), module.state_dict()[key]) for key, value in copied.state_dict().items())


@every_student
def test_batches_accumulated_train_as_one_large_batch(student: Any) -> None:
    def weights_after(batch_size: int, accumulate: int) -> dict[str, torch.Tensor]:
        module = distiller(student=student(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scheduler=None)
        run = trainer(max_epochs=2, accumulate_grad_batches=accumulate)
        run.fit(module, loader(batch_size=batch_size))
        assert run.global_step == 4
        return module.state_dict()

    few, one = weights_after(4, 3), weights_after(12, 1)
    for key, value in one.items():
        torch.testing.assert_close(few[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    "student",
    [
        STUDENTS["DistillableViT"],
        STUDENTS["token added"],
        pytest.param(STUDENTS["timm's own token"], marks=pytest.mark.slow),
    ],
    ids=STUDENTS.keys(),
)
def test_compiled_in_place_the_student_trains_to_the_same_weights_under_its_own_keys(student: Any) -> None:
    # Without inductor, which needs a compiler: what is traced and differentiated is the same.
    plain, compiled = distiller(student=student()), distiller(student=student())
    compiled.student.compile(backend="aot_eager", fullgraph=True)
    for module in (plain, compiled):
        torch.manual_seed(0)
        trainer(max_epochs=1).fit(module, loader())
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, of what a compiled part is given
@pytest.mark.parametrize("inside", [False, True], ids=["whole", "a part"])
def test_a_compiled_student_is_saved_and_loaded_under_the_names_of_a_plain_one(tmp_path: Path, inside: bool) -> None:
    def student(compiled: bool) -> Any:
        net = vit()
        if not compiled:
            return net
        if not inside:
            return torch.compile(net, backend="eager")
        net.encoder = torch.compile(net.encoder, backend="eager")
        return net

    saved = {}
    for compiled in (False, True):
        module = distiller(student=student(compiled))
        run = trainer(max_epochs=1, callbacks=EMAWeightAveraging(decay=0.5) if compiled else None)
        run.fit(module, loader(), loader())
        run.save_checkpoint(tmp_path / f"{compiled}.ckpt")
        saved[compiled] = torch.load(tmp_path / f"{compiled}.ckpt", weights_only=True)["state_dict"]
    assert list(saved[True]) == list(saved[False])
    # As earlier versions saved it.
    checkpoint = torch.load(tmp_path / "True.ckpt", weights_only=True)
    before = {f"student._orig_mod.{name.removeprefix('student.')}": value for name, value in saved[True].items()}
    torch.save({**checkpoint, "state_dict": before}, tmp_path / "before.ckpt")
    for name in ("True.ckpt", "before.ckpt"):
        for compiled in (False, True):
            again = LitDistiller.load_from_checkpoint(tmp_path / name, student=student(compiled))
            assert all(torch.equal(value, saved[True][key]) for key, value in again.state_dict().items())
            alone = load_student(tmp_path / name, student(compiled))
            loaded = plain_names(alone.state_dict())
            assert all(torch.equal(value, saved[True][f"student.{key}"]) for key, value in loaded.items())
    resumed = distiller(student=student(False))
    run = trainer(max_epochs=2, callbacks=EMAWeightAveraging(decay=0.5))
    run.fit(resumed, loader(), ckpt_path=tmp_path / "True.ckpt", weights_only=True)


def test_a_module_can_be_pickled(tmp_path: Path) -> None:
    module = distiller()
    run = trainer(max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    image = torch.rand(2, 3, 8, 8)
    loaded = load_student(tmp_path / "a.ckpt", vit())
    for original in (module, distiller(teacher=loaded), loaded):
        copied = pickle.loads(pickle.dumps(original.eval()))
        again = StudentOutput.of(copied(image))
        assert all(torch.equal(a, b) for a, b in zip(again.heads, StudentOutput.of(original(image)).heads, strict=True))
    copied = pickle.loads(pickle.dumps(module))
    assert torch.equal(copied.teacher(image), module.teacher(image))
    trainer(max_epochs=1).fit(copied.train(), loader())
    assert pickle.loads(pickle.dumps(loaded)).predict.args[0] is not loaded


class OwnTeacher(LitDistiller):
    def __init__(self, width: int = 16, folder: Path = Path("weights")) -> None:
        super().__init__(vit(), convnet(), distillation=HardDistillation(), alpha=0.3)
        self.width = width


class OwnTeacherAndTheRest(LitDistiller):
    def __init__(self, student: nn.Module, width: int = 16, **kwargs: Any) -> None:
        super().__init__(student, teacher=convnet(), distillation=HardDistillation(), scheduler=None, **kwargs)
        self.width = width


class OwnAlpha(OwnTeacherAndTheRest):
    def __init__(self, student: nn.Module, width: int = 16, **kwargs: Any) -> None:
        super().__init__(student, width, alpha=0.3, **kwargs)


class TeacherAfterwards(LitDistiller):
    def __init__(self, *args: Any, width: int = 16, **kwargs: Any) -> None:
        super().__init__(*args, alpha=0.3, **kwargs)
        self.width = width
        self.teacher = convnet()


@pytest.mark.parametrize(
    ("kind", "given", "again"),
    [
        (OwnTeacher, {"width": 32}, ()),
        (OwnTeacher, {"width": 32, "folder": Path("other")}, ()),
        (OwnTeacherAndTheRest, {"student": vit(), "width": 32, "alpha": 0.3}, ("student",)),
        (OwnAlpha, {"student": vit(), "width": 32, "head": "class"}, ("student",)),
        (TeacherAfterwards, {"student": vit(), "width": 32, "distillation": HardDistillation()}, ("student",)),
    ],
)
def test_a_subclass_that_makes_its_own_teacher(tmp_path: Path, kind: Any, given: Any, again: Any) -> None:
    module, run = kind(**given), trainer(max_epochs=1)
    run.fit(module, loader(), loader())
    assert "val/teacher_accuracy" in run.callback_metrics
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt", **{name: given[name] for name in again})
    assert (loaded.width, loaded.alpha, loaded.head) == (32, 0.3, given.get("head", "mean_probs"))
    assert isinstance(loaded.teacher, FrozenTeacher)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in module.state_dict().items())
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt", **{name: given[name] for name in again}, width=64)
    assert loaded.width == 64


def test_a_network_cannot_teach_itself() -> None:
    net = convnet()
    for student, teacher in ((net, net), (nn.Sequential(net), net), (net, nn.Sequential(net))):
        with pytest.raises(ValueError, match="student and teacher are one network, and a teacher is frozen"):
            LitDistiller(student, teacher, distillation=HardDistillation())
    module = LitDistiller(net, copy.deepcopy(net), distillation=HardDistillation())
    with pytest.raises(ValueError, match="student and teacher are one network"):
        module.teacher = net
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(ValueError, match="student and teacher are one network"):
        module.student = module.teacher.model


@cache
def metrics_of_classes(dtype: torch.dtype, distillation: Any) -> dict[str, torch.Tensor]:
    """Return what a run logs whose classes are of that type."""
    images, labels = loader().dataset.tensors  # type: ignore[attr-defined]
    run, data = trainer(max_epochs=1), DataLoader(TensorDataset(images, labels.to(dtype)), 8)
    run.fit(distiller(distillation=distillation), data, data)
    return run.callback_metrics


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("distillation", [DKD(), HardDistillation(), None], ids=["DKD", "hard", "none"])
def test_classes_may_be_of_any_integer_type(dtype: torch.dtype, distillation: Any) -> None:
    assert metrics_of_classes(dtype, distillation) == metrics_of_classes(torch.int64, distillation)


class Infinite(nn.Module):
    """Its second head's outputs are infinite, or sum up to infinity, in half precision."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.second, self.factor = convnet(), nn.Linear(5, 5), factor

    def forward(self, image: torch.Tensor) -> StudentOutput:
        logits = self.net(image / 255)
        return StudentOutput(logits, self.second(logits).half() * 0 + self.factor)


@pytest.mark.parametrize("factor", [6e4, float("inf"), float("nan")])
def test_a_head_that_nothing_trains_cannot_spoil_the_loss(factor: float) -> None:
    module = LitDistiller(Infinite(factor))
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    loss = module.training_step(next(iter(loader())), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    assert all(not parameter.grad.any() for parameter in module.student.second.parameters())


def test_clips_gradients_of_the_fused_default_in_mixed_precision() -> None:
    run = trainer(max_epochs=1, precision="bf16-mixed", gradient_clip_val=0.1)
    run.fit(distiller(), loader())
    assert run.optimizers[0].param_groups[0]["fused"]


def test_norms_biases_tokens_and_positions_have_no_weight_decay() -> None:
    module = distiller()
    plain, decayed = module.parameter_groups()
    names = {id(p): name for name, p in module.named_parameters()}
    assert plain["weight_decay"] == 0.0
    assert "weight_decay" not in decayed
    without = {names[id(p)] for p in plain["params"]}
    assert {"student.cls_token", "student.pos_embedding", "student.distillation_token"} < without
    for p in decayed["params"]:
        assert p.dim() > 1
        assert names[id(p)].endswith("weight")
    assert len(plain["params"]) + len(decayed["params"]) == len(names)
    optimizer = module.make_optimizer(module.parameter_groups())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]


class Rates(Callback):
    """Note the first group's learning rate of every batch, relative to the first one's full rate."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def rates_of(data: Any = None, *, callbacks: Any = (), module: Any = None, **kwargs: Any) -> list[float]:
    """Return the learning rate of every batch of a short run, whose full rate is 1e-3."""
    options = {name: kwargs.pop(name) for name in ("scheduler", "scheduler_interval") if name in kwargs}
    noted = Rates()
    run = trainer(**{"max_epochs": 4, "callbacks": [*callbacks, noted], **kwargs})
    run.fit(distiller(**options) if module is None else module, loader() if data is None else data)
    return [rates[0] for rates in noted.rates]


def cosine(steps: int, each: int = 1, of: int | None = None) -> list[float]:
    """Return the rates of the default schedule of ``of`` steps, without warm-up, ``each`` batches long."""
    values = [5e-4 * (1 + math.cos(math.pi * step / (of or steps))) for step in range(steps)]
    return pytest.approx([value for value in values for _ in range(each)], abs=1e-9)  # type: ignore[return-value]


def no_warmup(optimizer: Any) -> WarmupCosine:
    return WarmupCosine(optimizer, warmup=0.0)


@pytest.mark.parametrize(
    ("scheduler", "interval", "expected"),
    [
        (no_warmup, None, cosine(12)),
        (no_warmup, "step", cosine(12)),
        (no_warmup, "epoch", cosine(4, each=3)),
        (lambda o: StepLR(o, 1, gamma=0.1), None, [10.0**-k for k in (3, 4, 5, 6) for _ in range(3)]),
        (lambda o: StepLR(o, 1, gamma=0.1), "epoch", [10.0**-k for k in (3, 4, 5, 6) for _ in range(3)]),
        (lambda o: StepLR(o, 6, gamma=0.1), "step", [1e-3] * 6 + [1e-4] * 6),
        (lambda o: CosineAnnealingLR(o, 4), None, cosine(4, each=3)),
        (lambda o: ExponentialLR(o, 0.5), None, [1e-3 * 0.5**k for k in range(4) for _ in range(3)]),
        (lambda o: OneCycleLR(o, 1e-3, total_steps=12, pct_start=1e-9, final_div_factor=1e9), None, None),
        (lambda o: CyclicLR(o, 1e-4, 1e-3, step_size_up=3, cycle_momentum=False), None, None),
    ],
)
def test_a_schedule_steps_as_it_is_made_to_unless_told_otherwise(scheduler: Any, interval: Any, expected: Any) -> None:
    rates = rates_of(scheduler=scheduler, scheduler_interval=interval)
    assert len(rates) == 12
    if expected is None:  # of these every step is another
        assert len(set(rates[:4])) == 4
    else:
        assert rates == (expected if not isinstance(expected, list) else pytest.approx(expected))


class Stream(IterableDataset[Any]):
    """24 samples without a length."""

    def __iter__(self) -> Any:
        return iter(loader().dataset)


def stream() -> DataLoader[Any]:
    return DataLoader(Stream(), 8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 12}, cosine(12)),
        ({"limit_train_batches": 3}, cosine(12)),
        ({"scheduler_interval": "epoch"}, cosine(4, each=3)),
        ({"scheduler": lambda o: WarmupCosine(o, warmup=0.0, total_steps=12)}, cosine(12)),
        ({"scheduler": None}, [1e-3] * 12),
    ],
)
def test_a_loader_without_a_length(options: dict[str, Any], expected: Any) -> None:
    with pytest.raises(ValueError, match="the training loader has no length: set the trainer's max_steps or limit"):
        rates_of(stream())
    assert rates_of(stream(), **{"scheduler": no_warmup, **options}) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 0}, []),
        ({"max_epochs": -1, "max_steps": 6}, cosine(6)),
        ({"max_steps": 6}, cosine(6, of=12)),  # which may be raised later: the run is that of its epochs
        ({"accumulate_grad_batches": 2}, cosine(8, of=8)),
        ({"callbacks": [GradientAccumulationScheduler({0: 3, 2: 1})]}, cosine(8, of=8)),
        ({"limit_train_batches": 1}, cosine(4)),
        ({"overfit_batches": 1}, cosine(4)),
    ],
)
def test_the_length_of_a_run_is_that_of_its_steps(options: dict[str, Any], expected: Any) -> None:
    rates = rates_of(scheduler=no_warmup, **options)
    assert [rate for rate, before in zip(rates, [0.0, *rates], strict=False) if rate != before] == expected


def test_a_fit_that_is_to_train_nothing_ends_as_lightning_ends_it() -> None:
    student = DistillableViT(image_size=8, patch_size=4, num_classes=10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    before = weights(student).clone()
    trainer(max_epochs=2, limit_train_batches=0).fit(LitDistiller(student), datamodule=DigitsDataModule())
    assert torch.equal(weights(student), before)


def test_a_schedule_by_epoch_needs_a_number_of_epochs() -> None:
    with pytest.raises(ValueError, match="WarmupCosine needs an end: set the trainer's max_epochs, or total_steps"):
        rates_of(scheduler_interval="epoch", max_epochs=-1, max_steps=6)


class Thaw(BaseFinetuning):
    """Train the head alone for two epochs, then everything."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.student)
        self.make_trainable([pl_module.student[-1]])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.student[0], optimizer)


def test_layers_that_are_thawed_later_follow_the_schedule(tmp_path: Path) -> None:
    def run(epochs: int, noted: Rates, **kwargs: Any) -> Any:
        module = LitDistiller(convnet(), scheduler=no_warmup)
        run = trainer(max_epochs=epochs, callbacks=[Thaw(), noted])
        images, labels = loader().dataset.tensors  # type: ignore[attr-defined]
        run.fit(module, DataLoader(TensorDataset(images / 255, labels), 8), **kwargs)
        return run

    noted = Rates()
    run(4, noted)
    whole = [5e-4 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    assert [rates[0] for rates in noted.rates] == pytest.approx(whole)
    assert [len(rates) for rates in noted.rates] == [2] * 6 + [3] * 6
    assert [rates[2] for rates in noted.rates[6:]] == pytest.approx([rate / 10 for rate in whole[6:]])
    run(3, Rates()).save_checkpoint(tmp_path / "a.ckpt")  # a schedule of nine steps, which goes on as one of twelve
    again = Rates()
    run(4, again, ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert [rates[2] for rates in again.rates[1:]] == pytest.approx([rates[0] / 10 for rates in again.rates[1:]])


def test_the_schedule_steps_every_step_to_the_end_of_the_run() -> None:
    rates = rates_of()
    assert len(rates) == 12
    assert rates[1:] == sorted(set(rates), reverse=True)  # one step of warm-up, then down at every step
    assert max(rates) <= 1e-3
    assert rates[-1] < 1e-4


def test_other_optimizers_and_schedulers() -> None:
    module = distiller(
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        scheduler_interval="epoch",
    )
    run = trainer(max_epochs=3)
    run.fit(module, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
    run = trainer(max_epochs=2)
    run.fit(distiller(scheduler=None), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == 1e-3


def test_checkpoints_of_python_code_load_safely_and_without_the_teacher(tmp_path) -> None:
    module, run = distiller(alpha=0.3), trainer(max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key]
    assert checkpoint["hyper_parameters"] == {"alpha": 0.3, "scheduler_interval": None, "head": "mean_probs"}
    again = LitDistiller.load_from_checkpoint(tmp_path / "a.ckpt", student=vit())
    assert again.teacher is None
    assert again.alpha == 0.3
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in module.state_dict().items())
    with_teacher = LitDistiller.load_from_checkpoint(
        tmp_path / "a.ckpt", student=vit(), teacher=convnet(), distillation=HardDistillation()
    )
    trainer(max_epochs=2).fit(with_teacher, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_the_training_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module = distiller()
    image, target = next(iter(loader()))
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]

    def waits(self: torch.Tensor, *args: Any) -> Any:
        raise AssertionError("a value was read on the host")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    loss = module.training_step((image, target), 0)
    monkeypatch.undo()
    assert loss.isfinite()


def test_two_runs_with_one_seed_are_bit_identical() -> None:
    def run() -> dict[str, torch.Tensor]:
        module = distiller(student=vit(dropout=0.2))
        torch.manual_seed(0)
        trainer(max_epochs=3).fit(module, loader())
        return module.state_dict()

    first, second = run(), run()
    assert all(torch.equal(first[key], second[key]) for key in first)


class Plain(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, classes, 8)  # no linear layer: nobody can tell its classes from outside

    def forward(self, image: torch.Tensor) -> StudentOutput:
        logits = self.net(image / 255).flatten(1)
        return StudentOutput(logits, logits)


def test_classes_are_compared_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="the student has 5, the teacher has 7"):
        trainer(max_epochs=1).fit(distiller(teacher=convnet(7)), loader())
    module = distiller(student=Plain(4))
    before = module.student.net.weight.clone()
    with pytest.raises(ValueError, match=r"one shape \(B, K\), got \(8, 4\) and \(8, 5\)"):
        trainer(max_epochs=1).fit(module, loader(classes=4))
    assert torch.equal(before, module.student.net.weight)


def test_distillation_without_a_teacher_is_an_error_in_training_only() -> None:
    module = distiller(teacher=None)
    with pytest.raises(ValueError, match="HardDistillation needs a teacher, got teacher=None"):
        trainer(max_epochs=1).fit(module, loader())
    assert "test/nll" in trainer().test(module, loader(), verbose=False)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ({"criterion": nn.CrossEntropyLoss(label_smoothing=1.5)}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"scheduler_interval": "batch"}, "scheduler_interval must be 'step', 'epoch' or None, got 'batch'"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(**arguments)


def test_every_module_has_a_criterion_of_its_own() -> None:
    assert LitDistiller(vit()).criterion is not LitDistiller(vit()).criterion


def test_reduce_on_plateau_watches_its_metric() -> None:
    module = distiller(
        scheduler=lambda o: ReduceLROnPlateau(o, monitor="train/loss", patience=0, threshold=10.0),
        scheduler_interval="epoch",
    )
    run = trainer(max_epochs=4)
    run.fit(module, loader())
    assert run.optimizers[0].param_groups[0]["lr"] < 1e-3


def test_warmup_cosine_needs_an_end() -> None:
    with pytest.raises(ValueError, match="WarmupCosine needs an end"):
        trainer(max_epochs=-1).fit(distiller(), loader())


def test_bfloat16_logits_reach_the_criterion_as_float32() -> None:
    module, logit_dtypes = distiller(), []
    module.criterion.register_forward_hook(lambda m, args, out: logit_dtypes.append(args[0].dtype))
    trainer(max_epochs=1, precision="bf16-true").fit(module, loader())
    assert set(logit_dtypes) == {torch.float32}


def test_says_that_a_teacher_without_a_distillation_loss_teaches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(max_epochs=1).fit(distiller(distillation=None), loader())
        assert "there is a teacher but no distillation loss" in caplog.text
        caplog.clear()
        trainer(max_epochs=1).fit(distiller(), loader())
    assert "no distillation loss" not in caplog.text


@pytest.mark.parametrize("head", HEADS)
def test_the_head_that_predicts_is_chosen_and_travels(tmp_path, head: Any) -> None:
    module, run = distiller(head=head), trainer(max_epochs=1)
    run.fit(module, loader())
    image = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        output = module.eval()(image)
        probabilities = module.predict_step((image, None))
    expected = {
        "class": torch.softmax(output.logits, 1),
        "distill": torch.softmax(output.distill_logits, 1),
        "mean_logits": torch.softmax((output.logits + output.distill_logits) / 2, 1),
        "mean_probs": (torch.softmax(output.logits, 1) + torch.softmax(output.distill_logits, 1)) / 2,
    }
    torch.testing.assert_close(probabilities, expected[head])
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = LitDistiller.load_from_checkpoint(tmp_path / "a.ckpt", student=vit(), distillation=HardDistillation())
    assert again.head == head
    torch.testing.assert_close(again.eval().predict_step(image), probabilities)
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["lit_distill_about"]["image_shape"] == [3, 8, 8]


def test_there_is_no_other_head() -> None:
    with pytest.raises(ValueError, match="head must be 'class', 'distill', 'mean_logits' or 'mean_probs', got 'best'"):
        distiller(head="best")
    with pytest.raises(ValueError, match="head must be 'class'"):
        vit()(torch.rand(1, 3, 8, 8)).log_probs("best")


def test_groups_of_a_teachers_classes_follow_the_data(tmp_path) -> None:
    class Data(LightningDataModule):
        num_classes, class_names = 2, ("cat", "dog")

        def train_dataloader(self) -> Any:
            return loader(classes=2)

    teacher = FrozenTeacher(convnet(5), classes={"dog": [0, 1], "cat": [2]})
    module = LitDistiller(vit(2), teacher, distillation=HardDistillation())
    trainer(max_epochs=1).fit(module, datamodule=Data())
    assert teacher.groups.names == ["cat", "dog"]
    teacher = FrozenTeacher(convnet(5), classes={"fox": [0, 1], "cat": [2]})
    module = LitDistiller(vit(2), teacher, distillation=HardDistillation())
    with pytest.raises(ValueError, match="only the teacher has fox, only the data has dog"):
        trainer(max_epochs=1).fit(module, datamodule=Data())


class CatsAndDogs(LightningDataModule):
    """30 cats and 10 dogs."""

    num_classes, class_names = 2, ("cat", "dog")

    def setup(self, stage: str) -> None:
        images, self.targets = torch.rand(40, 3, 8, 8), torch.tensor([0] * 30 + [1] * 10)
        self.whole = TensorDataset(images, self.targets)
        if stage == "fit":
            self.train_set = self.whole
            self.train_set.targets = self.targets  # type: ignore[attr-defined]

    def train_dataloader(self) -> Any:
        return DataLoader(self.whole, batch_size=20)

    test_dataloader = train_dataloader


def grouped(**priors: Any) -> LitDistiller:
    torch.manual_seed(2)
    teacher = FrozenTeacher(convnet(5), classes={"dog": [0, 1, 3], "cat": [2]}, **priors)
    return LitDistiller(vit(2), teacher, distillation=HardDistillation())


def test_a_teacher_takes_the_training_sets_frequencies_and_the_checkpoint_keeps_them(tmp_path) -> None:
    module, fit = grouped(target_prior="frequencies"), trainer(max_epochs=1)
    fit.fit(module, datamodule=CatsAndDogs())
    image = torch.rand(4, 3, 8, 8)
    expected = grouped(target_prior={"cat": 3, "dog": 1})
    expected.teacher.set_class_names(["cat", "dog"])
    torch.testing.assert_close(module.teacher(image), expected.teacher(image))
    fit.save_checkpoint(tmp_path / "run.ckpt")
    about = torch.load(tmp_path / "run.ckpt", weights_only=True)["lit_distill_about"]
    assert about["grouping"] == {
        "classes": {"cat": [2], "dog": [0, 1, 3]},
        "teacher_shares": [0.25, 0.75],
        "target_prior": [0.75, 0.25],
    }
    again = grouped(target_prior="frequencies")  # the data of a test has no training set
    trainer().test(again, datamodule=CatsAndDogs(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    torch.testing.assert_close(again.teacher(image), module.teacher(image))
    with pytest.raises(ValueError, match="nobody has said how many training images each class has"):
        trainer(max_epochs=1).fit(grouped(target_prior="frequencies"), loader(classes=2))


@pytest.mark.parametrize("prior", ["uniform", "teacher"])
def test_a_resume_from_before_there_were_priors_is_told_what_changes(tmp_path, prior: str) -> None:
    first = trainer(max_epochs=1)
    first.fit(grouped(target_prior="teacher"), datamodule=CatsAndDogs())
    first.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)
    del state["lit_distill_about"]["grouping"]
    torch.save(state, tmp_path / "old.ckpt")
    message = "of a version whose teachers summed .* by Bayes' rule: to go on as before, give it target_prior='teacher'"
    for name, told in (("old.ckpt", prior == "uniform"), ("run.ckpt", False)):
        with pytest.warns(UserWarning, match=message) if told else nullcontext():
            trainer(max_epochs=2).fit(
                grouped(target_prior=prior), datamodule=CatsAndDogs(), ckpt_path=tmp_path / name, weights_only=True
            )


@pytest.mark.parametrize("index", ["index", 2])
def test_retrospection_finds_the_rows_of_a_batch_with_views(index: Any) -> None:
    torch.manual_seed(0)
    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    module, callback = LitDistiller(student), LearningWithRetrospection(1, index=index)
    trainer(max_epochs=2, limit_val_batches=0, callbacks=callback).fit(module, datamodule=FewDigits(seed=1))
    assert callback.memory is not None
    assert callback.memory.state_dict()["epochs"].amax(dim=0).eq(2).all()  # every row was remembered in both epochs


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
@every_student
def test_trains_compiled_on_a_gpu_with_a_teacher_in_half_precision(student: Any, precision: Any) -> None:
    teacher = FrozenTeacher(convnet(), precision="fp16", channels_last=True)
    module = distiller(student=student(), teacher=teacher)
    module.student.compile()
    trainer(max_epochs=2, precision=precision, accelerator="cuda").fit(module, loader())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float16}


class SeveralLoaders(DigitsDataModule):
    """The halves of the validation images in two loaders."""

    named = False

    def _halves(self) -> Any:
        halves = [Subset(self.val_set, range(200)), Subset(self.val_set, range(200, 360))]
        loaders = [self._loader(IndexedDataset(half), 100) for half in halves]
        return dict(zip("ab", loaders, strict=True)) if self.named else loaders

    val_dataloader = test_dataloader = _halves


@pytest.mark.parametrize("named", [False, True])
def test_several_loaders_are_measured_each_and_together(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeveralLoaders, "named", named)
    student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)
    module = LitDistiller(student, DigitsCNN(pretrained=True), distillation=HardDistillation())
    run = trainer(max_epochs=2, limit_train_batches=1, callbacks=TeacherCheck())
    run.fit(module, datamodule=SeveralLoaders())
    data = SeveralLoaders()
    data.setup()
    batches = [list(loader) for loader in (data._halves().values() if named else data._halves())]
    right = [sum(int((module.eval()(b.image).logits.argmax(1) == b.target).sum()) for b in half) for half in batches]
    metrics = {**run.callback_metrics, **run.test(module, datamodule=data, verbose=False)[0]}
    for stage in ("val", "test"):
        assert float(metrics[f"{stage}/accuracy_class"]) == pytest.approx(sum(right) / 360)
        assert float(metrics[f"{stage}/accuracy_class/dataloader_idx_0"]) == pytest.approx(right[0] / 200)
        assert float(metrics[f"{stage}/accuracy_class/dataloader_idx_1"]) == pytest.approx(right[1] / 160)
    assert {key.split(".")[0] for key in module.state_dict()} == {"student"}


def test_lightnings_rate_finder_sets_the_peak_of_the_schedule_and_changes_nothing_else() -> None:
    def run(*callbacks: Any) -> tuple[LitDistiller, list[float]]:
        rates: list[float] = []

        class Rates(Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        torch.manual_seed(0)
        student = DistillableViT(8, 4, 10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1, dropout=0.1)
        module = LitDistiller(student, scheduler=partial(WarmupCosine, warmup=0.5))
        fit = trainer(max_epochs=1, limit_val_batches=1, callbacks=[StepSeed(), *callbacks, Rates()])
        fit.fit(module, datamodule=FewDigits(640, batch_size=32, seed=1))
        return module, rates

    plain, rates = run()
    same, same_rates = run(LearningRateFinder(num_training_steps=20, update_attr=False))
    assert same_rates == rates
    assert torch.equal(weights(same), weights(plain))
    finder = LearningRateFinder(num_training_steps=20)
    found, found_rates = run(finder)
    assert finder.optimal_lr is not None
    rate = finder.optimal_lr.suggestion()
    assert rate is not None
    assert found_rates == pytest.approx([value * rate / 1e-3 for value in rates])
    assert found.lr == pytest.approx(rate)


@pytest.mark.parametrize("mode", [pytest.param("power", marks=pytest.mark.slow), "binsearch"])
def test_lightnings_batch_size_finder_tries_whole_batches_and_changes_nothing_else(
    tmp_path: Path, mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Sizes(LitDistiller):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            sizes.append(len(batch.index))
            return super().training_step(batch, batch_idx)

    def fit(batch_size: int, *callbacks: Any) -> tuple[int, list[torch.Tensor]]:
        torch.manual_seed(0)
        student = DistillableViT(
            image_size=8, patch_size=4, num_classes=10, dim=8, depth=1, heads=1, mlp_dim=8, channels=1
        )
        data = FewDigits(100, batch_size=batch_size, seed=1)
        run = trainer(max_epochs=2, callbacks=list(callbacks), default_root_dir=tmp_path)
        run.fit(module := Sizes(student), datamodule=data)
        return data.batch_size, [p.detach() for p in module.parameters()]

    sizes: list[int] = []
    with caplog.at_level(logging.INFO):
        found, weights = fit(16, BatchSizeFinder(mode=mode, max_trials=10, init_val=4, steps_per_trial=3, margin=0.0))
    assert found == 128  # the first that holds all samples
    assert "goes on" not in caplog.text
    assert {8, 16, 32, 64} <= set(sizes)
    again, expected = fit(found)
    assert again == found
    assert all(torch.equal(*pair) for pair in zip(weights, expected, strict=True))
