"""Classes and probabilities of photos, computed as in the test."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image
import torch
from torch import Tensor, nn

from lit_distill.models.card import card_on
from lit_distill.models.output import StudentOutput
from lit_distill.photos import Photo, as_image
from lit_distill.preprocessing import Preprocessing


class Prediction(NamedTuple):
    """The classes of N photos.

    Attributes:
        classes: The likeliest class of each photo, N names.
        probabilities: Of all K classes, in the order of the card's ``class_names``: ``(N, K)``, float32, on the CPU.
    """

    classes: list[str]
    probabilities: Tensor


def predict(
    student: nn.Module,
    photos: Photo | Sequence[Photo],
    *,
    transform: Callable[[Image.Image], Tensor] | None = None,
    batch_size: int = 64,
) -> Prediction:
    """Return the classes of photos and their probabilities, by the head and the preprocessing of the student's card.

    A student from `load_student` has this function as its method ``predict``.

    Args:
        student: What `load_student` returns.
        photos: One photo or several: a path, a Pillow image, a ``uint8`` array ``(H, W)`` or ``(H, W, C)``, or a
            ``uint8`` tensor ``(C, H, W)``. They may have any size.
        transform: From a Pillow image to a ``(C, H, W)`` tensor, ``uint8`` or float 0..1; for a card that does not say
            how to prepare a photo, as with a data module of your own.
        batch_size: Photos in one batch.

    Raises:
        ValueError: If a file is missing or no image, an array has another type or shape, there is no preprocessing, or
            the network answers with NaN or infinity.

    Example:
        >>> from lit_distill import DistillableViT
        >>> student = DistillableViT(image_size=8, patch_size=4, num_classes=2, dim=8, depth=1, heads=1, mlp_dim=8)
        >>> resize = {"channels": 3, "resize": 8, "crop": [8, 8], "interpolation": "bicubic"}
        >>> student.card = {"head": "class", "class_names": ["cat", "dog"], "preprocessing": resize}
        >>> classes, probabilities = predict(student, Image.new("RGB", (40, 30)))
        >>> classes[0] in ("cat", "dog"), probabilities.shape
        (True, torch.Size([1, 2]))
    """
    card = card_on(student)
    several = photos if isinstance(photos, Sequence) and not isinstance(photos, str) else [photos]
    if not several:
        raise ValueError("expected one photo or more, got none")
    transform = transform or preprocessing_of(student)
    mode = transform.mode if isinstance(transform, Preprocessing) else "RGB"
    device = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    parts = []
    was_training = student.training
    student.eval()
    with torch.no_grad():
        for start in range(0, len(several), batch_size):
            images = [transform(as_image(photo, mode)) for photo in several[start : start + batch_size]]
            batch = torch.stack(images).to(device)
            if card.get("image_dtype") == "float" and not batch.is_floating_point():  # as it was trained
                batch = batch / 255
            output = StudentOutput.of(student(batch))
            parts.append(output.log_probs(card.get("head", "mean_probs")).exp().cpu())
    student.train(was_training)
    probabilities = torch.cat(parts)
    if not probabilities.isfinite().all():
        raise ValueError("the student answers with NaN or infinity: its training has diverged, or its file is damaged")
    names = card.get("class_names") or [str(k) for k in range(probabilities.shape[1])]
    return Prediction([names[k] for k in probabilities.argmax(dim=1).tolist()], probabilities)


def preprocessing_of(student: nn.Module) -> Preprocessing:
    """Return how a photo becomes the student's input, as its card says.

    Raises:
        ValueError: If the card does not say it.
    """
    described = card_on(student).get("preprocessing")
    if described is None:
        raise ValueError(
            "the student's card does not say how a photo becomes its input: export it again, or in Python give "
            "transform=, from a Pillow image to a (C, H, W) tensor"
        )
    return Preprocessing.of(described)
