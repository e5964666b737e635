"""An error as one line that names the mistake and, where it can be told, the mend."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
import errno
import inspect
from pathlib import Path
import re
import sys
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_distill.checkpoint import DiskFullError
from lit_distill.datamodules import FilesDataModule, ImageFolderDataModule
from lit_distill.models.weights import other_depth_in

_BASES = (nn.Module, LightningDataModule, Callback, Optimizer, LRScheduler, Logger)
# What jsonargparse says of the other branches of a union; never the mistake itself.
_NOISE = (
    "Expected a <class",
    "Expected a path but",
    "Does not validate against",
    "Given value",
    "Errors:",
    "Subtypes:",
    "Problem with given class_path",
    "Not a valid subclass",
    "Subclass types expect",
    "a class path (str)",
    "a dict with",  # class_path, or parameters
)
# What torch says of the commonest mistakes in somebody's data, and what is meant.
_MEANINGS = {
    r"Target (-?\d+) is out of bounds": r"a target is \1, which is none of the student's classes: check num_classes",
    r"found <class 'PIL": "the data set returns Pillow images: end its transform with v2.ToImage() of torchvision",
    r"Found more than one stateful callback of type `(\w+)`": (
        r"two callbacks of class \1 would write over each other's state: remove one, or give each its own criterion"
    ),
    r"You restored a checkpoint with current_epoch=(\d+), but you have set Trainer\(max_epochs=(\d+)\)": (
        r"the checkpoint's last epoch is \1, counted from 0, and max_epochs is \2: set --trainer.max_epochs higher"
    ),
    r"DataLoader worker \(pid\S* (\d+)\) is killed by signal: Killed": (
        r"worker \1 of the data loader was killed: out of memory? Fewer --data.num_workers or a smaller "
        r"--data.batch_size need less"
    ),
    r"checkpoint contains only the model": (
        r"this checkpoint holds weights alone, from which no run goes on: resume from last.ckpt, or start anew with "
        r"--model.student.weights="
    ),
    r"'utf-8' codec can't encode character.*surrogates not allowed": (
        "a name that is no UTF-8 cannot be written into a configuration: rename it"
    ),
    r"No space left on device": r"no space left on the disk: free some and run the same command again",
    r"stack expects each tensor to be equal size, but got (\[.*?\]) at entry 0 and (\[.*?\])": (
        r"images of different sizes, \1 and \2, make no batch: resize or crop them in the transform"
    ),
}


def one_line(error: BaseException, options: Iterable[str] = ()) -> str:
    """Return the innermost message of ``error`` as one line.

    Args:
        error: What was raised.
        options: The command's options, of which the nearest is named for a misspelt one.

    Example:
        >>> one_line(ValueError("alpha must be in [0, 1], got 2"))
        'alpha must be in [0, 1], got 2'
        >>> one_line(ValueError("unrecognized arguments: --model.aplha=2"), ["--model.alpha"])
        'unknown option --model.aplha; the nearest is --model.alpha'
    """
    text = re.sub(r"^Call to compute_fn of link .*? failed: ", "", str(error).strip(), flags=re.DOTALL)
    if isinstance(error, DiskFullError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        file = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{file}: free some and run the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        mend = "; for logs choose another folder with the logger's save_dir, or with --trainer.default_root_dir"
        if isinstance(error, FileNotFoundError):
            mend = f"; looked in {Path.cwd()}"
        return f"cannot use {error.filename}: {error.strerror}{mend}"
    for pattern, meaning in _MEANINGS.items():
        found = re.search(pattern, text)
        if found:
            return found.expand(meaning)
    if not text or isinstance(error, (KeyError, AttributeError, TypeError, IndexError)):
        text = f"{type(error).__name__}: {text}" if "Parser key" not in text else text
    if text.startswith("Error(s) in loading state_dict"):
        details = [line.strip() for line in text.split("\n")[1:]]
        more = f" (and {len(details) - 1} more)" if details[1:] else ""
        kind, _, keys = details[0].partition(": ")
        first = keys.split(", ")
        shown = ", ".join(first[:3]) + (f", ... {len(first)} in all" if len(first) > 3 else "")
        depths = other_depth_in(text)
        return f"the checkpoint does not fit the model: {depths}{kind}{shown and ': '}{shown}{more}"
    required = re.fullmatch(r"the following arguments are required: (.+)", text)
    if required:
        flags = ", ".join(f"--{name.partition('.')[2] or name}" for name in required[1].split(", "))
        recipe = "; or begin with a recipe, such as --config digits" if "--model.student" in flags else ""
        return f"required: {flags}{recipe}"
    key = re.search(r'Parser key "([^"]+)"', text)
    inner = re.findall(r'Parser key "([^"]+)"', text)[1:]
    where = f"{'.'.join([key[1], *inner])}: " if key else ""
    text = re.sub(r'([\w.]+: )*Parser key "[^"]+":', "", text) if key else text
    unknown = re.search(
        r"unrecognized arguments: (\S+)|does not accept (?:option|nested key) '(\S+)'", text, re.IGNORECASE
    )
    if unknown:
        return _unknown_option((unknown[1] or f"--{unknown[2]}").partition("=")[0], options)
    attribute = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text)
    if attribute:
        return where + _unknown_class(f"{attribute[1]}.{attribute[2]}")
    missing = re.search(r"Expected a dot import path string: (\S+)", text)
    if missing:
        return where + _unknown_class(missing[1])
    wrong_key = re.search(r"(Unexpected|Missing required) keys: \{'(\w+)'", text)
    if wrong_key:
        problem = "unknown" if wrong_key[1] == "Unexpected" else "missing"
        return f"{where}{problem} key {wrong_key[2]!r}; each of several losses is {{loss: ..., weight: ...}}"
    refused = re.search(r"(?:Option|Key) ['\"]([^'\"]+)['\"] is not (?:accepted|expected)", text)
    class_paths = re.findall(r"class_path '([\w.]+)'", text[: refused.start()]) if refused else []
    if refused and class_paths:  # the last is the innermost
        return where + _unknown_argument(class_paths[-1], refused[1])
    unreadable = re.search(r"Problem with given class_path '([^']+)':\s*(.+)", text)
    if unreadable and re.search(r"import|attribute|module", unreadable[2], re.IGNORECASE):
        return where + _unknown_class(unreadable[1], unreadable[2])
    return where + _choices(_innermost(text))


def _innermost(text: str) -> str:
    """Return the most indented message of jsonargparse's tree that is not about another branch of a union."""
    if "Does not validate against any of the Union" not in text:
        return " ".join(text.split())
    lines = [(len(line) - len(line.lstrip()), line.strip().removeprefix("- ")) for line in text.split("\n")]
    said = [(depth, line) for depth, line in lines if line and not line.startswith(_NOISE)]
    if not said:  # every branch was refused for its type
        depth, value = max((depth, line) for depth, line in lines if line.startswith("Given value: "))
        types = [
            re.sub(r".*'([\w.]+)'.*", r"\1", line)
            for d, line in lines
            if line.startswith("Expected a <") and d >= depth
        ]
        value = re.sub(r"^NestedArg\(key='\w+', val=(.*)\)$", r"\1", value.removeprefix("Given value: "))
        colon = "; in YAML a space follows every colon" if re.match(r"\{\w+:\S", value) else ""
        return f"expected one of {', '.join(types)}, got {value}{colon}"
    return max(said, key=lambda pair: pair[0])[1]


def _choices(text: str) -> str:
    """Say Python's name of a choice in words."""
    return re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", text)


def _unknown_option(option: str, options: Iterable[str]) -> str:
    # Of the data's arguments a parser knows none before it knows the class.
    arguments = inspect.signature(ImageFolderDataModule).parameters | inspect.signature(FilesDataModule).parameters
    known = [*options, *(f"--data.{name}" for name in arguments if name != "kwargs")]
    same = [name for name in known if name.rpartition(".")[2] == option.lstrip("-")]
    near = same[:1] or get_close_matches(option, list(options), n=1, cutoff=0.0)
    return f"unknown option {option}" + (f"; the nearest is {near[0]}" if near else "")


def _unknown_class(path: str, reason: str = "") -> str:
    module, _, name = path.rpartition(".")
    missing = re.match(r"No module named '([\w.]+)'", reason)
    if missing and not module.startswith(missing[1]):  # the module is there, and needs one that is not
        return f"importing {module} failed: ModuleNotFoundError: {missing[0]}"
    # Nothing is imported for a message: what is named here may come from a file.
    loaded = sys.modules.get(module)
    root = module.partition(".")[0]
    near_root = get_close_matches(root, ["lit_distill", "lightning", "torch", "torchvision", "timm"])
    if module and loaded is None and root not in sys.modules and not near_root:
        return f"there is no module {root!r}, neither installed nor in {Path.cwd()}"
    public_names = [public for public in vars(loaded) if not public.startswith("_")] if loaded is not None else []
    known = set(public_names)
    if not public_names or module.startswith("lit_distill"):
        known |= {cls.__name__ for cls in _subclasses(_BASES) if not cls.__name__.startswith("_")}
    near = get_close_matches(name, known, n=3, cutoff=0.5) or get_close_matches(name, known, n=1, cutoff=0.0)
    return f"there is no class {path!r}; the nearest known: {', '.join(near)}"


def _unknown_argument(class_path: str, name: str) -> str:
    module, _, kind_name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module), kind_name, None)
    accepted: list[str] = []
    for cls in kind.__mro__ if isinstance(kind, type) else [kind]:  # what takes keywords passes them on to the next
        if not callable(cls):
            break
        parameters = inspect.signature(cls).parameters
        accepted += [arg for arg, how in parameters.items() if how.kind not in (how.VAR_POSITIONAL, how.VAR_KEYWORD)]
        if not any(how.kind is how.VAR_KEYWORD for how in parameters.values()):
            break
    near = get_close_matches(name, accepted, n=1, cutoff=0.0)
    return f"{class_path.rpartition('.')[2]} has no argument {name!r}" + (
        f"; the nearest is {near[0]!r}" if near else ""
    )


def _subclasses(bases: Iterable[type[Any]]) -> Iterator[type[Any]]:
    for base in bases:
        cls: type[Any]
        for cls in base.__subclasses__():
            yield cls
            yield from _subclasses([cls])
