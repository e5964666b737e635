"""Mixup and cutmix: each image and target mixed with another's."""

from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import betaincinv
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_distill.checks import check_at_least, check_fraction
from lit_distill.datamodules.batched.draws import MIXING, Draws


class MixPlan(NamedTuple):
    r"""How each image of a batch is mixed.

    Attributes:
        share: ``(B,)`` float32, :math:`\lambda`: the share of an image's own target.
        inside: ``(B,)`` float32, the share of its own pixels inside the box.
        outside: ``(B,)`` float32, that outside.
        box: ``(B, 4)`` int64: top, bottom, left and right in pixels; the end is outside.
    """

    share: Tensor
    inside: Tensor
    outside: Tensor
    box: Tensor


@dataclass(frozen=True)
class Mixing:
    r"""Mixup and cutmix, one of them and a :math:`\lambda` for each image.

    .. math:: \lambda \sim \mathrm{Beta}(\alpha, \alpha), \quad
        y = \lambda y_i + (1 - \lambda) y_j, \quad x = \lambda x_i + (1 - \lambda) x_j \ \text{(mixup)}

    where sample j is the partner of i, as `Partners` says. Cutmix fills a box of :math:`1 - \lambda` of the area with
    the partner's pixels; the box ends at the image's edge, and :math:`\lambda` in the target is the share that is left.
    Every target becomes probabilities, even if its image is not mixed.

    A mixed image is a pure function of ``(seed, view, index)``: it is the same in a batch of any size, on any rank and
    after a resume. The criterion smooths labels: ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)`` equals timm's
    ``Mixup(label_smoothing=0.1)`` with ``SoftTargetCrossEntropy``. Student and teacher see the same mixed image, and
    distillation does not use the target: hard labels are the teacher's likeliest class of that image, soft ones its
    softmax.

    Args:
        mixup: :math:`\alpha` of mixup, 0 for none; 0.8 in DeiT.
        cutmix: :math:`\alpha` of cutmix, 0 for none; 1.0 in DeiT.
        prob: Probability that an image is mixed.
        switch_prob: Probability of cutmix where there are both.

    Raises:
        ValueError: If both alphas are 0 or one is negative, or a probability is not in 0..1.

    Source:
        Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899; Touvron et al.,
        arXiv 2012.12877, table 9. One :math:`\lambda` an image is timm's ``mode="elem"``; DeiT drew one a batch.

    Example:
        >>> draws = Draws(seed=1, view=torch.tensor([0, 0]), index=torch.tensor([0, 1]))
        >>> plan = Mixing(mixup=0.8).plan(draws, size=(1, 1))
        >>> image, target = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 1])
        >>> image, target = mix(image, target, image.flip(0), target.flip(0), plan, num_classes=2)
        >>> torch.allclose(image.flatten(), target[:, 1])
        True
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(0, mixup=self.mixup, cutmix=self.cutmix)
        check_fraction(prob=self.prob, switch_prob=self.switch_prob)
        if self.mixup == self.cutmix == 0:
            raise ValueError("mixing needs mixup > 0 or cutmix > 0, got 0 and 0: for no mixing leave it out")

    def plan(self, draws: Draws, size: tuple[int, int]) -> MixPlan:
        """Draw how the images of a batch are mixed; ``size`` is their height and width in pixels."""
        mixed, switch, quantile, row, column = draws.uniform(MIXING, 5).unbind(dim=1)
        is_mixed = mixed < self.prob
        switch_prob = 0.0 if not self.cutmix else self.switch_prob if self.mixup else 1.0
        is_cut = switch < switch_prob
        share = torch.where(is_cut, _beta(self.cutmix, quantile), _beta(self.mixup, quantile))
        share = torch.where(is_mixed, share, 1.0)
        top, bottom = _span(row, share, size[0])
        left, right = _span(column, share, size[1])
        area = (bottom - top) * (right - left) / (size[0] * size[1])
        share = torch.where(is_cut, 1 - area, share)
        inside, outside = torch.where(is_cut, 0.0, share), torch.where(is_cut, 1.0, share)
        return MixPlan(share.float(), inside.float(), outside.float(), torch.stack([top, bottom, left, right], dim=1))


def mix(
    image: Tensor, target: Tensor, other_image: Tensor, other_target: Tensor, plan: MixPlan, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Mix images and targets with others, as a plan says.

    Args:
        image: ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1.
        target: ``(B,)`` classes or ``(B, K)`` probabilities.
        other_image: As ``image``.
        other_target: As ``target``.
        plan: On the same device.
        num_classes: K.

    Returns:
        The images, float 0..1, and the targets, ``(B, K)`` float32.
    """
    image, other_image = _as_floats(image), _as_floats(other_image)
    rows, columns = (torch.arange(side, device=image.device) for side in image.shape[-2:])
    top, bottom, left, right = plan.box.unsqueeze(-1).unbind(dim=1)
    is_row, is_column = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    is_inside = is_row[:, None, :, None] & is_column[:, None, None, :]
    share = torch.where(is_inside, _by_image(plan.inside), _by_image(plan.outside)).to(image.dtype)
    target, other_target = _as_probabilities(target, num_classes), _as_probabilities(other_target, num_classes)
    target_share = plan.share[:, None]
    target = target * target_share + other_target * (1 - target_share)
    return image * share + other_image * (1 - share), target


def _beta(alpha: float, quantile: Tensor) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha); of no matter what where alpha is 0, which is not drawn from."""
    return torch.from_numpy(betaincinv(alpha, alpha, quantile.numpy())) if alpha else quantile


def _span(centre: Tensor, share: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return start and end of a box of ``1 - share`` of the area along one side, cut off at the image's edge."""
    half = (0.5 * side * (1 - share).sqrt()).long()
    centre = (centre * side).long()
    return (centre - half).clamp(min=0), (centre + half).clamp(max=side)


def _by_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _as_floats(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image / 255


def _as_probabilities(target: Tensor, num_classes: int) -> Tensor:
    return (F.one_hot(target.long(), num_classes) if target.dim() == 1 else target).float()
