"""Logit standardisation: soft distillation of logits without their mean and scale."""

from torch import Tensor

from lit_distill.losses._logits import LogitLoss, as_float32, check_same_classes, check_settings
from lit_distill.losses.soft import soft_distillation_loss

_EPS = 1e-7
_SMALLEST = 1e-30  # least variance: at zero its root has no gradient


def standardized_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0, weight: float = 9.0
) -> Tensor:
    r"""Tempered Kullback-Leibler divergence between standardised logits, batch mean.

    .. math:: w\,T^2\,\mathrm{KL}(\mathrm{softmax}(\tilde z^t / T) \,\|\, \mathrm{softmax}(\tilde z^s / T)),
        \qquad \tilde z = \frac{z - \bar z}{10^{-7} + \sigma(z)}

    with mean and standard deviation (divided by K - 1) over the classes of a row. So the student's logits may have
    another scale than the teacher's: the loss is zero if the two differ by a shift and a positive scale alone. With two
    classes, standardised logits tell only which class is ahead. Computed in float32 whatever the input.

    Args:
        student_logits: ``(B, K)``, any floating dtype, K >= 2.
        teacher_logits: ``(B, K)``, any floating dtype; no gradient flows into them.
        temperature: T > 0.
        weight: w >= 0, by default the authors'; they give the cross-entropy beside it 0.1.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: If the shapes differ, ``temperature`` is not > 0, ``weight`` is negative, or K is 1.

    Source:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427, Algorithm 1;
        sunshangquan/logit-standardization-KD.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> standardized_distillation_loss(logits, 3 * logits + 1).abs() < 1e-5
        tensor(True)
        >>> round(standardized_distillation_loss(logits, -logits).item(), 4)
        11.5256
    """
    check_settings(temperature, weight=weight)
    check_same_classes(student_logits, teacher_logits, least=2)
    student, teacher = _standardized(student_logits), _standardized(teacher_logits.detach())
    return weight * soft_distillation_loss(student, teacher, temperature)


def _standardized(logits: Tensor) -> Tensor:
    logits = as_float32(logits)
    # Dividing by a row's largest value changes nothing, but keeps the squares of the largest logits finite.
    size = logits.detach().abs().amax(dim=1, keepdim=True).clamp(min=1)
    logits = logits / size
    deviation = logits.var(dim=1, keepdim=True).clamp(min=_SMALLEST).sqrt()
    return (logits - logits.mean(dim=1, keepdim=True)) / (_EPS / size + deviation)


class StandardizedDistillation(LogitLoss):
    """`standardized_distillation_loss` as a module; the target is not used.

    Args:
        temperature: T > 0.
        weight: w >= 0.

    Raises:
        ValueError: If ``temperature`` is not > 0 or ``weight`` is negative.

    Example:
        >>> import torch
        >>> StandardizedDistillation()(torch.eye(5), 2 * torch.eye(5), torch.arange(5)).abs() < 1e-5
        tensor(True)
    """

    def __init__(self, temperature: float = 2.0, weight: float = 9.0) -> None:
        super().__init__()
        check_settings(temperature, weight=weight)
        self.temperature = float(temperature)
        self.weight = weight

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, K)`` student and teacher logits."""
        return standardized_distillation_loss(student_logits, teacher_logits, self.temperature, self.weight)
