"""Choose for a data set: how large its images are seen, and which networks suit them."""

import math
from typing import Any

from lit_distill.datamodules import FilesDataModule
from lit_distill.models.answer_rows import AnswerRows
from lit_distill.photos import size_of

Description = dict[str, Any]
"""A configuration, or a class in it: ``class_path`` and ``init_args``."""

_SIZES = (32, 64, 96, 128, 160, 192, 224)  # of photos; larger ones are seen at 224 px


def image_size_of(data: FilesDataModule) -> int:
    """Return the side in pixels at which to train: by the median of the shorter sides of a hundred images.

    Images of up to 32 px keep their size, rounded down to a multiple of 4; others are seen at one of 32, 64, ... 224
    px, enlarged by a sixth at most.
    """
    files = data.splits["train"].files
    sides = []
    for row in range(0, len(files), max(1, len(files) // 100)):
        try:
            sides.append(min(size_of(files.open(row), files[row])))
        except OSError:  # damaged; whoever reads all of them says so
            continue
    if not sides:
        return _SIZES[-1]
    median = sorted(sides)[len(sides) // 2]
    if median < _SIZES[0]:
        return max(4, median // 4 * 4)
    return max(size for size in _SIZES if size <= max(_SIZES[0], median * 7 / 6))


def augmentation_for(size: int) -> Description:
    """Return the augmentation for images of that many pixels, as arguments of `Augmentation`."""
    if size <= 64:
        return {"crop": "padded", "policy": "trivial-wide", "crop_pct": 1.0}
    return {"crop": "resized", "scale": [0.35, 1.0], "policy": "trivial-wide"}


def views_for(epochs: int, repeats: int = 1) -> int:
    """Return how many views of an image the teacher's cache keeps by default: a third of the epochs, thirty at least.

    Few views cost accuracy, because the student sees the same images again. The studies ``digits_views`` and
    ``cifar10_views`` say how much.

    Args:
        epochs: Epochs of the run.
        repeats: Views of an image in an epoch. The result is a multiple of it.

    Example:
        >>> views_for(40), views_for(240), views_for(240, repeats=3)
        (30, 80, 81)
    """
    views = max(30, math.ceil(epochs / 3))
    return math.ceil(views / repeats) * repeats


def cache_bytes(images: int, validated: int, classes: int, views: int) -> int:
    """Return the bytes of a teacher's cache with all views and all logits.

    Example:
        >>> cache_bytes(images=25_000, validated=0, classes=2, views=100)
        10312500
    """
    return round((images * views + validated) * (AnswerRows(classes).stride + 1 / 8))


def batch_size_for(images: int) -> int:
    """Return a batch size that leaves a few dozen steps an epoch where there are few images."""
    return next((size for size, least in ((64, 2000), (32, 500)) if images >= least), 16)


def student_for(size: int, channels: int) -> Description:
    """Return a ViT of DeiT-Ti's width for images of that many pixels: 49 to 256 tokens, if there are the pixels.

    Convolutions make the tokens; the study ``distill_tokenizer`` says what they gain over patches.
    """
    patch = next((patch for least, patch in ((129, 16), (41, 8), (17, 4)) if size >= least), 2)
    depth, mlp_dim = (12, 768) if size > 128 else (9, 384)
    return {
        "class_path": "lit_distill.DistillableViT",
        "init_args": {
            "patch_size": patch,
            "dim": 192,
            "depth": depth,
            "heads": 3,
            "mlp_dim": mlp_dim,
            "channels": channels,
            "tokenizer": "conv",
            # For ``tokenizer=null``. A patch of few pixels has little but its mean and contrast, which norm removes.
            "patch_norm": patch > 8,
        },
    }


def teacher_for(name: str, size: int, channels: int, pretrained: bool) -> Description:
    """Return a timm convnet; small images are enlarged for it, whose stem divides them by 4 or more.

    To 64 px, or to 96 px where its weights know larger ones.
    """
    net = timm_student(name, channels, pretrained)
    net["init_args"]["img_size"] = max(96 if pretrained else 64, size)
    return net


def timm_student(name: str, channels: int, pretrained: bool) -> Description:
    """Return a timm network for images of so many channels."""
    arguments: Description = {"name": name, "pretrained": pretrained}
    if channels != 3:
        arguments["in_chans"] = channels
    return {"class_path": "lit_distill.TimmStudent", "init_args": arguments}
