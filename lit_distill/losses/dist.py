"""DIST: the student's predictions correlate with the teacher's, within each sample and within each class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill.losses._logits import LogitLoss, as_float32, check_same_classes, check_settings

_EPS = 1e-8


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""Twice the distances by Pearson correlation between classes and between samples.

    .. math:: 2\,T^2 \left( \beta\,\frac{1}{B} \sum_b d(p^s_{b\cdot}, p^t_{b\cdot})
        + \gamma\,\frac{1}{K} \sum_k d(p^s_{\cdot k}, p^t_{\cdot k}) \right), \qquad d(u, v) = 1 - \rho(u, v)

    with :math:`p = \mathrm{softmax}(z / T)`. Zero if the two networks agree. A vector without variation has
    correlation zero and no gradient. So the second term is constant for a batch of one sample, and with two classes the
    first term knows only which class is ahead. Computed in float32 whatever the input.

    Args:
        student_logits: ``(B, K)``, any floating dtype, K >= 2.
        teacher_logits: ``(B, K)``, any floating dtype; no gradient flows into them.
        beta: Weight >= 0 of the relations between classes.
        gamma: Weight >= 0 of the relations between the samples of the batch.
        temperature: T > 0.

    Returns:
        Scalar in 0..4 T^2 (beta + gamma).

    Raises:
        ValueError: If the shapes differ, a weight is negative, ``temperature`` is not > 0, or K is 1.

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536, equation 9; the
        factor 2 is the loss weight of the authors' recipes in hunto/DIST_KD.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
        >>> round(dist_loss(logits, logits).item(), 3)
        0.0
        >>> round(dist_loss(logits, -logits).item(), 4)
        7.6747
    """
    check_settings(temperature, beta=beta, gamma=gamma)
    check_same_classes(student_logits, teacher_logits, least=2)
    student = F.softmax(as_float32(student_logits) / temperature, dim=1)
    teacher = F.softmax(as_float32(teacher_logits.detach()) / temperature, dim=1)
    between_classes = 1 - _correlation(student, teacher, dim=1).mean()
    between_samples = 1 - _correlation(student, teacher, dim=0).mean()
    return 2 * temperature**2 * (beta * between_classes + gamma * between_samples)


def _correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    student, teacher = (p - p.mean(dim, keepdim=True) for p in (student, teacher))
    norms = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(teacher, dim=dim)
    correlation: Tensor = (student * teacher).sum(dim) / (norms + _EPS)
    return correlation


class DIST(LogitLoss):
    """`dist_loss` as a module; the target is not used.

    Args:
        beta: Weight >= 0 of the relations between classes.
        gamma: Weight >= 0 of the relations between the samples of the batch.
        temperature: T > 0.

    Raises:
        ValueError: If a weight is negative or ``temperature`` is not > 0.

    Example:
        >>> DIST()(torch.eye(5), torch.eye(5), torch.arange(5)).abs() < 1e-5
        tensor(True)
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_settings(temperature, beta=beta, gamma=gamma)
        self.beta = beta
        self.gamma = gamma
        self.temperature = float(temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, K)`` student and teacher logits."""
        return dist_loss(student_logits, teacher_logits, self.beta, self.gamma, self.temperature)
