"""What a checkpoint keeps of the module's arguments, and how it is loaded without trusting it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
import inspect
from pathlib import Path
from types import FrameType

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import Tensor

from lit_distill.models.card import ABOUT
from lit_distill.models.described import check_arguments, parameters_of
from lit_distill.models.signature import is_own
from lit_distill.models.trust import class_named, described_by, trusting, without_weights
from lit_distill.models.weights import load_safely

# Arguments of LitDistiller that are modules or functions, or are made of them.
_OBJECTS = ("student", "teacher", "criterion", "distillation", "optimizer", "scheduler")
# Tensors in a state dict that are arguments of torch's losses.
_ARGUMENTS = ("criterion.weight", "criterion.pos_weight")


def save_plain_hyperparameters(module: LightningModule, frame: FrameType) -> None:
    """Save the arguments of a module that a safely loaded file may hold: no modules, no functions.

    Args:
        module: Under construction.
        frame: Of the ``__init__`` that is running.
    """
    # A subclass is made again from its own arguments; its code says what it gives to its base.
    constructors = collect_init_args(frame, [], classes=(type(module),))
    own_arguments = constructors[-1]
    plain = {name for name, value in own_arguments.items() if name not in _OBJECTS and not callable(value)}
    names = {name for arguments in constructors for name in arguments}
    module.save_hyperparameters(ignore=list(names - plain), frame=frame)
    for name, value in module.hparams.items():
        if isinstance(value, Path):  # which is refused in a file that is loaded safely
            module.hparams[name] = str(value)
    # The command line describes modules and functions by class path; objects would make the file unsafe to load.
    if "_instantiator" in module.hparams:
        module.save_hyperparameters(frame=frame)
        # A checkpoint brings its weights: the files that the student started from may be gone when it is loaded.
        module.hparams["student"] = without_weights(module.hparams.get("student"))


@contextmanager
def checked(path: Path, kind: type[LightningModule], trust: Iterable[str]) -> Iterator[Mapping[str, object]]:
    """Check a checkpoint's description of its module, and load the module within the block.

    Args:
        path: The checkpoint.
        kind: The class that is to be loaded.
        trust: Packages whose classes it may name.

    Yields:
        The hyper-parameters in the file.

    Raises:
        ValueError: If there is no such file, it is damaged, or names what it may not name.
    """
    checkpoint = load_safely(path, "checkpoint", mmap=True)
    named = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_KEY) or {}
    is_trusted = is_own(named, (checkpoint.get(ABOUT) or {}).get("signature"))
    # Older names of the key, which Lightning reads too, but no version of this module has written.
    if any(key in checkpoint for key in ("hparams", "module_arguments")):
        raise ValueError(f"refused {path}: it has hyper-parameters under a name of older versions of Lightning")
    with trusting([*trust, kind.__module__.partition(".")[0]]):
        if not is_trusted:
            _check_hyper_parameters(named, kind, path)
        with described_by(None if is_trusted else path):
            yield named


def leave_out_of(state: dict[str, Tensor], module: LightningModule) -> None:
    """Take out of a checkpoint's state what the module does not load from it.

    That is the class weights of torch's losses, which are arguments: the new run's count. And the parameters of
    distillation losses, if the module is loaded without distillation.
    """
    own_state = module.state_dict()
    without_distillation = getattr(module, "distillation", None) is None
    for name in list({**state, **own_state}):
        if name in _ARGUMENTS or (name.startswith("distillation.") and without_distillation):
            state.pop(name, None)
            if name in own_state:
                state[name] = own_state[name]


def takes_teacher(kind: type[LightningModule], named: Mapping[str, object]) -> bool:
    """Tell whether a class takes a teacher, and does not make its own."""
    return "teacher" in inspect.signature(kind).parameters or "teacher" in named


def _check_hyper_parameters(named: object, kind: type[LightningModule], path: Path) -> None:
    if not isinstance(named, dict):
        raise ValueError(f"refused {path}: its hyper-parameters are a {type(named).__name__}")
    if named.get("_instantiator") not in (None, "lightning.pytorch.cli.instantiate_module"):
        raise ValueError(f"refused {path}: it names {named['_instantiator']} to make its module")
    named_kind = class_named(named["_class_path"], path) if "_class_path" in named else kind
    # As Lightning does, leave out what the class does not take.
    taken = parameters_of(named_kind)
    check_arguments({key: value for key, value in named.items() if key in taken}, named_kind, path)
