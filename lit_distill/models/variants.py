"""Ways to run a network, and the copies of it that run them."""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from lit_distill.models.folding import copy_sharing, find_pairs, fold

_Precision = Literal["trainer", "own", "autocast", "bf16"]
_WORDS: dict[_Precision, str] = {
    "trainer": "trainer's precision",
    "own": "own precision",
    "autocast": "bf16 autocast",
    "bf16": "bf16 weights",
}


class Variant(NamedTuple):
    """A way to run a network.

    Attributes:
        folded: BatchNorm is folded into convolutions.
        channels_last: Images and weights of convolutions are laid out by pixel.
        precision: ``"trainer"`` is whatever autocast is on, ``"own"`` the precision of the network's weights without
            autocast, ``"autocast"`` bfloat16 autocast, ``"bf16"`` bfloat16 weights.
        compiled: By ``torch.compile``.

    Example:
        >>> str(Variant(folded=True, precision="bf16")), Variant.parse("folded, bf16 weights").precision
        ('folded, bf16 weights', 'bf16')
    """

    folded: bool = False
    channels_last: bool = False
    precision: _Precision = "trainer"
    compiled: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("folded", "channels_last", "compiled") if getattr(self, name)]
        return ", ".join([*flags, _WORDS[self.precision]])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the variant whose ``str`` is ``text``; of another text the simplest."""
        words = text.split(", ")
        precision: _Precision = next((known for known, word in _WORDS.items() if word in words), "trainer")
        return cls("folded" in words, "channels_last" in words, precision, "compiled" in words)


PLAIN = Variant(precision="own")


class Structure:
    """What a network is made of, as long as none of its modules is replaced.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> Structure(network).copy(network, Variant(folded=True))[1]
        Sequential(
          (0): Identity()
        )
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules = list(network.modules())
        self.children = self._find_children()
        self.is_fixed = isinstance(network, torch.jit.ScriptModule) or any(map(_is_compiled, self.modules))
        self.pairs, self.note = ([], None) if self.is_fixed else find_pairs(network)
        # One convolution alone embeds patches.
        self.is_convolutional = sum(isinstance(module, nn.Conv2d) for module in self.modules) > 1
        self.stores = [store for module in self.modules for store in (module._parameters, module._buffers) if store]
        self.hooks = [(pair, [_hooks(module) for module in pair.separators(network)]) for pair in self.pairs]
        self.kept: set[int] = set()  # numbers of the pairs that were ever tapped

    def is_of(self, network: nn.Module) -> bool:
        """Tell whether this is still what the network is made of."""
        return self.modules[0] is network and self._find_children() == self.children

    def has_hooks(self) -> bool:
        """Tell whether somebody looks at a layer."""
        return any(module._forward_hooks for module in self.modules)

    def kept_pairs(self) -> frozenset[int]:
        """Return the numbers of the pairs that are not folded, because somebody looks between them."""
        self.kept |= {
            number
            for number, (_, modules) in enumerate(self.hooks)
            if any(hooks for stores in modules for hooks in stores)
        }
        return frozenset(self.kept)

    def weights(self) -> list[tuple[int, int]]:
        """Return what changes whenever a weight is replaced or written to."""
        tensors = (tensor for store in self.stores for tensor in store.values() if tensor is not None)
        return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]

    def copy(self, network: nn.Module, variant: Variant) -> nn.Module:
        """Make a copy of the network that runs a variant, with other tensors only where that needs them."""
        with torch.inference_mode(False), torch.no_grad():
            running = copy_sharing(network)
            if variant.folded:
                fold(running, [pair for number, pair in enumerate(self.pairs) if number not in self.kept])
            for module in running.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and (cast := _cast(parameter, variant)) is not None:
                        module._parameters[name] = nn.Parameter(cast, requires_grad=False)
                for name, buffer in module._buffers.items():
                    if buffer is not None and (cast := _cast(buffer, variant)) is not None:
                        module._buffers[name] = cast
        if variant.compiled:
            running.compile()
        return running

    def _find_children(self) -> list[nn.Module | None]:
        return [child for module in self.modules for child in module._modules.values()]


def _cast(tensor: Tensor, variant: Variant) -> Tensor | None:
    """Return the tensor in a variant's precision and layout, or None if it is so already."""
    dtype = torch.bfloat16 if variant.precision == "bf16" and tensor.is_floating_point() else tensor.dtype
    layout = torch.channels_last if variant.channels_last and tensor.dim() == 4 else torch.preserve_format
    cast = tensor.detach().to(dtype=dtype, memory_format=layout)
    return None if cast.data_ptr() == tensor.data_ptr() else cast


def _hooks(module: nn.Module) -> tuple[object, object]:
    return module._forward_hooks, module._forward_pre_hooks


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or isinstance(module, torch._dynamo.OptimizedModule)
