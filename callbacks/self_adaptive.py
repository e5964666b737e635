"""Self-adaptive training as a callback."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lit_distill.callbacks.criterion import warn_if_too_late
from lit_distill.callbacks.soft_labels import SoftLabelCallback, tempered_softmax
from lit_distill.checks import check_at_least, check_fraction


class SelfAdaptiveTraining(SoftLabelCallback):
    r"""Replace the targets, bit by bit, by an average of the model's predictions; made for noisy labels.

    The first ``start`` epochs train on the criterion alone. After that, in every step and with
    :math:`p = \mathrm{softmax}(z)` without gradient, each sample's target t, which begins as its label's one-hot
    vector, is updated and then trained on in place of the criterion:

    .. math:: t \leftarrow m\,t + (1 - m)\,p, \qquad
        \frac{\sum_i w_i\,\mathrm{CE}(z_i, t_i)}{\sum_i w_i}, \quad w_i = \max_k t_{ik}

    A target moves once an epoch, also where a sample is seen several times. Under several processes the weights are
    normalised over the batch of each, as the mean of any criterion is.

    Logs ``self_adaptive/weight``, ``self_adaptive/cross_entropy`` and ``self_adaptive/unrecorded``, see
    `SoftLabelCallback`.

    Args:
        start: Epochs >= 0 that train on the criterion alone.
        momentum: m in 0..1.
        kwargs: Arguments of `SoftLabelCallback`.

    Raises:
        ValueError: If ``start`` or ``momentum`` is out of range; and as `SoftLabelCallback` does.

    Source:
        Huang, Zhang and Zhang, "Self-Adaptive Training: beyond Empirical Risk Minimization", NeurIPS 2020, arXiv
        2002.10319, Algorithm 1.

    Example:
        >>> trainer = Trainer(max_epochs=200, callbacks=SelfAdaptiveTraining(start=60), logger=False)
    """

    log_name: ClassVar[str] = "self_adaptive"

    def __init__(self, start: int = 60, momentum: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least(0, start=start)
        check_fraction(momentum=momentum)
        self.start = start
        self.momentum = momentum

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            warn_if_too_late(type(self).__name__, "start", self.start, trainer.max_epochs)

    @override
    def weight(self, epoch: int) -> float:
        return 1.0 if epoch <= self.start else 0.0

    @override
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        if epoch <= self.start:
            return None
        soft_labels, recorded = self.recall(epoch)
        truth = F.one_hot(target, logits.shape[1]).float() if target.dim() == 1 else target.float()
        before = torch.where(recorded[:, None], soft_labels, truth)
        adapted = self.momentum * before + (1 - self.momentum) * tempered_softmax(logits)
        self.remember(adapted, epoch)
        rows = F.cross_entropy(logits.float(), adapted, reduction="none")
        confidence = adapted.amax(dim=1)
        self.count(recorded, cross_entropy=rows)
        return (confidence * rows).sum() / confidence.sum()
