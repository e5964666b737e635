"""BatchNorm folded into the convolution before it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import copy
from inspect import Parameter, signature
from typing import NamedTuple, cast
import warnings

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lit_distill.checks import reason_of

# Subclasses may use their weights in another way, as those of a standardised convolution do.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# By name: who has no network of timm's need not import it.
_TIMMS_CONVOLUTION, _TIMMS_NORM = "timm.layers.conv2d_same.Conv2dSame", "timm.layers.norm_act.BatchNormAct2d"


class Pair(NamedTuple):
    """The dotted names of a convolution and of the BatchNorm that alone takes its output."""

    convolution: str
    norm: str

    def separators(self, network: nn.Module) -> list[nn.Module]:
        """Return the modules that hold one of the two alone: folding changes what those before the norm return."""
        convolution, norm = (set(_chain(name)) for name in self)
        return [network.get_submodule(name) for name in sorted(convolution ^ norm)]


def copy_sharing(network: nn.Module) -> nn.Module:
    """Copy the modules of a network, but not their tensors and hooks.

    A hook on a layer of the network, put there before or afterwards, is called by the same layer of the copy too.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> copy_sharing(network).weight is network.weight
        True
    """
    memo: dict[int, object] = {}
    for module in network.modules():
        kept = [value for name, value in vars(module).items() if name.startswith("_forward_") and "hooks" in name]
        kept += [tensor for store in (module._parameters, module._buffers) for tensor in store.values()]
        memo |= {id(value): value for value in kept}
    return copy.deepcopy(network, memo)


@contextmanager
def without_hooks(network: nn.Module) -> Iterator[None]:
    """Have no layer call its forward hooks while the block runs: what it computes is not for them."""
    stores = [module._forward_hooks for module in network.modules()]
    kept = [dict(store) for store in stores]
    for store in stores:
        store.clear()
    try:
        yield
    finally:
        for store, hooks in zip(stores, kept, strict=True):
            store.update(hooks)


def find_pairs(network: nn.Module) -> tuple[list[Pair], str | None]:
    """Find the BatchNorms of a network that can be folded into the convolution before them.

    ``torch.fx`` traces a copy; of a network that it cannot trace, it traces the parts. Nothing is changed.

    Returns:
        The pairs, and a note if BatchNorms are left out because the network cannot be traced.

    Example:
        >>> find_pairs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
        ([Pair(convolution='0', norm='1')], None)
    """
    norms = sum(isinstance(module, _BatchNorm) for module in network.modules())
    if norms == 0 or not any(isinstance(module, _CONVOLUTIONS) for module in network.modules()):
        return [], None
    reasons: list[str] = []
    try:
        # What a traced network draws or keeps must not reach the run.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), without_hooks(network):
            warnings.simplefilter("ignore")
            pairs = list(_pairs_of(copy_sharing(network), "", reasons))
    except Exception as error:  # whatever copying a network raises
        pairs, reasons = [], [reason_of(error)]
    count = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    pairs = [pair for pair in pairs if all(count[id(network.get_submodule(name))] == 1 for name in pair)]
    if not reasons or len(pairs) == norms:
        return pairs, None
    return pairs, (
        f"{norms - len(pairs)} of {norms} BatchNorms are not folded into convolutions, because torch.fx cannot trace "
        f"{type(network).__name__}: {reasons[0]}"
    )


@torch.no_grad()
def fold(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Fold each pair's BatchNorm into its convolution, which gets new parameters; in place.

    Computes in float64. An activation that timm's ``BatchNormAct2d`` brings stays in its place.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> fold(network, find_pairs(network)[0])
        >>> network[1]
        Sequential(
          (0): Identity()
        )
    """
    for pair in pairs:
        convolution, norm = network.get_submodule(pair.convolution), network.get_submodule(pair.norm)
        weight, bias = _folded(convolution, cast(_BatchNorm, norm))
        convolution.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        convolution.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
        left = [getattr(norm, name) for name in ("drop", "act")] if _path_of(norm) == _TIMMS_NORM else [nn.Identity()]
        network.set_submodule(pair.norm, nn.Sequential(*left).eval())


def _folded(convolution: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    def exact(tensor: object, default: float) -> Tensor:
        found = tensor if isinstance(tensor, Tensor) else torch.full((norm.num_features,), default)
        return found.detach().cpu().double()  # not every device has float64

    weight, bias = exact(convolution.weight, 0), exact(convolution.bias, 0)
    scale = exact(norm.weight, 1) / (exact(norm.running_var, 1) + norm.eps).sqrt()
    folded_bias = (bias - exact(norm.running_mean, 0)) * scale + exact(norm.bias, 0)
    folded_weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    like = cast(Tensor, convolution.weight)
    return folded_weight.to(like), folded_bias.to(like)


class _Tracer(fx.Tracer):
    """Looks into modules that have a convolution or a BatchNorm inside."""

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = (*_CONVOLUTIONS, _BatchNorm)
        return isinstance(m, kinds) or not any(isinstance(module, kinds) for module in m.modules())


def _pairs_of(network: nn.Module, prefix: str, reasons: list[str]) -> Iterator[Pair]:
    if not any(isinstance(module, _BatchNorm) for module in network.modules()) or isinstance(network, _BatchNorm):
        return
    parameters = signature(network.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    try:
        graph = _Tracer().trace(network, concrete_args=defaults)
    except Exception as error:  # whatever a network raises that is given no tensor
        reasons.append(reason_of(error))
        for name, child in network.named_children():
            yield from _pairs_of(child, f"{prefix}{name}.", reasons)
        return
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read_directly = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        pair = Pair(str(source.target), str(node.target))
        called_once = all(calls[name] == 1 and name not in read_directly for name in pair)
        if called_once and _fit(*(network.get_submodule(name) for name in pair)):
            yield Pair(*(prefix + name for name in pair))


def _fit(convolution: nn.Module, norm: nn.Module) -> bool:
    is_convolution = type(convolution) in _CONVOLUTIONS or _path_of(convolution) == _TIMMS_CONVOLUTION
    if not is_convolution or not (type(norm) in _NORMS or _path_of(norm) == _TIMMS_NORM):
        return False
    as_written = not any("forward" in vars(module) for module in (convolution, norm))
    mean = norm.running_mean
    return as_written and isinstance(mean, Tensor) and len(mean) == convolution.out_channels


def _path_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _chain(name: str) -> Iterator[str]:
    """Return a dotted name and those of the modules around it, without the network's own."""
    while name:
        yield name
        name = name.rpartition(".")[0]
