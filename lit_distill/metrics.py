"""What validation and testing measure."""

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import BinaryCalibrationError
from typing_extensions import override

from lit_distill.models.output import Head, StudentOutput


class DistillationMetrics(MetricCollection):
    """Metrics of a student with two heads, and of its agreement with the teacher.

    ``accuracy_class`` and ``accuracy_distill`` are the top-1 accuracies of the heads, ``accuracy_mean_logits`` that of
    their averaged logits (DeiT's code), ``accuracy_mean_probs`` that of their averaged softmaxes (DeiT's paper). The
    head that predicts has two more: ``nll``, the negative log-likelihood in nats, and ``ece``, the expected calibration
    error of its likeliest class (15 bins, L1). With a teacher, ``agreement`` is the share of samples for which that
    head and the teacher choose the same class, and ``teacher_accuracy`` the teacher's top-1 accuracy. Accuracies and
    ``ece`` are in 0..1.

    Sums stay float32 and counts int64 when the module is cast, as for ``bf16-true``: a sum in bfloat16 stops growing
    after a few hundred samples.

    Args:
        teacher: Whether there is a teacher.
        head: The head that predicts; see `StudentOutput.log_probs`.
        prefix: What the names begin with, such as ``"val/"``.

    Example:
        >>> import torch
        >>> metrics = DistillationMetrics(teacher=False)
        >>> logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> metrics.update_with(StudentOutput(logits, logits), None, torch.tensor([0, 0]))
        >>> metrics["accuracy_class"].compute()
        tensor(0.5000)
    """

    def __init__(self, teacher: bool, head: Head = "mean_probs", prefix: str | None = None) -> None:
        names = ["accuracy_class", "accuracy_distill", "accuracy_mean_logits", "accuracy_mean_probs", "nll"]
        if teacher:
            names += ["agreement", "teacher_accuracy"]
        # Shares are means: torchmetrics' accuracy does not take the empty batch of a rank that has only padding.
        metrics: dict[str, Metric | MetricCollection] = {name: MeanMetric(nan_strategy="disable") for name in names}
        # Unchecked: torchmetrics' checks stop the device at every step.
        metrics["ece"] = BinaryCalibrationError(n_bins=15, norm="l1", validate_args=False)
        # Grouping would merge metrics whose first batch gave equal values.
        super().__init__(metrics, prefix=prefix, compute_groups=False)
        self.set_dtype(torch.float32)  # whatever torch's default is: ``trainer.init_module()`` changes it
        self.head: Head = head

    def update_with(self, output: StudentOutput, teacher_logits: Tensor | None, target: Tensor) -> None:
        """Take in a batch: logits ``(B, K)``, targets ``(B,)`` or ``(B, K)``; an empty one changes nothing."""
        log_probs = output.log_probs(self.head)
        labels = target if target.dim() == 1 else target.argmax(dim=1)
        decision = log_probs.argmax(dim=1)
        scores = {
            "accuracy_class": output.logits,
            "accuracy_distill": output.distill_logits,
            "accuracy_mean_logits": output.combined("mean_logits"),
            "accuracy_mean_probs": output.combined("mean_probs"),
        }
        if teacher_logits is not None and "agreement" in self.keys(keep_base=True):
            scores["teacher_accuracy"] = teacher_logits
            self["agreement"].update((decision == teacher_logits.argmax(dim=1)).float())
        for name, values in scores.items():
            self[name].update((values.argmax(dim=1) == labels).float())
        self["nll"].update(F.nll_loss(log_probs, labels, reduction="none"))
        confidence = (
            log_probs.amax(dim=1).exp().clamp(max=1)
        )  # rounding may exceed 1, which torchmetrics takes for logits
        self["ece"].update(confidence, (decision == labels).float())

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return cast(Self, super()._apply(keep_dtype, recurse))  # type: ignore[no-untyped-call]  # torchmetrics has no types here
