"""Several named losses, and losses on the layers inside student and teacher."""

import copy
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import QUIET, trainer, weights

from lit_distill import DigitsCNN, DistillableViT, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.callbacks import DistillationWarmup
from lit_distill.cli import main
from lit_distill.datamodules import Batch, DigitsDataModule
from lit_distill.models import Teacher, TeacherOutput


class Feature(nn.Module):
    """The squared distance of the student's projected encoder output to the teacher's last convolution."""

    def __init__(self, student_layer: str = "encoder", teacher_layer: str = "features", width: int = 16) -> None:
        super().__init__()
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        torch.manual_seed(5)
        self.project = nn.Linear(8, width)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert not teacher.requires_grad
        assert teacher.dtype == torch.float32
        pooled = teacher.flatten(2).mean(dim=2) if teacher.dim() > 2 else teacher
        return F.mse_loss(self.project(student.mean(dim=1)).float(), pooled[:, : self.project.out_features])


def vit(classes: int = 10) -> DistillableViT:
    torch.manual_seed(1)
    return DistillableViT(8, 4, classes, dim=8, depth=1, heads=1, mlp_dim=8, channels=1)


def distiller(distillation: Any, teacher: Any = None, **kwargs: Any) -> LitDistiller:
    torch.manual_seed(2)
    return LitDistiller(vit(), teacher or DigitsCNN(pretrained=True), distillation=distillation, **kwargs)


def fit(module: LitDistiller, **kwargs: Any) -> Trainer:
    run = trainer(**{"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, **kwargs})
    run.fit(module, datamodule=DigitsDataModule(seed=3))
    return run


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_the_total_is_the_weighted_sum_and_each_term_is_logged() -> None:
    terms = {"hard": HardDistillation(), "soft": {"loss": SoftDistillation(2.0), "weight": 0.25}}
    logged = fit(distiller(terms, alpha=0.3)).callback_metrics
    names = {name for name in logged if name.startswith("train/")}
    assert names == {"train/loss", "train/criterion", "train/distillation", "train/hard", "train/soft"}
    total = logged["train/hard"] + 0.25 * logged["train/soft"]
    torch.testing.assert_close(logged["train/distillation"], total)
    torch.testing.assert_close(logged["train/loss"], 0.7 * logged["train/criterion"] + 0.3 * total)


def test_one_named_loss_trains_as_it_does_alone() -> None:
    alone, named = distiller(SoftDistillation(2.0)), distiller({"soft": SoftDistillation(2.0)})
    fit(alone), fit(named)
    assert torch.equal(weights(alone), weights(named))


def test_a_feature_loss_gets_the_layers_that_it_names_and_its_projection_is_trained(tmp_path: Any) -> None:
    module = distiller({"hard": HardDistillation(), "feature": {"loss": Feature(), "weight": 2.0}})
    before = module.distillation["feature"].project.weight.clone()  # type: ignore[index,union-attr]
    run = fit(module, callbacks=EMAWeightAveraging(decay=0.5), max_epochs=2)
    assert run.callback_metrics["train/feature"] > 0
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(saved["distillation.feature.project.weight"], before)
    assert hooks(module.student) == hooks(module.teacher) == 0  # type: ignore[arg-type]
    assert copy.deepcopy(module).teacher is None
    # The student alone comes back without the losses, and a run goes on with them.
    again = LitDistiller.load_from_checkpoint(tmp_path / "a.ckpt", student=vit())
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
    resumed = distiller({"hard": HardDistillation(), "feature": {"loss": Feature(), "weight": 2.0}})
    run = trainer(max_epochs=3, limit_train_batches=3, limit_val_batches=1, callbacks=EMAWeightAveraging(decay=0.5))
    run.fit(resumed, datamodule=DigitsDataModule(seed=3), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert run.callback_metrics["train/feature"] > 0


def test_the_gradient_of_a_feature_loss_is_that_of_the_layers_by_hand() -> None:
    module = distiller(Feature(), alpha=1.0)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    image, target = torch.rand(4, 1, 8, 8), torch.arange(4)
    module.training_step((image, target), 0).backward()
    student, loss = copy.deepcopy(module.student), copy.deepcopy(module.distillation)
    student.zero_grad(), loss.zero_grad()
    teacher, outputs = DigitsCNN(pretrained=True).eval(), []
    for layer in (student.encoder, teacher.features):
        layer.register_forward_hook(lambda layer, args, output: outputs.append(output))
    student(image), teacher(image)
    loss(outputs[0], outputs[1].detach(), target).backward()
    for ours, theirs in zip(module.parameters(), (*student.parameters(), *loss.parameters()), strict=True):
        torch.testing.assert_close(ours.grad, torch.zeros_like(ours) if theirs.grad is None else theirs.grad)


def test_features_alone_train_no_second_head() -> None:
    module = distiller(Feature())
    assert (module.predicts, module.trains_both_heads) == ("class", False)
    output = module(torch.rand(2, 1, 8, 8))
    assert output.logits is output.distill_logits


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_feature_losses_in_half_precision(precision: Any) -> None:
    run = fit(distiller({"hard": HardDistillation(), "feature": Feature()}), precision=precision)
    assert run.callback_metrics["train/feature"].isfinite()


def test_two_ranks_train_as_one_with_a_feature_loss(tmp_path: Any, away: Any) -> None:
    one, two = trained(1), away(trained, 2)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def trained(ranks: int) -> torch.Tensor:
    """The weights of student and projection after a few steps of the same global batches."""
    module = distiller({"feature": Feature()}, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scheduler=None)
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    run = Trainer(**{**QUIET, **strategy, "max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 0})
    run.fit(module, datamodule=DigitsDataModule(batch_size=16 // ranks, seed=3))
    return weights(module).detach().clone()


class Wordless(Teacher):
    """A teacher without classes."""

    def forward(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(None, {"pooled": batch.image.flatten(1)[:, :16]})


def test_a_teacher_without_classes_teaches_by_its_features() -> None:
    run = fit(distiller(Feature(teacher_layer="pooled"), Wordless()))
    assert run.callback_metrics["train/distillation"] > 0
    assert "val/nll" in run.callback_metrics
    assert "val/agreement" not in run.callback_metrics


def test_says_which_loss_needs_logits_and_what_the_teacher_gives() -> None:
    terms = {"hard": HardDistillation(), "feature": Feature(teacher_layer="pooled")}
    message = "hard needs the teacher's logits, but the teacher Wordless gives only features: pooled; take a loss on"
    with pytest.raises(ValueError, match=message):
        fit(distiller(terms, Wordless()))
    with pytest.raises(ValueError, match=r"HardDistillation needs the teacher's logits.* gives only features: pooled"):
        fit(distiller(HardDistillation(), Wordless()))


def test_names_the_layers_near_an_unknown_one() -> None:
    with pytest.raises(ValueError, match="the student DistillableViT has no layer 'encoderr'; did you mean 'encoder'"):
        fit(distiller(Feature(student_layer="encoderr")))
    with pytest.raises(ValueError, match="the teacher DigitsCNN has no layer 'feature'; did you mean 'features'"):
        fit(distiller(Feature(teacher_layer="feature")))


def test_several_losses_without_a_teacher_are_an_error() -> None:
    module = LitDistiller(vit(), distillation={"hard": HardDistillation(), "soft": SoftDistillation()})
    with pytest.raises(ValueError, match="hard, soft needs a teacher, got teacher=None"):
        fit(module)


@pytest.mark.parametrize(("hooked", "scaled"), [("distillation", {"hard", "soft"}), ("distillation.soft", {"soft"})])
def test_a_warm_up_scales_all_named_losses_or_one(hooked: str, scaled: set[str]) -> None:
    terms: dict[str, nn.Module] = {"hard": HardDistillation(), "soft": SoftDistillation()}
    plain = fit(distiller(terms), limit_train_batches=1).callback_metrics
    warm = fit(distiller(terms), limit_train_batches=1, callbacks=DistillationWarmup(4, hooked)).callback_metrics
    for name in terms:
        factor = 0.25 if name in scaled else 1.0
        torch.testing.assert_close(warm[f"train/{name}"], factor * plain[f"train/{name}"])


YAML = """
model:
  distillation:
    soft:
      loss: {class_path: lit_distill.SoftDistillation, init_args: {temperature: 3.0}}
    hard:
      loss: {class_path: HardDistillation}
      weight: WEIGHT
"""


def test_several_losses_in_yaml(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(YAML.replace("WEIGHT", "0.5"))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    main(["fit", "--config", "digits", "--config", "more.yaml", *quiet])
    (path,) = tmp_path.glob("logs/digits/version_0/checkpoints/last.ckpt")
    module = LitDistiller.load_from_checkpoint(path)
    assert module.distillation.weights == {"soft": 1.0, "hard": 0.5}  # type: ignore[union-attr]
    assert module.distillation["soft"].temperature == 3.0  # type: ignore[index,union-attr]
    main(["test", "--ckpt_path", str(path), "--trainer.enable_progress_bar=false"])
    for mistake, message in {
        YAML.replace("WEIGHT", "-1"): "the weight of distillation.hard must be >= 0, got -1.0",
        YAML.replace(
            "weight: WEIGHT", "wieght: 1"
        ): "unknown key 'wieght'; each of several losses is {loss: ..., weight",
        YAML.replace("HardDistillation", "HardDistilation"): "there is no class 'HardDistilation': did you",
        "model: {distillation: {hard: {weight: 2}}}": "missing key 'loss'; each of several losses is {loss: ...,",
    }.items():
        (tmp_path / "more.yaml").write_text(mistake.replace("WEIGHT", "1"))
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["fit", "--config", "digits", "--config", "more.yaml", *quiet])
        assert message in capsys.readouterr().err
