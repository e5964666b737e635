"""Decoupled knowledge distillation: separate weights for the target's probability and for the other classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill.losses._logits import LogitLoss, as_float32, as_labels, check_same_classes, check_settings


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Target-class and non-target-class distillation, batch mean.

    .. math:: T^2 \left( \alpha\,\mathrm{KL}(b^t \,\|\, b^s) + \beta\,\mathrm{KL}(\hat p^t \,\|\, \hat p^s) \right)

    with :math:`b = (p_y, 1 - p_y)`, the tempered probability of the target class against all others, and
    :math:`\hat p`, the tempered softmax over the others alone. Zero, with zero gradient, if the two networks agree.
    With two classes there is one other class, so the second term is zero. Computed in float32 whatever the input.

    Args:
        student_logits: ``(B, K)``, any floating dtype, K >= 2.
        teacher_logits: ``(B, K)``, any floating dtype; no gradient flows into them.
        target: ``(B,)`` classes 0..K-1, or ``(B, K)`` probabilities, whose likeliest class is the target.
        alpha: Weight >= 0 of the target term.
        beta: Weight >= 0 of the other term.
        temperature: T > 0.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: If the shapes differ, a weight is negative, ``temperature`` is not > 0, or K is 1.

    Source:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, equation 7; defaults of
        megvii-research/mdistiller, which lets the loss grow over the first 20 epochs, as the callback
        `DistillationWarmup` does.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> dkd_loss(logits, logits, torch.tensor([0]))
        tensor(0.)
        >>> round(dkd_loss(logits, -logits, torch.tensor([0])).item(), 4)
        4.928
    """
    check_settings(temperature, alpha=alpha, beta=beta)
    check_same_classes(student_logits, teacher_logits, least=2)
    student = as_float32(student_logits) / temperature
    teacher = as_float32(teacher_logits.detach()) / temperature
    labels = as_labels(target)[:, None]
    # The other classes' columns as indices, not as a mask: boolean indexing would wait for the device.
    columns = torch.arange(student.shape[1] - 1, device=student.device)[None, :]
    others = columns + (columns >= labels)
    student_others, teacher_others = student.gather(1, others), teacher.gather(1, others)

    log_p, log_q = _binary(teacher, labels, teacher_others), _binary(student, labels, student_others)
    target_term = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    log_p, log_q = F.log_softmax(teacher_others, dim=1), F.log_softmax(student_others, dim=1)
    others_term = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    return temperature**2 * (alpha * target_term + beta * others_term)


def _binary(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Return ``(B, 2)``: the logarithms of the target's probability, and of the sum of all others."""
    ahead = logits.gather(1, labels) - others.logsumexp(dim=1, keepdim=True)
    return F.logsigmoid(torch.cat([ahead, -ahead], dim=1))


class DKD(LogitLoss):
    """`dkd_loss` as a module.

    Args:
        alpha: Weight >= 0 of the target term.
        beta: Weight >= 0 of the other term.
        temperature: T > 0.

    Raises:
        ValueError: If a weight is negative or ``temperature`` is not > 0.

    Example:
        >>> DKD(beta=2.0)(torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor([0, 1]))
        tensor(0.)
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        check_settings(temperature, alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        self.temperature = float(temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, K)`` student and teacher logits."""
        return dkd_loss(student_logits, teacher_logits, target, self.alpha, self.beta, self.temperature)
