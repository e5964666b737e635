"""Learning with Retrospection as a callback."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lit_distill.callbacks.criterion import warn_if_too_late
from lit_distill.callbacks.soft_labels import SoftLabelCallback, count_epochs, tempered_softmax
from lit_distill.checks import check_at_least, check_fraction, check_positive
from lit_distill.losses import retrospection_loss, retrospection_weight


class LearningWithRetrospection(SoftLabelCallback):
    r"""Replace a criterion by its mixture with the model's own remembered predictions, in any Lightning project.

    In epoch i, counted from 1, of M, with interval k:

    - for i <= k the criterion is left alone;
    - afterwards it becomes
      :math:`a_i\,\mathrm{criterion}(z, y) + (1 - a_i)\,\tau^2\,\mathrm{KL}(p \,\|\, \mathrm{softmax}(z/\tau))`,
      batch mean, with the schedule of `retrospection_weight`; a row without remembered p has
      :math:`\mathrm{CE}(z, y)` in place of the KL;
    - whenever i % k == 0, the ordinary training forward (training mode, augmented images) is recorded as
      :math:`p = \mathrm{softmax}(z/\tau)`, readable from the next epoch on.

    Exact under any number of processes and after a resume, see `SoftLabelCallback` for what it needs and keeps. Logs
    ``retrospection/weight``, ``retrospection/kl`` and ``retrospection/unrecorded``, means over the epoch.

    Args:
        interval: k >= 1 epochs between two recordings.
        temperature: tau > 0.
        update_rate: How far the true labels' weight falls by the last epoch, in 0..1.
        max_epochs: M >= 1; by default the trainer's.
        top_k: Remember the ``top_k`` >= 1 largest probabilities and spread the rest evenly; None remembers all.
        kwargs: ``criterion``, ``index``, ``num_samples``, ``dtype`` and ``soft_targets`` of `SoftLabelCallback`.

    Raises:
        ValueError: At construction for a value out of range; before the first step if the number of epochs cannot be
            told; and as `SoftLabelCallback` does.

    Source:
        Deng and Zhang, "Learning with Retrospection", AAAI 2021, arXiv 2012.13098, Algorithm 1.

    Example:
        >>> trainer = Trainer(max_epochs=20, callbacks=LearningWithRetrospection(interval=5), logger=False)
    """

    log_name: ClassVar[str] = "retrospection"

    def __init__(
        self,
        interval: int = 5,
        temperature: float = 5.0,
        update_rate: float = 0.9,
        max_epochs: int | None = None,
        top_k: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(top_k=top_k, **kwargs)
        check_at_least(1, interval=interval, max_epochs=max_epochs)
        check_positive(temperature=temperature)
        check_fraction(update_rate=update_rate)
        self.interval = interval
        self.temperature = temperature
        self.update_rate = update_rate
        self.max_epochs = max_epochs
        self._epochs = 1  # M

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._epochs = count_epochs(trainer, self.max_epochs)
            warn_if_too_late("retrospection", "interval", self.interval, self._epochs)

    @override
    def state_dict(self) -> dict[str, object]:
        state = super().state_dict()
        return {**state, "temperature": self.temperature} if state else {}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        temperature = state_dict.get("temperature", self.temperature)
        if temperature != self.temperature:
            rank_zero_info(
                f"the remembered soft labels are of temperature {temperature}, this run has {self.temperature}: "
                "they are taken as they are until recorded anew"
            )

    @override
    def weight(self, epoch: int) -> float:
        return retrospection_weight(epoch, self.interval, self._epochs, self.update_rate)

    @override
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        mixed = None
        if epoch > self.interval:
            soft_labels, recorded = self.recall(epoch)
            kl = retrospection_loss(logits, soft_labels, self.temperature, reduction="none")
            cross_entropy = F.cross_entropy(logits.float(), target, reduction="none")
            weight = self.weight(epoch)
            mixed = weight * loss + (1 - weight) * torch.where(recorded, kl, cross_entropy).mean()
            self.count(recorded, kl=kl)
        if epoch % self.interval == 0:
            self.remember(tempered_softmax(logits, self.temperature), epoch)
        return mixed
