"""The retrospective loss: away from what an earlier model predicted, towards the truth."""

from torch import Tensor
from torch.nn import functional as F

from lit_distill.checks import check_at_least
from lit_distill.losses._logits import as_float32, check_same_classes


def retrospective_loss(logits: Tensor, past_logits: Tensor, target: Tensor, kappa: float = 4.0) -> Tensor:
    r"""Distance to the truth less the distance to the past prediction of the same images, batch mean.

    .. math:: (\kappa + 1)\,\lVert p - \mathrm{onehot}(y) \rVert_1 - \kappa\,\lVert p - p_\text{past} \rVert_1

    with :math:`p = \mathrm{softmax}(z)`; the norms are sums over the classes. Added to the task's own loss. Computed in
    float32 whatever the input.

    Args:
        logits: ``(B, K)``, any floating dtype.
        past_logits: ``(B, K)``, an earlier model's on the same images; no gradient flows into them.
        target: ``(B,)`` classes 0..K-1, or ``(B, K)`` probabilities.
        kappa: >= 0.

    Returns:
        Scalar in -2 kappa..2 (kappa + 1).

    Raises:
        ValueError: If the shapes differ or ``kappa`` is negative.

    Source:
        Jandial et al., "Retrospective Loss: Looking Back to Improve Training of Deep Neural Networks", KDD 2020, arXiv
        2006.13593, equation 2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> retrospective_loss(logits, logits, torch.tensor([0]), kappa=4.0)  # (4 + 1) * 2 * (1 - 0.8808)
        tensor(1.1920)
    """
    check_at_least(0, kappa=kappa)
    check_same_classes(logits, past_logits, "past logits")
    now = F.softmax(as_float32(logits), dim=1)
    past = F.softmax(as_float32(past_logits.detach()), dim=1)
    truth = F.one_hot(target.long(), logits.shape[1]).to(now.dtype) if target.dim() == 1 else target.to(now.dtype)
    rows = (kappa + 1) * (now - truth).abs().sum(dim=1) - kappa * (now - past).abs().sum(dim=1)
    return rows.mean()
