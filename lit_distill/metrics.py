"""What validation and testing measure."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassCalibrationError

from lit_distill.models import StudentOutput
from lit_distill.models.output import Head


class DistillationMetrics(nn.ModuleDict):
    """Metrics of a student with two heads, and of its agreement with the teacher.

    ``accuracy_class`` and ``accuracy_distill`` are the top-1 accuracies of the heads, ``accuracy_mean_logits`` that of
    their averaged logits (DeiT's code), ``accuracy_mean_probs`` that of their averaged softmaxes (DeiT's paper). The
    head that predicts has two more: ``nll``, the negative log-likelihood in nats, and ``ece``, the expected calibration
    error (15 bins, L1). With a teacher, ``agreement`` is the share of samples on which that head decides as the teacher
    does, and ``teacher_accuracy`` the teacher's top-1 accuracy. Accuracies and ``ece`` are in 0..1.

    Sums stay float32 and counts int64 when the module is cast, as for ``bf16-true``: a sum in bfloat16 stops growing
    after a few hundred samples.

    Args:
        teacher: Whether there is a teacher.
        head: The head that predicts; see `StudentOutput.log_probs`.

    Example:
        >>> import torch
        >>> metrics = DistillationMetrics(teacher=False)
        >>> logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> metrics.update_with(StudentOutput(logits, logits), None, torch.tensor([0, 0]))
        >>> metrics["accuracy_class"].compute()
        tensor(0.5000)
    """

    def __init__(self, teacher: bool, head: Head = "mean_probs") -> None:
        names = ["accuracy_class", "accuracy_distill", "accuracy_mean_logits", "accuracy_mean_probs"]
        if teacher:
            names += ["agreement", "teacher_accuracy"]
        # Shares are means: torchmetrics' accuracy does not take the empty batch of a rank that has only padding.
        metrics: dict[str, Metric] = {name: MeanMetric(nan_strategy="disable") for name in [*names, "nll"]}
        # Unchecked: torchmetrics' checks stop the device at every step. The class count serves nothing but them.
        metrics["ece"] = MulticlassCalibrationError(num_classes=2, n_bins=15, norm="l1", validate_args=False)
        for metric in metrics.values():
            metric.set_dtype(torch.float32)  # whatever torch's default is: ``trainer.init_module()`` changes it
        super().__init__(metrics)
        self.head: Head = head

    def update_with(self, output: StudentOutput, teacher_logits: Tensor | None, target: Tensor) -> None:
        """Take in a batch: logits ``(B, K)``, targets ``(B,)`` or ``(B, K)``; an empty one changes nothing."""
        logits, distill_logits = output.logits.float(), output.distill_logits.float()
        log_probs = output.log_probs(self.head)
        labels = target if target.dim() == 1 else target.argmax(dim=1)
        decisions = {
            "accuracy_class": logits,
            "accuracy_distill": distill_logits,
            "accuracy_mean_logits": logits + distill_logits,
            "accuracy_mean_probs": output.log_probs("mean_probs"),
        }
        if teacher_logits is not None and "agreement" in self:
            decisions["teacher_accuracy"] = teacher_logits
            self.metric("agreement").update((log_probs.argmax(dim=1) == teacher_logits.argmax(dim=1)).float())
        for name, scores in decisions.items():
            self.metric(name).update((scores.argmax(dim=1) == labels).float())
        self.metric("nll").update(F.nll_loss(log_probs, labels, reduction="none"))
        self.metric("ece").update(log_probs.exp(), labels)

    def metric(self, name: str) -> Any:
        """Return the torchmetrics metric ``name``."""
        return self[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(state: Tensor) -> Tensor:
            after = fn(state)
            return after if after.dtype == state.dtype else state.to(after.device)

        return super()._apply(moved, recurse)  # type: ignore[no-any-return, no-untyped-call]
