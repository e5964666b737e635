"""Hard distillation: the teacher's decision is the label."""

from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill.losses._logits import as_float32, check_same_classes


def hard_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""Cross-entropy with the teacher's most likely class, unsmoothed, mean over the batch.

    .. math:: -\frac{1}{B} \sum_b \log \mathrm{softmax}(z_\text{student})_{b,\, y_b}, \qquad
        y_b = \arg\max_k z_{\text{teacher}, bk}

    Computed in float32 whatever the input.

    Args:
        student_logits: ``(B, K)``, any floating dtype.
        teacher_logits: ``(B, K)``, any floating dtype; no gradient flows into them.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: If the shapes differ.

    Source:
        Touvron et al., arXiv 2012.12877, equation 3; facebookresearch/deit, ``losses.py``.

    Example:
        >>> import torch
        >>> hard_distillation_loss(torch.zeros(1, 2), torch.tensor([[0.0, 5.0]]))
        tensor(0.6931)
    """
    check_same_classes(student_logits, teacher_logits)
    return F.cross_entropy(as_float32(student_logits), teacher_logits.detach().argmax(dim=1))


class HardDistillation(nn.Module):
    """`hard_distillation_loss` as a module; the target is not used.

    Example:
        >>> import torch
        >>> HardDistillation()(torch.zeros(1, 2), torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
        tensor(0.6931)
    """

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, K)`` student and teacher logits."""
        return hard_distillation_loss(student_logits, teacher_logits)
