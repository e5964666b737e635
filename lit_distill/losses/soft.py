"""Soft distillation: the student's tempered distribution follows the teacher's."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from lit_distill.checks import check_choice
from lit_distill.losses._logits import LogitLoss, as_float32, check_same_classes, check_settings

Reduction = Literal["batchmean", "deit"]


def soft_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, reduction: Reduction = "batchmean"
) -> Tensor:
    r"""Tempered Kullback-Leibler divergence from the teacher to the student.

    .. math:: \frac{T^2}{n} \sum_{b,k} p_{bk} \log \frac{p_{bk}}{q_{bk}}, \qquad
        p = \mathrm{softmax}(z_\text{teacher} / T),\; q = \mathrm{softmax}(z_\text{student} / T)

    Zero, with zero gradient, if the two distributions are equal. Computed in float32 whatever the input.

    Args:
        student_logits: ``(B, K)``, any floating dtype.
        teacher_logits: ``(B, K)``, any floating dtype; no gradient flows into them.
        temperature: T > 0.
        reduction: ``"batchmean"`` divides by n = B (Hinton et al.; timm; vit-pytorch), ``"deit"`` by n = B K as
            DeiT's published code does, which makes its gradient 1/K of the other's.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: If the shapes differ, ``temperature`` is not > 0 or ``reduction`` is unknown.

    Source:
        Hinton et al., arXiv 1503.02531, section 2; facebookresearch/deit, ``losses.py``.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> soft_distillation_loss(logits, logits)
        tensor(0.)
        >>> round(soft_distillation_loss(logits, -logits, temperature=2.0).item(), 4)
        1.8485
    """
    check_settings(temperature)
    check_same_classes(student_logits, teacher_logits)
    check_choice(Reduction, reduction=reduction)
    log_q = F.log_softmax(as_float32(student_logits) / temperature, dim=1)
    log_p = F.log_softmax(as_float32(teacher_logits.detach()) / temperature, dim=1)
    total = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return total * temperature**2 / (log_q.shape[0] if reduction == "batchmean" else log_q.numel())


class SoftDistillation(LogitLoss):
    """`soft_distillation_loss` as a module; the target is not used.

    Args:
        temperature: T > 0.
        reduction: ``"batchmean"`` or ``"deit"``.

    Raises:
        ValueError: If ``temperature`` is not > 0 or ``reduction`` is unknown.

    Example:
        >>> import torch
        >>> SoftDistillation(temperature=3.0)(torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor([0, 1]))
        tensor(0.)
    """

    def __init__(self, temperature: float = 1.0, reduction: Reduction = "batchmean") -> None:
        super().__init__()
        check_settings(temperature)
        self.temperature = float(temperature)
        check_choice(Reduction, reduction=reduction)
        self.reduction: Reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, K)`` student and teacher logits."""
        return soft_distillation_loss(student_logits, teacher_logits, self.temperature, self.reduction)
