from typing import Any

from lightning.pytorch.callbacks import EMAWeightAveraging
import pytest
import torch
from torch import nn
from toys import Foreign, toy_loader, trainer, weights

from lit_distill.callbacks import DistillationWarmup
from lit_distill.losses import DKD

EPOCHS = 4


class Distils(Foreign):
    """Somebody else's module: its teacher are fixed logits, its distillation loss is under a name of its own."""

    def __init__(self, scale: list[float] | None = None) -> None:
        super().__init__()
        self.kd = nn.ModuleDict({"dkd": DKD(beta=2.0)})
        self.scale = scale
        self.seen: list[float] = []
        self.validated: list[float] = []

    def distil(self, batch: Any) -> torch.Tensor:
        teacher = batch[0][:, :4].roll(1, dims=1)
        value: torch.Tensor = self.kd["dkd"](self.net(batch[0]), teacher, batch[1])
        return value

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        distillation = self.distil(batch)
        self.seen.append(distillation.item())
        with torch.no_grad():
            self.seen.append(self.distil(batch).item())
        if self.scale is not None:
            distillation = self.scale[self.current_epoch] * distillation
        loss: torch.Tensor = self.criterion(self.net(batch[0]), batch[1]) + distillation
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.distil(batch).item())


def fit(module: Distils, *callbacks: Any, epochs: int = EPOCHS, **kwargs: Any) -> Any:
    run = trainer(max_epochs=epochs, callbacks=list(callbacks))
    run.fit(module, toy_loader(), toy_loader(8), **kwargs)
    return run


def test_trains_the_weights_of_the_published_schedule_written_by_hand() -> None:
    warm, by_hand = Distils(), Distils(scale=[min(epoch / 3, 1.0) for epoch in (1, 2, 3, 4)])
    fit(warm, DistillationWarmup(3, distillation="kd.dkd"))
    fit(by_hand)
    torch.testing.assert_close(weights(warm), weights(by_hand))
    ratios = [scaled / plain for scaled, plain in zip(warm.seen[::2], warm.seen[1::2], strict=True)]
    assert ratios == pytest.approx([1 / 3] * 4 + [2 / 3] * 4 + [1.0] * 8)  # without a gradient it is left alone
    assert warm.validated == pytest.approx(by_hand.validated)  # and in validation


def test_a_resumed_run_goes_on_where_the_schedule_was(tmp_path) -> None:
    whole, half, resumed = Distils(), Distils(), Distils()
    fit(whole, DistillationWarmup(EPOCHS, "kd.dkd"))
    run = fit(half, DistillationWarmup(EPOCHS, "kd.dkd"), epochs=2)
    run.save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, DistillationWarmup(EPOCHS, "kd.dkd"), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_leaves_nothing_behind() -> None:
    module, warmup = Distils(), DistillationWarmup(2, distillation="kd.dkd")
    fit(module, warmup, EMAWeightAveraging(decay=0.5))
    assert not module.kd["dkd"]._forward_hooks
    module.training_step = lambda *_: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        fit(module, warmup)
    assert not module.kd["dkd"]._forward_hooks


def test_refuses_what_it_cannot_scale() -> None:
    with pytest.raises(ValueError, match="epochs must be >= 1, got 0"):
        DistillationWarmup(0)
    with pytest.raises(
        ValueError, match=r"no submodule 'distillation' to hook; name its distillation with distillation="
    ):
        fit(Distils(), DistillationWarmup())
