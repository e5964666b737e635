"""The frozen teacher."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, Self, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.checks import check_choice
from lit_distill.models.class_groups import ClassGroups
from lit_distill.models.classes import compare_names, count_classes
from lit_distill.models.output import Head, StudentOutput, TeacherOutput
from lit_distill.models.pixels import PixelInput
from lit_distill.models.saved import Origin, origin_of
from lit_distill.models.sources import Network, named_network
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.trust import trusting
from lit_distill.models.weights import load_strictly, pick, read_state_dict

Precision = Literal["32", "bf16", "fp16"]
_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTeacher(Teacher):
    """A network that only ever answers: always in eval mode, no gradient, float32 logits.

    A `Batch` gets a `TeacherOutput`, as from every teacher; a plain tensor of images gets its logits.

    Args:
        model: A module that maps images to logits, which is taken over: its parameters stop requiring gradients. Or a
            name: of timm, with or without a tag; of torchvision, as ``torchvision.models.resnet50``; a dotted path to
            a class or function of yours; or the path of a checkpoint of `LitDistiller` or of an exported student.
        weights: File with the weights: safetensors or a PyTorch file, a state dict or a checkpoint with one inside. Or
            torchvision's name of some, such as ``ResNet50_Weights.IMAGENET1K_V2``. Without it a name of timm or
            torchvision gets their pretrained weights, downloaded unless they are in the local cache.
        num_classes: Classes K of the network. By default read from the model, or for a name from the weights.
        classes: For each class of the student, by name or in order, the numbers of the teacher's classes that it
            stands for, such as ``{cat: [281, 282], dog: [151, 152, 153]}``. `ClassGroups` sums their probabilities and
            leaves the teacher's other classes out.
        mean: Per-channel mean of the teacher's training data, in 0..1 units. By default timm's or torchvision's for
            their names; other networks get the image as it is. Weights of a checkpoint or an export of this project
            bring the statistics and the size that they were trained with.
        std: Per-channel standard deviation, with ``mean``.
        input_size: ``(height, width)`` or one int in pixels, the size that the teacher was trained at; images of
            another size are resized. By default the image keeps its size. A name with its library's own weights, or
            whose architecture takes only one size, gets the library's size instead.
        precision: What the network computes in, whatever the student does; by default the trainer's precision.
        channels_last: Lay images and weights out by pixel, which is faster for convolutions in half precision.
        model_args: Further arguments of a network that is given by name, such as timm's ``in_chans``.
        trust: Packages whose modules a checkpoint or an export may name too; see `load_student`.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to logits ``(B, K)``, float32; K is the number of
        ``classes`` if these are given. A network with two heads answers with the head that its checkpoint or export
        names; one that is given as a module answers with the mean of both heads' logits.

    Raises:
        ValueError: If the name is unknown; if the weights are missing, unreadable, for another architecture or lack the
            head; if there is no mean and std for its channels; if ``num_classes`` is not what the model has; if
            ``classes`` names a class that it lacks; or if it cannot take images of ``input_size``.

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
        model_args: Mapping[str, object] | None = None,
        trust: str | Iterable[str] = (),
    ) -> None:
        super().__init__()
        if precision is not None:
            check_choice(Precision, precision=precision)
        name = model if isinstance(model, str) else type(model).__name__
        origin = None if weights is None else origin_of(weights)
        if isinstance(model, str):
            with trusting(trust):
                network = named_network(model, weights, num_classes, input_size, dict(model_args or {}))
        else:
            if model_args:
                raise ValueError("model_args go with the name of a model, got them with a module")
            if weights is not None:
                first_name = next(iter(model.state_dict()), "")
                load_strictly(model, pick(read_state_dict(weights), first_name), weights)
            network = Network(model)
        model, channels = network.model, network.channels
        if mean is None and std is None:
            mean, std = _statistics(network, origin)
            if origin is None and mean is not None and channels not in (None, len(mean)):
                raise ValueError(f"{name} was made for {len(mean)} channels: give mean and std for yours")
        trained_size = network.input_size if origin is None else origin.input_size
        self.trained_size = None if trained_size is None else list(trained_size)
        self.pixels = PixelInput(mean, std, self.trained_size if input_size is None else input_size)
        model_classes = getattr(model, "num_classes", None)
        if num_classes is not None and isinstance(model_classes, int) and num_classes != model_classes:
            raise ValueError(
                f"num_classes is {num_classes}, but the teacher {type(model).__name__} has {model_classes}"
            )
        num_outputs = num_classes or count_classes(model)
        self.groups = None if classes is None else ClassGroups(classes, num_outputs)
        self.num_classes = num_outputs if self.groups is None else len(self.groups.names)
        card = getattr(model, "card", None)  # of `load_student`
        card = card if isinstance(card, dict) else {}
        self.head: Head = card.get("head", "mean_logits")
        names = card.get("class_names") if origin is None else origin.class_names
        names = [str(name) for name in names or ()]
        self.class_names = names if len(names) == num_outputs else None
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

    @property
    @override
    def network(self) -> nn.Module:
        return self.model

    @override
    def notes(self) -> list[str]:
        notes = [] if self.groups is None else self.groups.notes()
        trained, asked = self.trained_size, self.pixels.input_size
        if trained is not None and asked is not None and trained != asked:
            notes.append(
                f"trained at {_as_text(trained)} px and asked at {_as_text(asked)}: for its own leave input_size out "
                "(null)"
            )
        return notes

    def advice_to_reorder(self, places: Sequence[int]) -> str:
        """Return how to set ``classes`` so that the class now at ``places[k]`` comes to place k."""
        if self.groups is None:
            order = list(range(len(places))) if self.order is None else self.order.tolist()
            groups = ", ".join(str([order[place]]) for place in places[:20]) + (", ..." if places[20:] else "")
            return f"give the teacher classes=[{groups}]"
        names, members = self.groups.names, [self.groups.members[place] for place in places]
        advice = f"give the teacher classes={dict(zip(names, members, strict=True)) if self.groups.named else members}"
        if len(advice) < 400:
            return advice
        swapped = [f"{names[k]} those of {names[place]}" for k, place in enumerate(places) if k != place]
        return f"of the teacher's classes=, give {', '.join(swapped[:20])}{', ...' if swapped[20:] else ''}"

    @override
    def set_class_names(self, names: Sequence[str]) -> bool:
        """Answer in the order of the data's classes, if the teacher knows its own by name.

        Groups that are given in order stay as they are.

        Args:
            names: Names of the data's classes, in their order.

        Returns:
            True if the teacher's own order is another one.

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
                f"the teacher knows other classes than the data has: {compare_names(self.class_names, names)}; give it "
                "classes= with the numbers of its classes for each of the data's"
            )
        place = {name: k for k, name in enumerate(self.class_names)}
        order = torch.tensor([place[name] for name in names])
        self.order = order.to(self.pixels.scale.device) if names != self.class_names else None
        return self.order is not None

    @overload
    def forward(self, batch: Batch) -> TeacherOutput: ...
    @overload
    def forward(self, batch: Tensor) -> Tensor: ...
    @override
    def forward(self, batch: Batch | Tensor) -> TeacherOutput | Tensor:
        """Return the answer to a batch, or the logits ``(B, K)`` of a plain tensor of images."""
        if isinstance(batch, Tensor):
            return self._logits(batch)
        return TeacherOutput(self._logits(batch.image))

    def _logits(self, image: Tensor) -> Tensor:
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
        return logits if self.groups is None else cast(Tensor, self.groups(logits))

    def extra_repr(self) -> str:
        """Show in ``print(teacher)`` what it makes of an image."""
        size = "as they come" if self.pixels.input_size is None else _as_text(self.pixels.input_size)
        precision = "" if self.precision is None else f", precision={self.precision}"
        return f"classes={self.num_classes}, images={size}, normalised={self.pixels.mean is not None}{precision}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            """Follow to another device, but stay in the precision that was chosen."""
            moved = fn(tensor)
            return moved if self.precision is None or moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _try(self, name: str, channels: int) -> None:
        """Find out now, and not at the first step, if the network takes images of its size."""
        size = self.pixels.input_size or []
        try:
            logits = self(torch.zeros(1, channels, *size))
        except Exception as error:  # whatever a network raises
            reason = str(error).split("\n")[0] or type(error).__name__
            other_size = None if self.trained_size == size else self.trained_size
            hint = "" if other_size is None else f"; for its own {_as_text(other_size)} leave input_size out (null)"
            raise ValueError(
                f"the teacher {name} cannot take images of {_as_text(size)} pixels: {reason}{hint}"
            ) from error
        if self.num_classes is None:
            self.num_classes = logits.shape[1]

    def _channels(self) -> int:
        if self.pixels.mean is not None:
            return len(self.pixels.mean)
        channels = getattr(self.model, "channels", None)
        first = next((m.in_channels for m in self.model.modules() if isinstance(m, nn.Conv2d)), 3)
        return channels if isinstance(channels, int) else first


def _statistics(network: Network, origin: Origin | None) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Return the mean and std that the weights were trained with, unless the network normalises images itself."""
    if origin is None:
        return network.mean, network.std
    parts = network.model.modules()
    normalises = any(isinstance(part, PixelInput) and part.mean is not None for part in parts)
    return (None, None) if normalises else (origin.mean, origin.std)


def _as_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
