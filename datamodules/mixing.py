"""Mixup and cutmix: images and targets of a batch, mixed with each other."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from lit_distill.checks import check_at_least, check_fraction
from lit_distill.keys import derive_seed, seeded

# Keeps these keys apart from those of the network's draws, which are (seed, epoch, batch, rank) too.
_MIX = 0x313C


@dataclass(frozen=True)
class Mixing:
    r"""Mixup and cutmix, one of them and one :math:`\lambda` a batch, as in DeiT.

    .. math:: \lambda \sim \mathrm{Beta}(\alpha, \alpha), \quad
        y = \lambda y_i + (1 - \lambda) y_{i-1}, \quad x = \lambda x_i + (1 - \lambda) x_{i-1} \ \text{(mixup)}

    where sample i - 1 is the one before in the batch, and the last one for the first, so that a batch may have any
    size. Cutmix fills a box of :math:`1 - \lambda` of the area with the other image's pixels; the box ends at the
    image's edge, and :math:`\lambda` in the target is the share that is left. Every target becomes probabilities, even
    if its batch is not mixed. The arithmetic is torchvision's (``v2.MixUp``, ``v2.CutMix``).

    The result is a pure function of the batch and a key. The criterion smooths labels:
    ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)`` equals timm's ``Mixup(label_smoothing=0.1)`` with
    ``SoftTargetCrossEntropy``. Student and teacher see the same mixed image, and distillation does not use the target:
    hard labels are the teacher's likeliest class of that image, soft ones its softmax.

    Args:
        mixup: :math:`\alpha` of mixup, 0 for none; 0.8 in DeiT.
        cutmix: :math:`\alpha` of cutmix, 0 for none; 1.0 in DeiT.
        prob: Probability that a batch is mixed.
        switch_prob: Probability of cutmix where there are both.

    Shape:
        Image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, and target ``(B,)`` classes or ``(B, K)`` probabilities;
        to float 0..1 and ``(B, K)``.

    Raises:
        ValueError: If both alphas are 0 or one is negative, or a probability is not in 0..1.

    Source:
        Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899; Touvron et al.,
        arXiv 2012.12877, table 9. timm mixes sample i with B - 1 - i, and so even batches only.

    Example:
        >>> image = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> image, target = Mixing(mixup=0.8)(image, torch.tensor([0, 1]), num_classes=2, key=(1, 0, 0, 0))
        >>> bool((image.flatten() == target[:, 1]).all())
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

    def __call__(
        self, image: Tensor, target: Tensor, num_classes: int, key: tuple[int, int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the images and targets mixed.

        Args:
            image: See above; on any device, which is not waited for.
            target: See above.
            num_classes: K.
            key: Seed, epoch, batch and rank; the process's generators are left as they were.
        """
        if not image.is_floating_point():
            image = image / 255
        if target.dim() == 1:
            target = F.one_hot(target.long(), num_classes)
        target = target.float()
        with seeded(derive_seed(_MIX, *key), ["torch"]):
            mixed, switch = torch.rand(2, device="cpu").tolist()
            if mixed >= self.prob:
                return image, target
            cut = not self.mixup or (self.cutmix > 0 and switch < self.switch_prob)
            mix = _transform(v2.CutMix, self.cutmix) if cut else _transform(v2.MixUp, self.mixup)
            image, target = mix(image, target)
        return image, target


@cache
def _transform(kind: type[v2.Transform], alpha: float) -> Any:
    return kind(alpha=alpha)
