"""How a teacher's network is run: laid out, folded, in the precision and compiled as is fastest on the device."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn

from lit_distill.models.choice import fastest, remember, seconds_of_call
from lit_distill.models.folding import without_hooks
from lit_distill.models.output import StudentOutput
from lit_distill.models.variants import PLAIN, Structure, Variant

Compile = bool | Literal["auto"]
_SECONDS_TO_COMPILE = 60.0
_GAIN_OF_COMPILING = 0.25  # of the time of a call; more is rare
# Of the logits, or of the largest one if that is more than 1: in float32 on a CPU, and in any lower precision.
_EXACTLY, _ROUGHLY = 5e-5, 0.1


class FastNetwork:
    """Runs a network as fast as the device can, without changing it.

    Where that takes other weights it runs a copy, which follows every change of the network's weights. Before `tune`,
    and on a CPU for good, a rule decides: BatchNorm is folded, convolutions are channels_last, and the precision is the
    trainer's. So every rerun and every rank has the same bits. Whoever hooks a layer gets what it returns in the
    unfolded network.

    A variant that raises, or whose logits differ from the network's own, is left for the next simpler one.

    Args:
        fast: False runs the network as it is.
        channels_last: Whether to lay out by pixel; None decides.
        precision: What the user has chosen to compute in; None decides.
        compile: ``"auto"`` compiles on a GPU if that is measured to be faster and the run is long enough.

    Attributes:
        is_plain: True runs the network as it is, in the precision of its weights; see `plainly`.
        was_fast: Whether the last call ran something else than ``is_plain`` would.
        chosen: The variant that was measured or switched back to, and the device it is for; a checkpoint keeps it.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 6), nn.Flatten()).eval()
        >>> image, run = torch.rand(2, 3, 8, 8), FastNetwork()
        >>> bool(torch.allclose(run(network, image), network(image), atol=1e-4)), str(run.variant)
        (True, "folded, channels_last, trainer's precision")
    """

    def __init__(
        self,
        fast: bool = True,
        channels_last: bool | None = None,
        precision: torch.dtype | None = None,
        compile: Compile = "auto",  # noqa: A002  # torch's word
    ) -> None:
        self.fast, self.channels_last, self.precision, self.compile = fast, channels_last, precision, compile
        self.chosen: dict[str, str] = {}
        self.is_plain = self.was_fast = self.is_tuned = False
        own: Literal["trainer", "own"] = "trainer" if precision is None else "own"
        self.simplest = Variant(channels_last=bool(channels_last), precision=own)
        self._forget()

    def _forget(self) -> None:
        """Drop what was made from the network: it is made again."""
        self.variant = self.simplest  # what the last call ran
        self._structure: Structure | None = None
        self._copy: _Copy | None = None
        self._failed: set[tuple[Variant, torch.device]] = set()

    def __getstate__(self) -> dict[str, object]:
        made: dict[str, object] = {"variant": self.simplest, "_structure": None, "_copy": None, "_failed": set()}
        return {**self.__dict__, **made}

    def __call__(self, network: nn.Module, image: Tensor) -> object:
        """Return what the network answers to images as it was trained to see them, ``(B, C, H, W)``."""
        if self.is_plain:
            return self._ask(network, image, PLAIN)
        if not self.fast or torch.compiler.is_compiling() or image.is_meta:
            self.variant, self.was_fast = self.simplest, False
            return self._ask(network, image, self.simplest)
        running, self.variant = self._prepare(network, image, self._wanted(network, image.device))
        autocasts = self.variant.precision == "trainer" and torch.is_autocast_enabled(image.device.type)
        self.was_fast = running is not network or autocasts
        if running is network:
            return self._ask(network, image, self.variant)
        try:
            return self._ask(running, image, self.variant)
        except Exception:  # whatever the variant raises; if the images are to blame, the network raises too
            output = self._ask(network, image, self.simplest)
            self._failed.add((self.variant, image.device))
            self._copy = None
            return output

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Run the network as it is, in the precision of its weights, while the block runs."""
        was_plain, self.is_plain = self.is_plain, True
        try:
            yield
        finally:
            self.is_plain = was_plain

    def drop_copy(self) -> None:
        """Free the memory of the copy, which the next call makes again."""
        self._copy = None

    def note(self, network: nn.Module) -> str | None:
        """Return why BatchNorm is not folded, where it could be."""
        return self._structure_of(network).note if self.fast else None

    def switch_back(self, device: torch.device) -> None:
        """Run the network as it is from now on, also in a run that resumes this one."""
        self.chosen = {"variant": str(PLAIN), "device": _name(device)}

    def variant_on(self, device: torch.device) -> Variant:
        """Return the variant that was chosen for a device, else the simplest, whose precision the rule keeps to."""
        is_chosen = self.fast and self.chosen.get("device") == _name(device)
        return Variant.parse(self.chosen["variant"]) if is_chosen else self.simplest

    def is_rough(self, device: torch.device) -> bool:
        """Tell whether it is made to compute on a device in less than the precision of the network's weights."""
        precision = self.variant_on(device).precision
        autocasts = precision == "trainer" and torch.is_autocast_enabled(device.type)
        return self.fast and (autocasts or precision in ("autocast", "bf16"))

    def is_due(self, device: torch.device) -> bool:
        """Tell whether `tune` has anything to choose."""
        return self.fast and not self.is_tuned and is_measured_on(device)

    @torch.no_grad()
    def tune(self, network: nn.Module, image: Tensor, calls: float) -> None:
        """On a GPU, measure which variant is the fastest for images of this shape, and keep to it.

        All ranks call it together, and rank 0 decides. The choice is remembered for the device, the network and the
        shape, so a rerun has the same bits.

        Args:
            network: The network.
            image: Images as `__call__` gets them.
            calls: How often the network will be asked; only a long run pays for compiling.
        """
        if not self.is_due(image.device):
            return
        self.is_tuned = True
        is_alone = not (distributed.is_available() and distributed.is_initialized())
        choice = [self.chosen.get("variant") if self.chosen.get("device") == _name(image.device) else None]
        if choice == [None] and (is_alone or distributed.get_rank() == 0):
            choice = [remember(self._facts(network, image), lambda: str(self.measure(network, image, calls)))]
        if not is_alone:
            distributed.broadcast_object_list(choice, src=0)
        self.chosen = {"variant": str(choice[0]), "device": _name(image.device)}

    def measure(self, network: nn.Module, image: Tensor, calls: float) -> Variant:
        """Return the fastest variant; arguments as of `tune`."""

        def seconds(variant: Variant) -> float:
            running, prepared = self._prepare(network, image, variant)
            if prepared == variant:  # else it raised, or answered otherwise
                with suppress(Exception), without_hooks(network):  # out of memory, for one
                    return seconds_of_call(lambda: self._ask(running, image, variant), image.device)
            return float("inf")

        best, best_seconds = fastest(self.candidates(network, image.device), seconds)
        if self.compile == "auto" and _GAIN_OF_COMPILING * best_seconds * calls > _SECONDS_TO_COMPILE:
            best, _ = fastest([best, best._replace(compiled=True)], seconds)
        self._copy = None
        return best

    def candidates(self, network: nn.Module, device: torch.device) -> list[Variant]:
        """Return the variants to measure; of equally fast ones the first is taken, which is the most exact one."""
        rule = self._rule(network)
        layouts = [rule.channels_last]
        if self.channels_last is None and rule.channels_last:
            layouts.append(False)
        precisions = [rule.precision]
        if self.precision is None and _dtype_of(network) == torch.float32 and has_fast_bf16(device):
            autocasts = torch.is_autocast_enabled(device.type)
            precisions += ["bf16"] if autocasts else ["autocast", "bf16"]
        return [rule._replace(channels_last=layout, precision=each) for each in precisions for layout in layouts]

    def _rule(self, network: nn.Module) -> Variant:
        """Return the variant that is taken without measuring."""
        structure = self._structure_of(network)
        if structure.is_fixed:
            return self.simplest
        layout = structure.is_convolutional if self.channels_last is None else self.channels_last
        return Variant(bool(structure.pairs), layout, self.simplest.precision, self.compile is True)

    def _wanted(self, network: nn.Module, device: torch.device) -> Variant:
        rule = self._rule(network)
        if self.chosen and self.chosen.get("device") == _name(device):
            rule = Variant.parse(self.chosen["variant"])
        # Compiled code does not look for hooks that come later.
        return rule._replace(compiled=False) if rule.compiled and self._structure_of(network).has_hooks() else rule

    def _structure_of(self, network: nn.Module) -> Structure:
        if self._structure is None or not self._structure.is_of(network):
            self._forget()
            self._structure = Structure(network)
        return self._structure

    def _prepare(self, network: nn.Module, image: Tensor, variant: Variant) -> tuple[nn.Module, Variant]:
        """Return what runs a variant, or the next simpler one that answers like the network, and that variant."""
        structure = self._structure_of(network)
        if variant in (self.simplest, PLAIN):
            return network, variant
        state = (variant, image.device, structure.kept_pairs(), structure.weights())
        if self._copy is not None and self._copy.state == state:
            return self._copy.network, self._copy.variant
        own_precision = self.simplest.precision
        eager = variant._replace(compiled=False)
        for simpler in dict.fromkeys(
            [
                variant,
                eager,
                eager._replace(channels_last=self.simplest.channels_last),
                eager._replace(folded=False),
                eager._replace(precision=own_precision),
                eager._replace(precision=own_precision, channels_last=self.simplest.channels_last),
            ]
        ):
            if (simpler, image.device) in self._failed or simpler == self.simplest:
                continue
            with suppress(Exception):  # whatever copying, folding, compiling or the network raises
                running = structure.copy(network, simpler)
                if self._agrees(network, running, image, simpler):
                    self._copy = _Copy(running, simpler, state)
                    return running, simpler
            self._failed.add((simpler, image.device))
        self._copy = _Copy(network, self.simplest, state)
        return network, self.simplest

    def _agrees(self, network: nn.Module, running: nn.Module, image: Tensor, variant: Variant) -> bool:
        """Compare the logits for noise, the same on all ranks and in all runs."""
        shape = (len(image) if variant.compiled else min(2, len(image)), *image.shape[1:])
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), without_hooks(network):
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(image)
            expected = StudentOutput.of(self._ask(network, noise, self.simplest)).logits.float()
            logits = StudentOutput.of(self._ask(running, noise, variant)).logits.float()
        autocasts = variant.precision == "trainer" and torch.is_autocast_enabled(image.device.type)
        is_exact = image.device.type == "cpu" and _dtype_of(running) in (torch.float32, torch.float64) and not autocasts
        most = (_EXACTLY if is_exact else _ROUGHLY) * max(1.0, float(expected.abs().max()))
        return logits.shape == expected.shape and bool(((logits - expected).abs() <= most).all())

    def _ask(self, network: nn.Module, image: Tensor, variant: Variant) -> object:
        device = image.device.type
        if variant.channels_last and image.dim() == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        if variant.precision == "trainer":
            return network(image)
        if variant.precision == "autocast":
            with torch.autocast(device, torch.bfloat16):
                return network(image)
        precision = self.precision or _dtype_of(network) or image.dtype
        with torch.autocast(device, enabled=False):
            return network(image.to(torch.bfloat16 if variant.precision == "bf16" else precision))

    def _facts(self, network: nn.Module, image: Tensor) -> list[object]:
        """Return all that a measured choice depends on."""
        device = image.device
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        return [
            [torch.__version__, _name(device), torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()],
            [list(image.shape), str(_dtype_of(network)), str(autocast)],
            [self.channels_last, str(self.precision), self.compile],
            [(name, type(module).__name__) for name, module in network.named_modules()],
            [(name, list(parameter.shape)) for name, parameter in network.named_parameters()],
        ]


class _Copy(NamedTuple):
    network: nn.Module
    variant: Variant
    state: object  # what it was made for


def is_measured_on(device: torch.device) -> bool:
    """Tell whether variants are measured on a device; on a CPU a rule decides, and has the same bits each time."""
    return device.type == "cuda"


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 faster than in float32: NVIDIA's do since 2020."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _dtype_of(network: nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), None)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
