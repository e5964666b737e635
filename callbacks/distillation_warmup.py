"""A distillation loss that grows over the first epochs."""

from contextlib import ExitStack

from lightning.pytorch import Callback, LightningModule, Trainer
import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.callbacks.criterion import find_submodule
from lit_distill.checks import check_at_least


class DistillationWarmup(Callback):
    r"""Scale the distillation loss up over the first epochs, in any Lightning project, as DKD was published.

    In epoch i, counted from 1, of E, the submodule's value is multiplied by

    .. math:: \min(i / E, 1)

    in the training step, so the log shows the values that were trained on; the criterion keeps its weight. Anywhere
    else, and in calls without gradient, the value stays as it is. The weight is a function of the epoch, so there is
    nothing to resume.

    Args:
        epochs: E >= 1, the first epoch of full weight; 1 has no effect.
        distillation: Dotted name of the distillation loss among the module's submodules. If that is a ``ModuleDict`` of
            losses, such as `WeightedLosses`, all of them are scaled; ``"distillation.<name>"`` scales one.

    Raises:
        ValueError: At construction if ``epochs`` is out of range; before the first step if there is no such submodule.

    Source:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679; formula and default of
        megvii-research/mdistiller, ``min(epoch / warmup, 1)`` with epochs counted from 1 and a warm-up of 20.

    Example:
        >>> trainer = Trainer(max_epochs=240, callbacks=DistillationWarmup(epochs=20), logger=False)
        >>> [DistillationWarmup(epochs=4).weight(epoch) for epoch in (1, 2, 4, 5)]
        [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, epochs: int = 20, distillation: str = "distillation") -> None:
        super().__init__()
        check_at_least(1, epochs=epochs)
        self.epochs = epochs
        self.distillation = distillation
        self._handles = ExitStack()

    def weight(self, epoch: int) -> float:
        """Return the weight in an epoch, counted from 1."""
        return min(1.0, epoch / self.epochs)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._handles.close()  # after a fit that failed before it could clean up

        def scale(loss: nn.Module, args: tuple[object, ...], value: Tensor) -> Tensor | None:
            if not (trainer.training and pl_module.training and torch.is_grad_enabled()):
                return None
            return self.weight(trainer.current_epoch + 1) * value

        submodule = find_submodule(pl_module, self.distillation, "distillation")
        for loss in submodule.values() if isinstance(submodule, nn.ModuleDict) else [submodule]:
            self._handles.enter_context(loss.register_forward_hook(scale))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._handles.close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._handles.close()
