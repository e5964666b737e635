"""What validation and testing measure."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lit_distill.models import StudentOutput


class DistillationMetrics(nn.ModuleDict):
    """Metrics of a student with two heads, and of its agreement with the teacher.

    ``accuracy_class`` and ``accuracy_distill`` are the top-1 accuracies of the heads, ``accuracy_mean_logits`` that of
    their averaged logits (DeiT's code), ``accuracy_mean_probs`` that of their averaged softmaxes (DeiT's paper). Of the
    averaged softmaxes are also ``nll``, the negative log-likelihood in nats, and ``ece``, the expected calibration
    error (15 bins, L1). With a teacher, ``agreement`` is the share of samples on which the averaged softmaxes decide as
    the teacher does, and ``teacher_accuracy`` its top-1 accuracy. Accuracies and ``ece`` are in 0..1.

    Args:
        teacher: Whether there is a teacher.

    Example:
        >>> import torch
        >>> metrics = DistillationMetrics(teacher=False)
        >>> logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> metrics.update_with(StudentOutput(logits, logits), None, torch.tensor([0, 0]))
        >>> metrics["accuracy_class"].compute()
        tensor(0.5000)
    """

    def __init__(self, teacher: bool) -> None:
        names = ["accuracy_class", "accuracy_distill", "accuracy_mean_logits", "accuracy_mean_probs"]
        if teacher:
            names += ["agreement", "teacher_accuracy"]
        # Unchecked: torchmetrics' checks stop the device at every step. The class count serves nothing but them.
        metrics: dict[str, Metric] = {
            name: MulticlassAccuracy(num_classes=None, average="micro", validate_args=False) for name in names
        }
        metrics["nll"] = MeanMetric(nan_strategy="disable")
        metrics["ece"] = MulticlassCalibrationError(num_classes=2, n_bins=15, norm="l1", validate_args=False)
        super().__init__(metrics)

    def update_with(self, output: StudentOutput, teacher_logits: Tensor | None, target: Tensor) -> None:
        """Take in a batch: logits ``(B, K)``, targets ``(B,)`` or ``(B, K)``."""
        logits, distill_logits = output.logits.float(), output.distill_logits.float()
        log_probs = output.log_probs()
        labels = target if target.dim() == 1 else target.argmax(dim=1)
        decisions = {
            "accuracy_class": logits,
            "accuracy_distill": distill_logits,
            "accuracy_mean_logits": logits + distill_logits,
            "accuracy_mean_probs": log_probs,
        }
        if teacher_logits is not None and "agreement" in self:
            decisions["teacher_accuracy"] = teacher_logits
            self.metric("agreement").update(log_probs.argmax(dim=1), teacher_logits.argmax(dim=1))
        for name, scores in decisions.items():
            self.metric(name).update(scores.argmax(dim=1), labels)
        self.metric("nll").update(F.nll_loss(log_probs, labels, reduction="none"))
        self.metric("ece").update(log_probs.exp(), labels)

    def metric(self, name: str) -> Any:
        """Return the torchmetrics metric ``name``."""
        return self[name]
