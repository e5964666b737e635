"""Mixup and cutmix are the published ones, and a pure function of (seed, view, index)."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import pytest
from scipy.stats import beta, ks_2samp, kstest  # scikit-learn brings it
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
import torch
from torch import nn
from torchvision.transforms import v2
from toys import QUIET, trainer

from lit_distill import DistillableViT, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import Batch, DigitsDataModule, Mixing
from lit_distill.datamodules.batched.draws import Draws
from lit_distill.datamodules.mixing import MixPlan, mix
from lit_distill.datamodules.partners import Partners

BOTH = Mixing(mixup=0.8, cutmix=1.0)


def batch_of(size: int = 6, side: int = 16, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


def plan_of(mixing: Mixing, count: int, side: int = 16, seed: int = 0, view: int = 0) -> MixPlan:
    return mixing.plan(Draws(seed, torch.full((count,), view), torch.arange(count)), (side, side))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_an_image_and_its_loss_are_timms(mixing: Mixing, smoothing: float, monkeypatch) -> None:
    """timm mixes the two samples of a batch of two with each other, with one lambda."""
    images, _ = batch_of(2)
    targets, logits = torch.tensor([3, 1]), torch.randn(2, 5)
    for sample in range(20):
        plan = MixPlan(*(part[[sample, sample]] for part in plan_of(mixing, 20)))
        ours, probabilities = mix(images, targets, images.flip(0), targets.flip(0), plan, 5)
        lam = plan.share[0].item()
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


def test_mixup_is_the_formula_for_classes_and_probabilities_of_bytes_and_floats() -> None:
    images, targets = batch_of(7)
    one_hot = torch.nn.functional.one_hot(targets, 5).float()
    others, other_targets = images.flip(0), targets.flip(0)
    plan = plan_of(Mixing(mixup=1.0), 7)
    lam = plan.share
    mixed, probabilities = mix(images, targets, others, other_targets, plan, 5)
    torch.testing.assert_close(probabilities, lam[:, None] * one_hot + (1 - lam[:, None]) * one_hot.flip(0))
    lam = lam[:, None, None, None]
    torch.testing.assert_close(mixed, (lam * images + (1 - lam) * others) / 255)
    soft, again = mix(images / 255, one_hot, others / 255, one_hot.flip(0), plan, 5)
    torch.testing.assert_close((soft, again), (mixed, probabilities))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    """With 10,000 draws a deviation of 2 % of the distribution function is found 99 times of 100."""
    share = plan_of(Mixing(mixup=alpha), 20_000).share.double().numpy()
    lower = share[share < 0.5]  # of the others, a share of nearly 1 is rounded to it
    assert abs(len(lower) - 10_000) < 280  # 4 standard deviations
    assert kstest(lower, lambda values: 2 * beta.cdf(values, alpha, alpha)).pvalue > 0.01


def test_the_box_of_cutmix_has_the_area_that_the_target_says_and_is_torchvisions() -> None:
    plan = plan_of(Mixing(cutmix=1.0), 3000, side=12)
    black, white = torch.zeros(3000, 1, 12, 12), torch.ones(3000, 1, 12, 12)
    images, target = mix(black, torch.zeros(3000).long(), white, torch.ones(3000).long(), plan, 2)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), target[:, 1])
    top, bottom, left, right = plan.box.unbind(dim=1)
    assert torch.equal(images.sum(dim=(1, 2, 3)).long(), (bottom - top) * (right - left))  # one whole rectangle
    torchvisions = v2.CutMix(alpha=1.0, num_classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        boxes = [torchvisions.make_params([images[:2]])["box"] for _ in range(3000)]
    for ours, theirs in zip((left, top, right, bottom), zip(*boxes, strict=True), strict=True):
        assert ks_2samp(ours.numpy(), theirs).pvalue > 0.01


def test_prob_and_switch_prob_are_shares_of_the_images() -> None:
    plan = plan_of(Mixing(1.0, 1.0, prob=0.6, switch_prob=0.3), 10_000, side=64)
    blended = plan.inside == plan.outside
    assert abs((blended & (plan.share < 1)).float().mean() - 0.42) < 0.02  # 4 standard deviations
    boxed = (plan.inside == 0) & (plan.outside == 1) & (plan.share < 1)
    assert abs(boxed.float().mean() - 0.18) < 0.016
    for only in (Mixing(mixup=1.0, switch_prob=1.0), Mixing(mixup=1.0, cutmix=1.0, switch_prob=0.0)):
        assert plan_of(only, 20, side=2).share.unique().numel() == 20  # of boxes in 4 pixels there are fewer


def test_an_image_that_is_not_mixed_is_what_the_networks_would_make_of_it() -> None:
    images, targets = batch_of()
    plan = plan_of(Mixing(mixup=1.0, cutmix=1.0, prob=0.0), 6)
    same, probabilities = mix(images, targets, images.flip(0), targets.flip(0), plan, 5)
    assert torch.equal(same, images / 255)
    assert torch.equal(probabilities, torch.nn.functional.one_hot(targets, 5).float())


def test_each_part_of_the_key_matters_and_nothing_else() -> None:
    before = torch.get_rng_state()
    first = plan_of(BOTH, 6)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(9)
    assert all(torch.equal(part, other[:6]) for part, other in zip(first, plan_of(BOTH, 9), strict=True))
    assert len(set(first.share.tolist())) == 6
    for other in (plan_of(BOTH, 6, seed=1), plan_of(BOTH, 6, view=1)):
        assert not torch.equal(first.share, other.share)


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


def keys_of(batch: Batch) -> list[tuple[int, int]]:
    return [*zip(batch.view.tolist(), batch.index.tolist(), strict=True)]


def expected(plain: list[tuple[int, int, Batch]], count: int = 47, seed: int = 7) -> dict[tuple[int, int], Any]:
    """The mixed image and target of each (view, row), from the images that were not mixed."""
    partners, images = Partners(count, seed), {}
    for _, _, batch in plain:
        images |= dict(zip(keys_of(batch), zip(batch.image, batch.target, strict=True), strict=True))
    view, row = torch.tensor([*images]).unbind(dim=1)
    others = [*zip(view.tolist(), partners.of(view, row).tolist(), strict=True)]
    plan = BOTH.plan(Draws(seed, view, row), (8, 8))
    (image, target), (other_image, other_target) = (
        [torch.stack([images[key][place] for key in keys]) for place in (0, 1)] for keys in (images, others)
    )
    mixed = mix(image, target, other_image, other_target, plan, 10)
    return dict(zip(images, zip(*mixed, strict=True), strict=True))


def assert_expected(batches: list[tuple[int, int, Batch]], images: dict[tuple[int, int], Any]) -> None:
    for epoch, _, batch in batches:
        assert set(batch.view.tolist()) == {epoch}
        for key, image, target in zip(keys_of(batch), batch.image, batch.target, strict=True):
            assert torch.equal(image, images[key][0])
            assert torch.equal(target, images[key][1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on two cores
@pytest.mark.parametrize("storage", ["device", "host"])
def test_every_sample_is_mixed_with_its_partner_whatever_the_batch_and_the_workers(storage: str) -> None:
    plain = run(mixing=None, storage=storage).train_batches
    images, mixed = expected(plain), run(storage=storage).train_batches
    assert [batch.index.tolist() for *_, batch in mixed] == [batch.index.tolist() for *_, batch in plain]
    assert not torch.equal(mixed[0][2].image, plain[0][2].image)
    assert_expected(mixed, images)
    for size in (1, 7, 64):
        assert_expected(run(batch_size=size, storage=storage).train_batches, images)
    if storage == "host":
        for workers in (2, 4):
            assert_same(run(num_workers=workers, storage=storage).train_batches, mixed)


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


@pytest.mark.parametrize("storage", ["device", "host"])
def test_ranks_mix_as_one_process_does(tmp_path, storage: str) -> None:
    images = expected(run(mixing=None, storage=storage).train_batches)
    for ranks in (2, 4):
        options = {**QUIET, "devices": ranks, "strategy": "ddp_fork", "max_epochs": 1}
        Trainer(**options).fit(Collect(str(tmp_path)), FewDigits(batch_size=5, storage=storage))
        for rank in range(ranks):
            batches = [Batch(*batch) for batch in torch.load(tmp_path / f"{rank}.pt", weights_only=True)]
            assert_expected([(0, 0, batch) for batch in batches], images)


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

    plain, mixed = run(mixing=None, storage="host").train_batches, run(storage="host").train_batches
    negative = run(module=Module(), mixing=None, storage="host").train_batches
    assert torch.equal(negative[0][2].image, 1 - plain[0][2].image)
    module = Collect()
    trainer(max_epochs=1).fit(module, Data(storage="host"))  # its own hook comes before mixing
    torch.testing.assert_close(module.train_batches[0][2].image, 1 - mixed[0][2].image)
    module = Module()
    trainer(max_epochs=1).fit(module, FewDigits(storage="device"))  # images on the device leave the module its hook
    on_device = run(storage="device").train_batches
    assert torch.equal(module.train_batches[0][2].image, 1 - on_device[0][2].image)


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
    mixed = run({"limit_train_batches": 1, "max_epochs": 1}).train_batches[0][2]
    assert torch.equal(image, mixed.image)
    target = mixed.target
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
    plan, other = plan_of(Mixing(mixup=0.8), 4, side=8), target.flip(0)
    small = mix(image, target.to(dtype), image.flip(0), other.to(dtype), plan, 5)
    for ours, theirs in zip(small, mix(image, target, image.flip(0), other, plan, 5), strict=True):
        assert torch.equal(ours, theirs)
