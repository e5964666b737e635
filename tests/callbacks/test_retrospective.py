import copy
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Foreign, toy_loader, trainer, weights

from lit_distill import DistillableViT, LitDistiller
from lit_distill.callbacks import RetrospectiveLoss
from lit_distill.datamodules import DigitsDataModule

EPOCHS = 8


class Normed(Foreign):
    """A net whose evaluation differs from its training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))


def by_hand(interval: int, kappa: float) -> Foreign:
    """Jandial et al.: the task's loss and the retrospective one against a snapshot taken every so many epochs."""
    torch.manual_seed(0)
    module, past = Normed(), None
    optimizer, loader = module.configure_optimizers(), toy_loader()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        if epoch > 0 and epoch % interval == 0:
            past = copy.deepcopy(module.net).eval()
        for x, y, _ in loader:
            z = module.net(x)
            loss = F.cross_entropy(z, y)
            if past is not None:
                p, truth = torch.softmax(z, dim=1), F.one_hot(y, 4)
                old = torch.softmax(past(x).detach(), dim=1)
                far, near = (p - old).abs().sum(dim=1), (p - truth).abs().sum(dim=1)
                loss = loss + ((kappa + 1) * near - kappa * far).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


@pytest.mark.parametrize(("interval", "kappa"), [(1, 4.0), (3, 4.0), (3, 0.5), (EPOCHS, 4.0)])
def test_equals_the_loop_written_by_hand(interval: int, kappa: float) -> None:
    module = Normed()
    callback = RetrospectiveLoss(interval, kappa, network="net")
    trainer(max_epochs=EPOCHS, callbacks=callback).fit(module, toy_loader(), toy_loader(12, seed=9))
    torch.testing.assert_close(weights(module), weights(by_hand(interval, kappa)), rtol=1e-5, atol=1e-5)
    assert (weights(by_hand(EPOCHS, 0.0)) - weights(module)).abs().max() > 1e-2 or interval == EPOCHS


class Steps(Callback):
    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [8, 11, 12, 17])  # 4 an epoch: at an end, within, before and after a snapshot
def test_a_resumed_run_has_the_same_snapshot(tmp_path, step: int) -> None:
    def run(folder: str, **kwargs: Any) -> tuple[Normed, RetrospectiveLoss]:
        module, callback = Normed(), RetrospectiveLoss(3, network="net")
        checkpoint = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"callbacks": [callback, checkpoint], "enable_checkpointing": True}
        trainer(max_epochs=5, **options).fit(module, toy_loader(), **kwargs)
        return module, callback

    _, whole = run("whole")
    _, resumed = run("resumed", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt", weights_only=True)
    assert whole._snapshot_epoch == resumed._snapshot_epoch == 3
    if step in (8, 12, 17):  # a plain loader repeats samples within an epoch, and the weights with it
        pairs = zip(whole.snapshot.state_dict().values(), resumed.snapshot.state_dict().values(), strict=True)
        assert step == 8 or all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_distils_with_two_heads_and_keeps_out_of_the_module(tmp_path) -> None:
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    module, callback = LitDistiller(student), RetrospectiveLoss(1)
    run = trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=0, callbacks=callback)
    run.fit(module, datamodule=DigitsDataModule(batch_size=8))
    assert callback.snapshot is not None
    assert not student._forward_pre_hooks
    run.save_checkpoint(tmp_path / "it.ckpt")
    state = torch.load(tmp_path / "it.ckpt", weights_only=True)
    assert all(name.startswith("student") for name in state["state_dict"])
    parameters = sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"])
    assert parameters == len(list(student.parameters()))


def test_says_what_it_misses() -> None:
    with pytest.raises(
        ValueError,
        match="Foreign has no submodule 'student' to hook; name its network with network=, of its submodules net",
    ):
        trainer(max_epochs=2, callbacks=RetrospectiveLoss(1)).fit(Foreign(), toy_loader())
    module = Foreign()
    module.other = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="called 'other' not at all: name its network with network="):
        trainer(max_epochs=2, callbacks=RetrospectiveLoss(1, network="other")).fit(module, toy_loader())

    class Twice(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.net(batch[0] + 1)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="called 'net' twice, and a snapshot can follow one call: name its network"):
        trainer(max_epochs=2, callbacks=RetrospectiveLoss(1, network="net")).fit(Twice(), toy_loader())
    with pytest.raises(ValueError, match=r"'net.0' must return the criterion's logits \(8, 4\), got \(8, 16\)"):
        trainer(max_epochs=2, callbacks=RetrospectiveLoss(1, network="net.0")).fit(Foreign(), toy_loader())
    for arguments, message in (
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"kappa": -1.0}, "kappa must be >= 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            RetrospectiveLoss(**arguments)
