"""The frozen teacher."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from lit_distill.models.class_groups import ClassGroups
from lit_distill.models.classes import count_classes
from lit_distill.models.output import Head, StudentOutput
from lit_distill.models.pixels import PixelInput
from lit_distill.models.saved import Origin, origin_of
from lit_distill.models.sources import named_network
from lit_distill.models.trust import trusting
from lit_distill.models.weights import load_strictly, pick, read_state_dict

Precision = Literal["32", "bf16", "fp16"]
_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTeacher(nn.Module):
    """A network that only ever answers: always in eval mode, no gradient, float32 logits.

    Args:
        model: A module that maps images to logits, which is taken over: its parameters stop requiring gradients. Or a
            name: of timm, with or without a tag; of torchvision, as ``torchvision.models.resnet50``; a dotted path to
            a class or function of yours; or the path of a checkpoint of `LitDistiller` or of an exported student.
        weights: File with the weights: safetensors or a PyTorch file, a state dict or a checkpoint with one inside. Or
            torchvision's name of some, such as ``ResNet50_Weights.IMAGENET1K_V2``. Without it a name of timm or
            torchvision gets their pretrained weights, downloaded unless they are in the local cache.
        num_classes: Classes K of the network. By default read from the model, or for a name from the weights.
        classes: What the student's classes are among the teacher's: for each, by name or in order, the numbers of the
            teacher's classes it stands for, such as ``{cat: [281, 282], dog: [151, 152, 153]}``. Their logits are
            combined by logsumexp, which adds probabilities up; what is in no group is left out.
        mean: Per-channel mean of the teacher's training data, in 0..1 units. By default timm's or torchvision's for
            their names, else the image is taken as it comes. Weights of a checkpoint or an export of this project bring
            those that they were trained with, and their size.
        std: Per-channel standard deviation, with ``mean``.
        input_size: ``(height, width)`` or one int in pixels, the size that the teacher was trained at; images of
            another size are resized. By default the image keeps its size, except for a name with its library's own
            weights, or whose architecture takes one size only: those get the library's.
        precision: What the network computes in, whatever the student does; by default what the trainer says.
        channels_last: Lay images and weights out by pixel, which is faster for convolutions in half precision.
        model_args: Further arguments of a name's network, such as ``in_chans`` of timm's.
        trust: Packages whose modules a checkpoint or an export may name too; see `load_student`.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to logits ``(B, K)``, float32; K is the number of
        ``classes`` where these are given. A student with two heads answers with the head that its checkpoint or export
        names, and with the mean of both heads' logits where it is given as a module.

    Raises:
        ValueError: If the name is unknown, the weights are missing, unreadable, for another architecture or lack the
            head, there is no mean and std for its channels, ``num_classes`` is not what the model has,
            ``classes`` names one that it lacks, or it cannot take images of ``input_size``.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 5)))
        >>> teacher.train()(torch.rand(2, 3, 2, 2)).shape, teacher.num_classes, teacher.training
        (torch.Size([2, 5]), 5, False)
    """

    def __init__(
        self,
        model: str | nn.Module,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        classes: Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | Sequence[int] | None = None,
        precision: Precision | None = None,
        channels_last: bool = False,
        model_args: Mapping[str, Any] | None = None,
        trust: str | Iterable[str] = (),
    ) -> None:
        super().__init__()
        if precision not in (None, *_DTYPES):
            raise ValueError(f"precision must be '32', 'bf16' or 'fp16', got {precision!r}")
        name = model if isinstance(model, str) else type(model).__name__
        channels: int | None = None
        origin: Origin | None = None
        trained_size: Sequence[int] | None = None
        if weights is not None:
            origin = origin_of(weights)
        if isinstance(model, str):
            with trusting(trust):
                network = named_network(model, weights, num_classes, input_size, dict(model_args or {}))
            model = network.model
            if mean is None and std is None and origin is None:
                mean, std = network.mean, network.std
                if mean is not None and network.channels not in (None, len(mean)):
                    raise ValueError(f"{name} was made for {len(mean)} channels: give mean and std for yours")
            channels, trained_size = network.channels, network.input_size
        else:
            if model_args:
                raise ValueError("model_args go with the name of a model, got them with a module")
            if weights is not None:
                own = next(iter(model.state_dict()), "")
                load_strictly(model, pick(read_state_dict(weights), own), weights)
        if origin is not None:
            if mean is None and std is None and not _normalises(model):
                mean, std = origin.mean, origin.std
            trained_size = origin.input_size
        self.trained_size = None if trained_size is None else list(trained_size)
        input_size = self.trained_size if input_size is None else input_size
        has = getattr(model, "num_classes", None)
        if num_classes is not None and isinstance(has, int) and num_classes != has:
            raise ValueError(f"num_classes is {num_classes}, but the teacher {type(model).__name__} has {has}")
        known = num_classes or count_classes(model)
        self.groups = None if classes is None else ClassGroups(classes, known)
        self.num_classes = known if self.groups is None else len(self.groups.names)
        self.pixels = PixelInput(mean, std, input_size)
        card = getattr(model, "card", None)  # of `load_student`
        card = card if isinstance(card, dict) else {}
        self.head: Head = card.get("head", "mean_logits")
        names = card.get("class_names") if origin is None else origin.class_names
        self.class_names = [str(name) for name in names] if names is not None and len(names) == known else None
        self.register_buffer("order", None, persistent=False)
        self.precision = precision
        self.channels_last = channels_last
        self.model = model.requires_grad_(False)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if precision is not None:
            self.model.to(_DTYPES[precision])
        self.eval()
        if self.pixels.input_size is not None:
            self._try(name, channels or self._channels())

    order: Tensor | None

    def notes(self) -> list[str]:
        """Say what about its groups and its size may not be meant."""
        notes = [] if self.groups is None else self.groups.notes()
        own, asked = self.trained_size, self.pixels.input_size
        if own is not None and asked is not None and list(own) != list(asked):
            own_size, size = ("x".join(map(str, sides)) for sides in (own, asked))
            notes.append(f"trained at {own_size} px and asked at {size}: for its own leave input_size out (null)")
        return notes

    def others(self, places: Sequence[int]) -> str:
        """Say how ``classes`` is to be given so that what now stands at ``places`` stands in this order."""
        if self.groups is None:
            own = list(range(len(places))) if self.order is None else self.order.tolist()
            groups = ", ".join(str([own[place]]) for place in places[:20]) + (", ..." if places[20:] else "")
            return f"give the teacher classes=[{groups}]"
        names, members = self.groups.names, [self.groups.members[place] for place in places]
        given = f"give the teacher classes={dict(zip(names, members, strict=True)) if self.groups.named else members}"
        if len(given) < 400:
            return given
        swapped = [f"{names[k]} those of {names[place]}" for k, place in enumerate(places) if k != place]
        return f"of the teacher's classes=, give {', '.join(swapped[:20])}{', ...' if swapped[20:] else ''}"

    def set_class_names(self, names: Sequence[str]) -> bool:
        """Answer in the order of the data's classes, where the teacher knows its own by name.

        Groups that are given in order stay as they are.

        Args:
            names: Names of the data's classes, in their order.

        Returns:
            Whether the teacher's own order is another one.

        Raises:
            ValueError: If the teacher knows other classes.

        Example:
            >>> teacher = FrozenTeacher(nn.Linear(2, 2), classes={"cat": [1], "dog": [0]})
            >>> teacher.set_class_names(["dog", "cat"]), teacher.groups.members
            (True, [[0], [1]])
        """
        names = [str(name) for name in names]
        if self.groups is not None:
            before = self.groups.names
            if self.groups.named:
                self.groups.order(names)
            return self.groups.named and before != names
        if self.class_names is None:
            return False
        if set(names) != set(self.class_names):
            raise ValueError(
                f"the teacher knows other classes than the data has: {_differ(self.class_names, names)}; give it "
                "classes= with the numbers of its classes for each of the data's"
            )
        place = {name: k for k, name in enumerate(self.class_names)}
        order = torch.tensor([place[name] for name in names])
        self.order = order.to(self.pixels.scale.device) if names != self.class_names else None
        return self.order is not None

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked: batch statistics of the student's data are none of the teacher's."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the teacher's logits ``(B, K)``, float32 and without a graph."""
        if any(module.training for module in self.model.modules()):  # somebody reached past this module
            self.model.eval()
        image = self.pixels(image)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        if self.precision is not None:
            image = image.to(_DTYPES[self.precision])
        with nullcontext() if self.precision is None else torch.autocast(image.device.type, enabled=False):
            output = self.model(image)
        logits = output.float() if isinstance(output, Tensor) else StudentOutput.of(output).combined(self.head)
        if self.order is not None:
            return logits.index_select(1, self.order)
        return logits if self.groups is None else self.groups(logits)

    def extra_repr(self) -> str:
        """Show in ``print(teacher)`` what it makes of an image."""
        size = "as they come" if self.pixels.input_size is None else "x".join(map(str, self.pixels.input_size))
        precision = "" if self.precision is None else f", precision={self.precision}"
        return f"classes={self.num_classes}, images={size}, normalised={self.pixels.mean is not None}{precision}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            """Follow to another device, but stay in the precision that was chosen."""
            moved = fn(tensor)
            return moved if self.precision is None or moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _try(self, name: str, channels: int) -> None:
        """Find out now whether the network takes images of its size, and not at the first step."""
        try:
            logits = self(torch.zeros(1, channels, *self.pixels.input_size or ()))
        except Exception as error:  # whatever a network raises
            said = str(error).split("\n")[0] or type(error).__name__
            size = "x".join(map(str, self.pixels.input_size or ()))
            own = self.trained_size
            own = None if own == self.pixels.input_size else own
            mend = "" if own is None else f"; for its own {'x'.join(map(str, own))} leave input_size out (null)"
            raise ValueError(f"the teacher {name} cannot take images of {size} pixels: {said}{mend}") from error
        if self.num_classes is None:
            self.num_classes = logits.shape[1]

    def _channels(self) -> int:
        if self.pixels.mean is not None:
            return len(self.pixels.mean)
        own = getattr(self.model, "channels", None)
        first = next((m.in_channels for m in self.model.modules() if isinstance(m, nn.Conv2d)), 3)
        return own if isinstance(own, int) else first


def _normalises(model: nn.Module) -> bool:
    """Tell whether a network brings its images to its own statistics itself."""
    return any(isinstance(module, PixelInput) and module.mean is not None for module in model.modules())


def _differ(own: Sequence[str], data: Sequence[str]) -> str:
    """Say which names are of one side only."""
    sides = (("only the teacher has", set(own) - set(data)), ("only the data has", set(data) - set(own)))
    lists = ((side, sorted(names)) for side, names in sides if names)
    return ", ".join(f"{side} {', '.join(names[:3])}{', ...' if names[3:] else ''}" for side, names in lists)
