"""Taps: what layers inside a network return, by their names."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from lit_distill.checks import did_you_mean


@contextmanager
def tapped(network: nn.Module, layers: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the layers of these dotted names return while the block runs.

    Forward hooks do it, and the end of the block removes them. A name of no layer is ignored. If a layer is called
    several times, the last output stays; if it returns a tuple, the first part. A compiled network must be tapped from
    its first training step on: torch does not look for hooks again once it has compiled that.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> with tapped(network, ["0"]) as features:
        ...     logits = network(torch.ones(2, 1, 2, 2))
        >>> features["0"].shape
        torch.Size([2, 4])
    """
    features: dict[str, Tensor] = {}
    found = {name: layer for name in layers if (layer := _find_layer(network, name)) is not None}
    handles = [layer.register_forward_hook(partial(_keep_output, features, name)) for name, layer in found.items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def check_features(features: Mapping[str, Tensor], layers: Iterable[str], network: nn.Module, owner: str) -> None:
    """Check that there is a feature for each name.

    Args:
        features: Those that the network returned, and those of `tapped`.
        layers: The names wanted.
        network: Whose layers the message names.
        owner: What the message calls the network.

    Raises:
        ValueError: If there is none; names the nearest.
    """
    for name in sorted(set(layers) - set(features)):
        if _find_layer(network, name) is not None:
            raise ValueError(
                f"the {owner}'s layer {name!r} gave no tensor: it was not called, or the network had been trained "
                "compiled before; name another layer, or compile the network anew"
            )
        known = [*features, *(layer for layer, _ in network.named_modules() if layer)]
        hint = did_you_mean(name, known, count=3, cutoff=0.0)
        raise ValueError(f"the {owner} {type(network).__name__} has no layer {name!r}; {hint or 'it has no layers'}")


def _find_layer(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)  # through torch.compile's wrappers too
    except AttributeError:
        return None


def _keep_output(
    features: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[object, ...], output: object
) -> None:
    output = output[0] if isinstance(output, tuple) and output else output
    if isinstance(output, Tensor):
        features[name] = output
