"""Progressive self-knowledge distillation as a callback."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lit_distill.callbacks.soft_labels import SoftLabelCallback, count_epochs, tempered_softmax
from lit_distill.checks import check_at_least, check_fraction


class ProgressiveSelfDistillation(SoftLabelCallback):
    r"""PS-KD: soften the targets, more in every epoch, with the model's prediction of the epoch before.

    In epoch i, counted from 1, of M, with :math:`\alpha_i = \alpha\, i / M`, the criterion becomes

    .. math:: (1 - \alpha_i)\,\mathrm{criterion}(z, y) + \alpha_i\,\mathrm{CE}(z, p_{i-1})

    which, if the criterion is cross-entropy, is cross-entropy with the target
    :math:`(1 - \alpha_i)\,\mathrm{onehot}(y) + \alpha_i\,p_{i-1}`. A row without remembered p, as all are in the first
    epoch, has the truth in its place. Every epoch's :math:`p_i = \mathrm{softmax}(z)` is remembered.

    Logs ``pskd/weight``, ``pskd/cross_entropy`` and ``pskd/unrecorded``, see `SoftLabelCallback`.

    Args:
        alpha: Weight of the remembered prediction in the last epoch, in 0..1.
        max_epochs: M >= 1; by default the trainer's.
        kwargs: Arguments of `SoftLabelCallback`.

    Raises:
        ValueError: If ``alpha`` or ``max_epochs`` is out of range; and as `SoftLabelCallback` does.

    Source:
        Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021, arXiv 2006.12000,
        equation 3.

    Example:
        >>> trainer = Trainer(max_epochs=20, callbacks=ProgressiveSelfDistillation(alpha=0.8), logger=False)
    """

    log_name: ClassVar[str] = "pskd"

    def __init__(self, alpha: float = 0.8, max_epochs: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_fraction(alpha=alpha)
        check_at_least(1, max_epochs=max_epochs)
        self.alpha = alpha
        self.max_epochs = max_epochs
        self._epochs = 1  # M

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._epochs = count_epochs(trainer, self.max_epochs)

    @override
    def weight(self, epoch: int) -> float:
        return 1 - self.alpha * min(1.0, epoch / self._epochs)

    @override
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor:
        soft_labels, recorded = self.recall(epoch)
        past = F.cross_entropy(logits.float(), soft_labels, reduction="none")
        truth = F.cross_entropy(logits.float(), target, reduction="none")
        self.count(recorded, cross_entropy=past)
        self.remember(tempered_softmax(logits), epoch)
        weight = self.weight(epoch)
        return weight * loss + (1 - weight) * torch.where(recorded, past, truth).mean()
