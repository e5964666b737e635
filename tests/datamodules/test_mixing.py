"""Mixup and cutmix are the published ones, and a pure function of the batch and (seed, epoch, batch, rank)."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import pytest
from scipy.stats import kstest  # scikit-learn brings it
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
import torch
from torch import nn
from toys import QUIET, trainer

from lit_distill import DistillableViT, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import Batch, DigitsDataModule, Mixing

BOTH = Mixing(mixup=0.8, cutmix=1.0)


def batch_of(size: int = 6, side: int = 16, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


def lambda_of(mixing: Mixing, key: tuple[int, int, int, int], side: int = 16) -> torch.Tensor:
    """What is left of a sample's own target."""
    return mixing(torch.zeros(2, 1, side, side), torch.tensor([0, 1]), 2, key)[1][0, 0]


def lambdas(mixing: Mixing, keys: int, **kwargs: Any) -> torch.Tensor:
    return torch.stack([lambda_of(mixing, (0, 0, key, 0), **kwargs) for key in range(keys)])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_a_batch_of_two_and_its_loss_are_timms(mixing: Mixing, smoothing: float, monkeypatch) -> None:
    """Of two samples torchvision's partner, the one before, is timm's, the one from the other end."""
    images, targets = batch_of(2)
    targets, logits = torch.tensor([3, 1]), torch.randn(2, 5)
    for key in range(20):
        ours, probabilities = mixing(images, targets, 5, (0, 0, key, 0))
        lam = probabilities[0, 3].item()
        assert probabilities[0].sum() == 1
        timms = Mixup(num_classes=5, label_smoothing=smoothing)
        if mixing.mixup:
            monkeypatch.setattr(timms, "_params_per_batch", lambda lam=lam: (lam, False))
            theirs, smooth = timms(images / 255, targets)
            torch.testing.assert_close(ours, theirs)
        else:
            other = (ours != images / 255)[0].any(dim=0)  # the box, but where the two images happen to agree
            assert (torch.where(other, images.flip(0) / 255, images / 255) == ours).all()
            assert abs(other.float().mean() - (1 - lam)) < 0.01
            smooth = mixup_target(targets, 5, lam, smoothing)
        expected = SoftTargetCrossEntropy()(logits, smooth)
        torch.testing.assert_close(nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, probabilities), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_sample_is_mixed_with_the_one_before_in_a_batch_of_any_size(size: int) -> None:
    images, targets = batch_of(size)
    one_hot = torch.nn.functional.one_hot(targets, 5).float()
    mixed, probabilities = Mixing(mixup=1.0)(images, targets, 5, (0, 1, 2, 3))
    lam = lambda_of(Mixing(mixup=1.0), (0, 1, 2, 3))
    torch.testing.assert_close(probabilities, lam * one_hot + (1 - lam) * one_hot.roll(1, 0))
    torch.testing.assert_close(mixed, (lam * images + (1 - lam) * images.roll(1, 0)) / 255)
    soft, again = Mixing(mixup=1.0)(images / 255, one_hot, 5, (0, 1, 2, 3))
    torch.testing.assert_close((soft, again), (mixed, probabilities))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    assert kstest(lambdas(Mixing(mixup=alpha), 1500).numpy(), "beta", (alpha, alpha)).pvalue > 0.01


def test_the_box_of_cutmix_has_the_area_that_the_target_says() -> None:
    black_and_white = torch.stack([torch.zeros(1, 12, 20), torch.ones(1, 12, 20)])
    areas = []
    for key in range(300):
        images, target = Mixing(cutmix=1.0)(black_and_white, torch.tensor([0, 1]), 2, (0, 0, key, 0))
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), target[:, 1])
        box = images[0, 0].nonzero()
        if len(box):
            height, width = (box.amax(0) - box.amin(0) + 1).tolist()
            assert height * width == len(box)
        areas.append(target[0, 1].item())
    assert min(areas) < 0.02
    assert max(areas) > 0.6  # a larger one would be cut off at an edge almost everywhere


def test_prob_and_switch_prob_are_shares_of_the_batches() -> None:
    half_white = torch.zeros(2, 1, 8, 8)
    half_white[1] = 1
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for key in range(1000):
        images, target = Mixing(1.0, 1.0, prob=0.6, switch_prob=0.3)(
            half_white, torch.tensor([0, 1]), 2, (0, 0, key, 0)
        )
        grey = ((images > 0) & (images < 1)).any()
        kinds["mixup" if grey else "none" if torch.equal(images, half_white) else "cutmix"] += 1
        assert torch.is_floating_point(target)
        assert target.shape == (2, 2)
    assert abs(kinds["mixup"] - 420) < 50
    assert abs(kinds["cutmix"] - 180) < 40  # less a box of no pixel now and then
    for only in (Mixing(mixup=1.0, switch_prob=1.0), Mixing(mixup=1.0, cutmix=1.0, switch_prob=0.0)):
        assert lambdas(only, 20, side=2).unique().numel() == 20  # of boxes in 4 pixels there are fewer


def test_a_batch_that_is_not_mixed_is_what_the_networks_would_make_of_it() -> None:
    images, targets = batch_of()
    same, probabilities = Mixing(mixup=1.0, prob=0.0)(images, targets, 5, (0, 0, 0, 0))
    assert torch.equal(same, images / 255)
    assert torch.equal(probabilities, torch.nn.functional.one_hot(targets, 5).float())


def test_each_part_of_the_key_matters_and_the_process_does_not() -> None:
    images, targets = batch_of()
    before = torch.get_rng_state()
    first = BOTH(images, targets, 5, (1, 2, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(9)
    again = BOTH(images, targets, 5, (1, 2, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert not torch.equal(first[0], BOTH(images, targets, 5, other)[0])


class Collect(LightningModule):
    """Keeps what it trains and validates on."""

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.train_batches: list[tuple[int, int, Batch]] = []
        self.val_batches: list[Batch] = []
        self.folder = folder

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.train_batches.append((self.current_epoch, batch_idx, batch))
        return self.weight * batch.image.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_batches.append(batch)

    def on_train_end(self) -> None:
        if self.folder is not None:
            torch.save([tuple(batch) for _, _, batch in self.train_batches], f"{self.folder}/{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class FewDigits(DigitsDataModule):
    """The first 47 of the digits, mixed."""

    def __init__(self, mixing: Mixing | None = BOTH, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 10, "seed": 7, "mixing": mixing, **kwargs})

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set = torch.utils.data.Subset(self.train_set, range(47))


def run(options: dict[str, Any] | None = None, module: Any = None, ckpt: Any = None, **kwargs: Any) -> Any:
    module = Collect() if module is None else module
    data = FewDigits(**kwargs)
    trainer(**{"max_epochs": 2, **(options or {})}).fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs) > 0
    for (*place, batch), (*other_place, other) in zip(ours, theirs, strict=True):
        assert place == other_place
        assert all(torch.equal(a, b) for a, b in zip(batch[:3], other[:3], strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on two cores
def test_the_mixed_batches_are_those_of_their_epoch_and_place_for_any_number_of_workers() -> None:
    mixed, plain = run().train_batches, run(mixing=None).train_batches
    for (epoch, step, batch), (_, _, before) in zip(mixed, plain, strict=True):
        image, target = BOTH(before.image, before.target, 10, (7, epoch, step, 0))
        assert torch.equal(image, batch.image)
        assert torch.equal(target, batch.target)
        assert torch.equal(before.index, batch.index)
        assert set(before.view.tolist()) == {epoch}
        assert batch.view is None  # a teacher that looks up the view of a row must not answer for a mixed image
        assert not torch.equal(image, before.image)
    for workers in (2, 4):
        assert_same(run(num_workers=workers).train_batches, mixed)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 2, "num_sanity_val_steps": 2},
        {"precision": "bf16-mixed"},
    ],
)
def test_nothing_else_that_a_trainer_does_moves_the_place(options: dict[str, Any]) -> None:
    assert_same(run(options).train_batches, run().train_batches)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_within_an_epoch_mixes_the_same(tmp_path, accumulate: int) -> None:
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 3}
    whole = run({**options, "callbacks": saves, "enable_checkpointing": True}).train_batches
    for step in (1, 2, 4):
        rest = run(options, ckpt=tmp_path / f"step={step}.ckpt").train_batches
        epoch, within = divmod(step, -(-5 // accumulate))  # of 5 batches, the last step of an epoch has what is left
        assert_same(rest, whole[5 * epoch + accumulate * within :])


def test_each_rank_mixes_its_batches_by_a_key_of_its_own(tmp_path) -> None:
    parts = {}
    for name, mixing in (("mixed", BOTH), ("plain", None)):
        (tmp_path / name).mkdir()
        options = {**QUIET, "devices": 2, "strategy": "ddp_fork", "max_epochs": 1}
        Trainer(**options).fit(Collect(str(tmp_path / name)), FewDigits(mixing=mixing, batch_size=5))
        parts[name] = [torch.load(tmp_path / name / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in range(2):
        for step, (mixed, plain) in enumerate(zip(parts["mixed"][rank], parts["plain"][rank], strict=True)):
            image, target = BOTH(*plain[:2], 10, (7, 0, step, rank))
            assert torch.equal(mixed[0], image)
            assert torch.equal(mixed[1], target)
            assert torch.equal(mixed[2], plain[2])


def test_validation_is_not_mixed() -> None:
    mixed, plain = run({"num_sanity_val_steps": 1}), run({"num_sanity_val_steps": 1}, mixing=None)
    assert_same([(0, batch) for batch in mixed.val_batches], [(0, batch) for batch in plain.val_batches])
    assert not mixed.val_batches[0].target.is_floating_point()


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in `LightningModule`")
def test_hooks_of_others_are_called_as_without_mixing() -> None:
    class Module(Collect):
        def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
            return batch._replace(image=1 - batch.image)

    class Data(FewDigits):
        def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
            return batch._replace(image=1 - batch.image)

    negative, plain = run(module=Module(), mixing=None).train_batches, run(mixing=None).train_batches
    assert torch.equal(negative[0][2].image, 1 - plain[0][2].image)
    module = Collect()
    trainer(max_epochs=1).fit(module, Data())  # its own hook comes before mixing
    expected, _ = BOTH(1 - plain[0][2].image, plain[0][2].target, 10, (7, 0, 0, 0))
    assert torch.equal(module.train_batches[0][2].image, expected)


class Watched(nn.Module):
    """A network that keeps its input and output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(image)
        if self.training or not torch.is_grad_enabled():
            self.seen.append((image.detach().clone(), logits.detach().clone()))
        return logits


@pytest.mark.parametrize("distillation", [HardDistillation(), SoftDistillation(3.0)])
def test_student_and_teacher_see_the_same_mixed_image_and_the_loss_is_deits(distillation: nn.Module) -> None:
    torch.manual_seed(0)
    student, teacher = (Watched(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))) for _ in range(2))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    module = LitDistiller(student, teacher, criterion, distillation, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    run_of = trainer(max_epochs=1, limit_val_batches=0, limit_train_batches=1)
    run_of.fit(module, FewDigits())
    (image, logits), (same, taught) = student.seen[0], teacher.seen[-1]
    assert torch.equal(image, same)
    plain = run({"limit_train_batches": 1, "max_epochs": 1}, mixing=None).train_batches[0][2]
    expected_image, target = BOTH(plain.image, plain.target, 10, (7, 0, 0, 0))
    assert torch.equal(image, expected_image)
    smooth = 0.9 * target + 0.1 / 10
    base = SoftTargetCrossEntropy()(logits, smooth)
    if isinstance(distillation, HardDistillation):
        term = nn.functional.cross_entropy(logits, taught.argmax(dim=1))
    else:
        log_p, log_q = ((z / 3).log_softmax(dim=1) for z in (taught, logits))
        term = 9 * nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    torch.testing.assert_close(run_of.callback_metrics["train/loss"], (base + term) / 2)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true", "64-true"])
def test_mixed_images_have_the_precision_of_the_run(precision: str) -> None:
    student = DistillableViT(
        8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1, mean=[0.3], std=[0.4]
    )
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run_of = trainer(max_epochs=1, precision=precision, limit_val_batches=1)
    run_of.fit(LitDistiller(student, teacher, distillation=HardDistillation()), FewDigits())
    assert run_of.callback_metrics["train/loss"].isfinite()


def test_retrospection_beside_mixing_is_one_line_that_says_what_to_do() -> None:
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    run_of = trainer(max_epochs=2, callbacks=LearningWithRetrospection(1))
    with pytest.raises(
        ValueError, match=r"belongs to no row: leave out mixing or this callback, or set soft_targets=True"
    ) as caught:
        run_of.fit(LitDistiller(student), FewDigits())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"mixing needs mixup > 0 or cutmix > 0, got 0 and 0: for no mixing leave it out"),
        ({"mixup": -0.1}, r"mixup must be >= 0, got -0.1"),
        ({"cutmix": float("nan")}, r"cutmix must be >= 0, got nan"),
        ({"mixup": 1.0, "prob": 1.1}, r"prob must be in \[0, 1\], got 1.1"),
        ({"mixup": 1.0, "switch_prob": -1.0}, r"switch_prob must be in \[0, 1\], got -1.0"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**arguments)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_classes_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    image, target = torch.rand(4, 3, 8, 8), torch.tensor([0, 3, 1, 2])
    for ours, theirs in zip(
        Mixing(mixup=0.8)(image, target.to(dtype), 5, (1, 0, 0, 0)),
        Mixing(mixup=0.8)(image, target, 5, (1, 0, 0, 0)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
