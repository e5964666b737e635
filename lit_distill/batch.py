"""What travels from the data to the module."""

from collections.abc import Mapping
from typing import NamedTuple, Self

from torch import Tensor

# The names that batches of other projects use for the same things, the first being ours.
_NAMES = {
    "image": ("image", "images", "pixel_values", "img", "x"),
    "target": ("target", "targets", "label", "labels", "y"),
    "index": ("index",),
    "view": ("view",),
}


class IndexedSample(NamedTuple):
    """A sample that carries its row, or a batch of such samples; it unpacks as ``image, target, index``.

    Example:
        >>> import torch
        >>> image, target, index = IndexedSample(torch.rand(2, 1, 8, 8), torch.tensor([3, 5]), torch.tensor([0, 1]))
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a batch


class Batch(NamedTuple):
    """Images, their targets, the row of each sample in its data set, and which view of the row it is.

    ``image`` is ``uint8`` 0..255 or float 0..1, ``(B, C, H, W)``; ``target`` is int64 ``(B,)`` or float ``(B, K)``;
    ``index`` is int64 ``(B,)``, 0..N-1, or None; ``view`` is int64 ``(B,)``, or None. The pixels of a training image
    are a pure function of the seed, ``view`` and ``index``. Images that are read without a view, as in validation, have
    none.

    Example:
        >>> import torch
        >>> batch = Batch.of((torch.rand(2, 1, 8, 8), torch.tensor([3, 5])))
        >>> batch.target, batch.index, batch.view
        (tensor([3, 5]), None, None)
    """

    image: Tensor
    target: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a batch
    view: Tensor | None = None

    @classmethod
    def of(cls, batch: object) -> Self:
        """Accept what a data loader yields; classes of any integer type become int64, which losses index with.

        Args:
            batch: A tuple or list ``(image, target)``, ``(image, target, index)`` or ``(image, target, index, view)``;
                or a mapping or an object with these under their own or other usual names, such as ``pixel_values`` and
                ``label``. Whatever else it has is left out.

        Raises:
            ValueError: If it has no tensor of images, or no tensor of targets.

        Example:
            >>> import torch
            >>> Batch.of({"pixel_values": torch.zeros(2, 1, 8, 8), "labels": torch.tensor([3, 5])}).target
            tensor([3, 5])
        """
        parts = {name: _find(batch, place, name) for place, name in enumerate(_NAMES)}
        image, target = parts["image"], parts["target"]
        if image is None or target is None:
            raise ValueError(
                f"expected a batch of (image, target), got {describe(batch)}: return a pair of tensors, or a mapping "
                "with 'image' and 'target'"
            )
        target = target if target.is_floating_point() else target.long()
        rows = (_as_rows(parts[name]) for name in ("index", "view"))
        return cls(image, target, *rows)

    def view_and_index(self) -> tuple[Tensor, Tensor]:
        """Return the view and the row of each sample, each ``(B,)``, for what answers from them.

        Raises:
            ValueError: If the batch lacks one of them.
        """
        if self.view is None or self.index is None:
            missing = "view" if self.view is None else "index"
            raise ValueError(
                f"the batch has no {missing}, and a view and an index of each sample are needed: read the training set "
                "with IndexedDataset(..., with_view=True) and KeyedSampler, as the data modules do"
            )
        return self.view, self.index


def image_of(batch: object) -> Tensor:
    """Return the images of a batch, which may be one tensor of images alone or lack targets.

    Raises:
        ValueError: If it has no tensor of images.
    """
    image = batch if isinstance(batch, Tensor) else _find(batch, 0, "image")
    if image is None:
        raise ValueError(f"expected images, alone or in a batch, got {describe(batch)}")
    return image


def _find(batch: object, position: int, name: str) -> Tensor | None:
    """Return the element at ``position`` of a tuple or list, else the first usual name of ``name`` that there is.

    None if that is missing or no tensor.
    """
    if isinstance(batch, (tuple, list)):
        found = batch[position] if position < len(batch) else None
    else:
        values = batch if isinstance(batch, Mapping) else {key: getattr(batch, key, None) for key in _NAMES[name]}
        found = next((values[key] for key in _NAMES[name] if values.get(key) is not None), None)
    return found if isinstance(found, Tensor) else None


def _as_rows(part: Tensor | None) -> Tensor | None:
    """Return the part if it can be an index or a view, which are integers ``(B,)``."""
    is_rows = part is not None and part.dim() == 1 and not part.is_floating_point()
    return part if is_rows else None


def describe(value: object) -> str:
    """Return the kind of a value and of what is in it, for messages.

    Example:
        >>> describe((1, "a")), describe({"image": 1})
        ('a tuple of int, str', 'a dict with image')
    """
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"a {type(value).__name__}"
