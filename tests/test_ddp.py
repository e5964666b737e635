"""Two processes train as one does: the same losses, the same weights, and a teacher that nobody synchronises."""

from typing import Any

from lightning.pytorch import Callback, Trainer
import pytest
import torch
from torch.utils.data import Subset
from toys import QUIET

from lit_distill import DigitsCNN, DistillableViT, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import DigitsDataModule


class FewDigits(DigitsDataModule):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set = Subset(self.train_set, range(48))


class Save(Callback):
    """Write what the run ended with, from every rank."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        values = {"teacher": pl_module.teacher.state_dict(), "student": pl_module.student.state_dict()}
        torch.save(values | {"metrics": dict(trainer.callback_metrics)}, f"{self.folder}/{trainer.global_rank}.pt")


def run(folder: Any, ranks: int, distillation: torch.nn.Module | None) -> list[dict[str, Any]]:
    folder.mkdir()
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    module = LitDistiller(
        student, DigitsCNN(), None, distillation, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scheduler=None
    )
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    options = {**QUIET, **strategy, "max_epochs": 3, "callbacks": Save(folder), "use_distributed_sampler": True}
    Trainer(**options).fit(module, datamodule=FewDigits(batch_size=16 // ranks, eval_batch_size=180, seed=3))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")  # epoch means of the ranks, here by rank
@pytest.mark.parametrize("distillation", [HardDistillation(), SoftDistillation(3.0), None])
def test_two_ranks_equal_one_process(tmp_path, distillation: torch.nn.Module | None) -> None:
    (one,) = run(tmp_path / "one", 1, distillation)
    two = run(tmp_path / "two", 2, distillation)
    for rank in two:
        for key, value in one["student"].items():
            torch.testing.assert_close(rank["student"][key], value, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(rank["teacher"][key], value) for key, value in one["teacher"].items())
        for name in ("val/nll", "val/accuracy_mean_probs", "val/agreement", "train/loss"):
            torch.testing.assert_close(rank["metrics"][name], one["metrics"][name], rtol=1e-4, atol=1e-4)


def test_retrospection_refuses_several_processes_rather_than_forget(tmp_path) -> None:
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    options = {**QUIET, "devices": 2, "strategy": "ddp_fork", "max_epochs": 3}
    trainer = Trainer(**options, callbacks=LearningWithRetrospection(1))
    with pytest.raises(Exception, match="remembers in one process, got 2: set devices=1"):
        trainer.fit(LitDistiller(student), datamodule=FewDigits())
