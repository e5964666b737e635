"""Learning with Retrospection: the loss against remembered soft labels, and its schedule."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from lit_distill.checks import check_at_least, check_choice, check_fraction, check_positive
from lit_distill.losses._logits import as_float32, check_same_classes

_Reduction = Literal["batchmean", "none"]


def retrospection_loss(
    logits: Tensor,
    soft_labels: Tensor,
    temperature: float = 5.0,
    reduction: _Reduction = "batchmean",
) -> Tensor:
    r"""Kullback-Leibler divergence from remembered soft labels to the current tempered prediction.

    .. math:: \tau^2\, \mathrm{KL}(p \,\|\, \mathrm{softmax}(z / \tau)) = \tau^2 \sum_k p_k \log \frac{p_k}{q_k}

    ``p`` is already tempered: it was recorded as ``softmax(z_past / tau)``. Computed in float32 whatever the input.

    Args:
        logits: ``(B, K)``, any floating dtype.
        soft_labels: ``(B, K)`` probabilities; no gradient flows into them.
        temperature: tau > 0, the temperature that the soft labels were recorded with.
        reduction: ``"batchmean"`` for the mean over rows, ``"none"`` for one value a row.

    Returns:
        Scalar, or ``(B,)`` with ``reduction="none"``.

    Raises:
        ValueError: If the shapes differ, ``temperature`` is not > 0 or ``reduction`` is unknown.

    Source:
        Deng and Zhang, "Learning with Retrospection", AAAI 2021, arXiv 2012.13098, equation 4.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 1.0, 0.0]])
        >>> retrospection_loss(logits, torch.softmax(logits / 5, dim=1), temperature=5.0).abs() < 1e-5
        tensor(True)
    """
    check_positive(temperature=temperature)
    check_same_classes(logits, soft_labels, "soft labels")
    check_choice(_Reduction, reduction=reduction)
    log_q = F.log_softmax(as_float32(logits) / temperature, dim=1)
    rows = F.kl_div(log_q, soft_labels.detach().to(log_q.dtype), reduction="none").sum(dim=1) * temperature**2
    return rows if reduction == "none" else rows.mean()


def retrospection_weight(epoch: int, interval: int, max_epochs: int, update_rate: float = 0.9) -> float:
    r"""Weight of the true labels in epoch i, counted from 1.

    .. math:: a_i = 1 \text{ for } i \le k, \qquad a_i = 1 - r \left\lfloor \frac{i}{k} \right\rfloor \frac{k}{M}
        \text{ afterwards}

    It never falls below ``1 - update_rate``, also when training goes on past ``max_epochs``.

    Args:
        epoch: i >= 1; Lightning's ``current_epoch + 1``.
        interval: k >= 1 epochs between two recordings.
        max_epochs: M >= 1 epochs in all.
        update_rate: r in 0..1.

    Returns:
        a_i in ``1 - update_rate``..1.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Deng and Zhang, arXiv 2012.13098, Algorithm 1.

    Example:
        >>> [round(retrospection_weight(i, interval=5, max_epochs=20), 3) for i in (5, 6, 9, 10, 20)]
        [1.0, 0.775, 0.775, 0.55, 0.1]
    """
    check_at_least(1, epoch=epoch, interval=interval, max_epochs=max_epochs)
    check_fraction(update_rate=update_rate)
    if epoch <= interval:
        return 1.0
    return 1.0 - update_rate * min(1.0, epoch // interval * interval / max_epochs)
