"""The frozen teacher."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from lit_distill.models.classes import count_classes
from lit_distill.models.output import StudentOutput
from lit_distill.models.pixels import PixelInput
from lit_distill.models.weights import load_strictly, read_state_dict


class FrozenTeacher(nn.Module):
    """A network that only ever answers: always in eval mode, no gradient, float32 logits.

    Args:
        model: A module that maps images to logits, or the name of a timm model. A module is taken over: its parameters
            stop requiring gradients.
        weights: File with the weights, safetensors or a state dict in a PyTorch file. A timm name without it gets
            timm's pretrained weights, which are downloaded unless they are in the local cache.
        num_classes: Classes K. By default read from the model, or for a timm name from the weights.
        mean: Per-channel mean of the teacher's training data, in 0..1 units. By default timm's for a timm name, else
            the image is taken as it comes.
        std: Per-channel standard deviation, with ``mean``.
        input_size: ``(height, width)`` or one int in pixels, the size that the teacher was trained at; images of
            another size are resized. By default the image keeps its size, except for a timm name with timm's own
            weights, or whose architecture takes one size only: those get timm's.
        model_args: Further arguments of ``timm.create_model``, such as ``in_chans``; only with a timm name.

    Shape:
        image ``(B, C, H, W)``, ``uint8`` 0..255 or float 0..1, to logits ``(B, K)``, float32. A model with two heads
        answers with the mean of their logits.

    Raises:
        ValueError: If the timm name is unknown, the weights are missing, unreadable or for another architecture, or
            ``num_classes`` is not what the model has.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 5)))
        >>> teacher.train()(torch.rand(2, 3, 2, 2)).shape, teacher.num_classes, teacher.training
        (torch.Size([2, 5]), 5, False)
    """

    def __init__(
        self,
        model: nn.Module | str,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | Sequence[int] | None = None,
        model_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, str):
            name, model = model, _timm_model(model, weights, num_classes, dict(model_args or {}))
            config = getattr(model, "pretrained_cfg", {})
            if mean is None and std is None:
                mean, std = config.get("mean"), config.get("std")
                if mean is not None and (model_args or {}).get("in_chans", len(mean)) != len(mean):
                    raise ValueError(f"{name} was made for {len(mean)} channels: give mean and std for yours")
            if input_size is None and (weights is None or config.get("fixed_input_size")):
                input_size = config.get("input_size", ())[1:] or None
        else:
            if model_args:
                raise ValueError("model_args go with the name of a timm model, got them with a module")
            if weights is not None:
                load_strictly(model, read_state_dict(weights), weights)
        own = getattr(model, "num_classes", None)
        if num_classes is not None and isinstance(own, int) and num_classes != own:
            raise ValueError(f"num_classes is {num_classes}, but the teacher {type(model).__name__} has {own}")
        self.num_classes = num_classes or count_classes(model)
        self.pixels = PixelInput(mean, std, input_size)
        self.model = model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked: batch statistics of the student's data are none of the teacher's."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the teacher's logits ``(B, K)``, float32 and without a graph."""
        if any(module.training for module in self.model.modules()):  # somebody reached past this module
            self.model.eval()
        output = self.model(self.pixels(image))
        if isinstance(output, Tensor):
            return output.float()
        logits, distill_logits = StudentOutput.of(output)
        return (logits.float() + distill_logits.float()) / 2

    def extra_repr(self) -> str:
        """Show in ``print(teacher)`` what it makes of an image."""
        size = "as they come" if self.pixels.input_size is None else "x".join(map(str, self.pixels.input_size))
        return f"classes={self.num_classes}, images={size}, normalised={self.pixels.mean is not None}"


def _timm_model(name: str, weights: str | Path | None, num_classes: int | None, args: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")
        raise ValueError(f"timm has no model {name!r}; near it: {', '.join(_nearest(name, near))}")
    if weights is None:
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, **args)
        except Exception as error:  # hub, network and cache errors have no common base
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"could not get timm's pretrained weights of {name}; give a local file as weights: {reason}"
            ) from error
        return model
    state = read_state_dict(weights)
    if num_classes is None:
        # The classifier's rows tell the class count; a head of another size would have to be made up.
        classifier = timm.get_pretrained_cfg_value(name, "classifier")
        head = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
        num_classes = None if head is None else len(head)
    if num_classes is not None:
        args["num_classes"] = num_classes
    model = timm.create_model(name, pretrained=False, **args)
    load_strictly(model, state, weights)
    return model


def _nearest(name: str, among: Sequence[str]) -> list[str]:
    return get_close_matches(name, among or timm.list_models(), n=3, cutoff=0.0)
