"""Networks by timm's names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import try_to_load_from_cache
import timm
from timm.layers.patch_embed import PatchEmbed
import torch
from torch import Tensor, nn

from lit_distill.checks import did_you_mean, reason_of
from lit_distill.models.packaged import how_to_install, packaged_bytes, packaged_weights
from lit_distill.models.pixels import as_pair
from lit_distill.models.weights import other_depth_in, pick, read_state_dict

Arguments = Mapping[str, Any]  # of a network by its name: what these are is the network's business


def timm_net(
    name: str,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    img_size: int | Sequence[int] | None = None,
    args: Arguments | None = None,
    new_head: bool = False,
) -> nn.Module:
    """Make a timm network, with random weights, timm's pretrained ones, or those of a file.

    Args:
        name: As ``timm.list_models()`` has it, with or without a tag.
        num_classes: Classes K; by default those of the weights, else timm's.
        pretrained: Take timm's pretrained weights: those of an installed package, such as ``lit-distill[teacher]``
            brings for ``tf_efficientnet_lite0``; else downloaded unless they are in the local cache.
        weights: File with the weights, or a state dict, instead. As timm's own they are brought to the network's size
            and channels.
        img_size: ``(height, width)`` in pixels, or one int; architectures that take any size are not told.
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
        near = did_you_mean(name, family or timm.list_models(), count=3, cutoff=0.0)
        raise ValueError(f"timm has no model {name!r}: {near} Give a class of yours by its dotted path")
    args = dict(args or {})
    if args.get("checkpoint_path"):  # some releases of timm run what is pickled there
        raise ValueError(f"give the file {args['checkpoint_path']} as weights=, not as timm's checkpoint_path")
    size = args.pop("img_size", None) if img_size is None else img_size
    if size is not None:
        args["img_size"] = as_pair(size, "img_size")
    source: dict[str, Any] = {"pretrained": pretrained or weights is not None}
    own_classes = num_classes
    if pretrained and weights is None:
        weights = packaged_weights(name)
    if weights is not None:
        state, own_classes = _state_and_classes(name, weights, num_classes)
        source |= {"pretrained_cfg_overlay": {"state_dict": state, **_classes(own_classes)}}
    elif pretrained:
        own_classes = timm.get_pretrained_cfg_value(name, "num_classes")
    if num_classes not in (None, own_classes) and not new_head:
        raise ValueError(
            f"num_classes is {num_classes}, but the weights of {name} are for {own_classes} classes: its head would be "
            "random"
        )
    # First the head that the weights are for, so that timm compares every key.
    model: Any = _create(name, args | _classes(own_classes), weights, source)
    if num_classes not in (None, own_classes):
        model.reset_classifier(num_classes)
    _check_patches(name, model, args.get("img_size", ()))
    network: nn.Module = model
    return network


def _classes(count: int | None) -> dict[str, int]:
    return {} if count is None else {"num_classes": count}


def _state_and_classes(
    name: str, weights: str | Path | Mapping[str, Tensor], num_classes: int | None
) -> tuple[dict[str, Tensor], int | None]:
    """Return the network's part of the weights, and the number of classes that they are for."""
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "head"  # it shows where the network is
    head = f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"
    state = pick(weights if isinstance(weights, Mapping) else read_state_dict(weights), head)
    return state, len(state[head]) if head in state else num_classes


def _create(name: str, args: Arguments, weights: object, source: Arguments) -> nn.Module:
    """Make the network as timm does, with errors of one line."""
    try:
        return timm.create_model(name, **source, **args)
    except Exception as error:  # hub, network, cache, architecture and arguments have no common base
        if str(error).endswith("unexpected keyword argument 'img_size'"):
            return _create(name, {key: value for key, value in args.items() if key != "img_size"}, weights, source)
        raise ValueError(_explain(error, name, args, weights, source)) from error


def _explain(error: Exception, name: str, args: Arguments, weights: object, source: Arguments) -> str:
    first, message = reason_of(error), str(error)
    if first.startswith("Error(s) in loading state_dict"):
        place = f" in {weights}" if isinstance(weights, (str, Path)) else ""
        differences = shorten(message.removeprefix(first), 300, placeholder=" ...")
        return f"the weights{place} are not for {name}: {other_depth_in(message)}{differences}"
    if source["pretrained"] and weights is None:
        package = how_to_install(name)
        return (
            f"could not get timm's pretrained weights of {name}; {package and f'{package}; or '}give a local file as "
            f"weights (HF_HUB_OFFLINE=1 looks in the local cache alone, without retries): {first}"
        )
    return f"timm cannot make {name} with {', '.join(f'{key}={value}' for key, value in args.items())}: {first}"


def _check_patches(name: str, model: nn.Module, img_size: Sequence[int]) -> None:
    """Refuse a size of which timm would leave out the last pixels."""
    embed = getattr(model, "patch_embed", None)
    if type(embed) is not PatchEmbed or embed.dynamic_img_pad:
        return
    for side, patch in zip(img_size, embed.patch_size, strict=False):
        if side % patch:
            raise ValueError(
                f"{name} cuts images into patches of {patch} pixels, of which {side} is no multiple; "
                f"the nearest are {side // patch * patch} and {(side // patch + 1) * patch}"
            )


def weights_at_hand(name: str) -> bool:
    """Tell whether timm's pretrained weights of a network are on this machine, so that nothing would be downloaded.

    Raises:
        ValueError: If they are in a package that is damaged or of another version.

    Example:
        >>> weights_at_hand("resnet10t.untrained")
        False
    """
    try:
        config = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError):  # timm knows no such weights
        config = None
    if config is None:
        return False
    if packaged_bytes(name) is not None:
        return True
    if config.hf_hub_id:
        files = [config.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
        return any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files)
    return bool(config.url) and Path(torch.hub.get_dir(), "checkpoints", Path(str(config.url)).name).is_file()
