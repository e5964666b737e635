"""The embedded teacher: a small convolutional network for scikit-learn's 8x8 digits."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from lit_distill.models.pixels import PixelInput

WEIGHTS = Path(__file__).with_name("digits_cnn.safetensors")


class DigitsCNN(nn.Module):
    """Convolutional network for `(B, 1, 8, 8)` digits: three stages of two 3x3 convolutions, then the mean of the map.

    Args:
        num_classes: Classes K; the shipped weights have 10.
        width: Channels of the first stage; the others have twice as many.
        pretrained: Load the weights that come with the package, trained by ``configs/digits_teacher.yaml``
            on the training split of `DigitsDataModule` alone.

    Shape:
        image ``(B, 1, 8, 8)``, ``uint8`` 0..255 or float 0..1, to logits ``(B, K)``.

    Example:
        >>> import torch
        >>> DigitsCNN()(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, width: int = 24, pretrained: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pixels = PixelInput(mean=[0.3], std=[0.38])
        self.features = nn.Sequential(
            *_conv(1, width),
            *_conv(width, width),
            nn.MaxPool2d(2),
            *_conv(width, 2 * width),
            *_conv(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, num_classes)
        if pretrained:
            self.load_state_dict(load_file(WEIGHTS))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, K)``."""
        logits: Tensor = self.head(self.features(self.pixels(image)))
        return logits


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
