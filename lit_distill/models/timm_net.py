"""Networks by timm's names."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
import timm
from timm.layers import PatchEmbed  # type: ignore[attr-defined]  # exported, but not declared so
import torch
from torch import Tensor, nn

from lit_distill.models.pixels import as_pair
from lit_distill.models.weights import other_depth_in, pick, read_state_dict


def timm_net(
    name: str,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    img_size: Sequence[int] | None = None,
    args: Mapping[str, Any] | None = None,
    new_head: bool = False,
) -> nn.Module:
    """Make a timm network, with random weights, timm's pretrained ones, or those of a file.

    Args:
        name: As ``timm.list_models()`` has it, with or without a tag.
        num_classes: Classes K; by default those of the weights, else timm's.
        pretrained: Take timm's pretrained weights, downloaded unless they are in the local cache.
        weights: File with the weights, or a state dict, instead. As timm's own they are brought to the network's size
            and channels.
        img_size: ``(height, width)`` in pixels; architectures that take any size are not told.
        args: Further arguments of ``timm.create_model``.
        new_head: Make a new classifier where the weights' is for another number of classes, which is an error else.

    Raises:
        ValueError: If the name is unknown, the weights are missing, unreadable, for another architecture or another
            number of classes, or timm refuses the arguments.

    Example:
        >>> timm_net("resnet18", num_classes=3).num_classes
        3
    """
    if not timm.is_model(name):
        family = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")
        near = ", ".join(nearest(name, family or timm.list_models()))
        raise ValueError(f"timm has no model {name!r}; near it: {near}; a class of yours is named by its dotted path")
    args = dict(args or {})
    if args.get("checkpoint_path"):  # some releases of timm run what is pickled there
        raise ValueError(f"give the file {args['checkpoint_path']} as weights=, not as timm's checkpoint_path")
    if img_size is not None or args.get("img_size") is not None:
        args["img_size"] = as_pair(args["img_size"] if img_size is None else img_size, "img_size")
    if not pretrained and weights is None:
        return _create(name, args if num_classes is None else {**args, "num_classes": num_classes}, False)
    if weights is None:
        rows = timm.get_pretrained_cfg_value(name, "num_classes")
        source: dict[str, Any] = {}
    else:
        # The classifier tells where in a checkpoint the network is, and how many classes it is for.
        classifier = timm.get_pretrained_cfg_value(name, "classifier") or "head"
        head = f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"
        state = pick(dict(weights) if isinstance(weights, Mapping) else read_state_dict(weights), head)
        rows = len(state[head]) if head in state else num_classes
        source = {"pretrained_cfg_overlay": {"state_dict": state, **({} if rows is None else {"num_classes": rows})}}
    if num_classes not in (None, rows) and not new_head:
        raise ValueError(
            f"num_classes is {num_classes}, but the weights of {name} are for {rows} classes: its head would be random"
        )
    # First the head that the weights are for, so that timm compares every key.
    model = _create(name, {**args, **({} if rows is None else {"num_classes": rows})}, True, weights, **source)
    if num_classes not in (None, rows):
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model


def _check_patches(name: str, model: nn.Module, img_size: Sequence[int]) -> None:
    embed = getattr(model, "patch_embed", None)
    if type(embed) is PatchEmbed and not embed.dynamic_img_pad:
        for side, patch in zip(img_size, embed.patch_size, strict=False):
            if side % patch:  # timm would leave out the last pixels
                raise ValueError(
                    f"{name} cuts images into patches of {patch} pixels, of which {side} is no multiple; "
                    f"the nearest are {side // patch * patch} and {(side // patch + 1) * patch}"
                )


def _create(name: str, args: dict[str, Any], pretrained: bool, weights: Any = None, **source: Any) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **source, **args)
    except Exception as error:  # hub, network, cache, architecture and arguments have no common base
        lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
        if lines[0].endswith("unexpected keyword argument 'img_size'"):
            args = {key: value for key, value in args.items() if key != "img_size"}
            return _create(name, args, pretrained, weights, **source)
        if lines[0].startswith("Error(s) in loading state_dict"):
            where = "" if isinstance(weights, Mapping) else f" in {weights}"
            said = other_depth_in(str(error)) + _differences(lines[1:])
            raise ValueError(f"the weights{where} are not for {name}: {said}") from error
        if pretrained and weights is None:
            raise ValueError(
                f"could not get timm's pretrained weights of {name}; give a local file as weights "
                f"(HF_HUB_OFFLINE=1 looks in the local cache alone, without retries): {lines[0]}"
            ) from error
        given = ", ".join(f"{key}={value}" for key, value in args.items())
        raise ValueError(f"timm cannot make {name} with {given}: {lines[0]}") from error
    _check_patches(name, model, args.get("img_size", ()))
    return model


def _differences(lines: Sequence[str]) -> str:
    first = " ".join(lines[0].split())
    return (first if len(first) < 200 else f"{first[:200]} ...") + (
        f" (and {len(lines) - 1} more)" if lines[1:] else ""
    )


def nearest(name: str, among: Sequence[str]) -> list[str]:
    """Return the three of ``among`` that are spelt most like ``name``.

    Example:
        >>> nearest("resnt", ["vgg", "resnet", "rexnet", "densenet"])
        ['resnet', 'rexnet', 'densenet']
    """
    return get_close_matches(name, among, n=3, cutoff=0.0)


def weights_at_hand(name: str) -> bool:
    """Tell whether timm's pretrained weights of a network are on this machine, so that nothing would be downloaded.

    Example:
        >>> weights_at_hand("resnet10t.untrained")
        False
    """
    try:
        source = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError):  # timm knows no such weights
        return False
    if source is None:
        return False
    if source.file:
        return Path(str(source.file)).is_file()
    if source.hf_hub_id:
        files = [source.hf_hub_filename] if source.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        return any(isinstance(try_to_load_from_cache(source.hf_hub_id, file), str) for file in files)
    return bool(source.url) and Path(torch.hub.get_dir(), "checkpoints", Path(str(source.url)).name).is_file()
