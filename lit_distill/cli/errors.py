"""Turn an error into one line that names the mistake and, where it can be told, the mend."""

from collections.abc import Callable, Iterable
import errno
from pathlib import Path
from pkgutil import resolve_name
import re
import sys

from jsonargparse import ArgumentParser

from lit_distill import datamodules
from lit_distill.checks import did_you_mean
from lit_distill.files import DiskFullError
from lit_distill.models.weights import other_depth_in

# Whose subclasses are offered for a misspelt class. By name: Lightning takes seconds to import.
_BASES = (
    *("torch.nn.Module", "torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    *(f"lightning.pytorch.{name}" for name in ("LightningDataModule", "Callback", "loggers.Logger")),
)
# Errors whose message alone does not say what went wrong.
_TERSE = (KeyError, AttributeError, TypeError, IndexError)

# Messages of torch and Lightning for common mistakes in a user's data or flags, and what they mean.
_MEANINGS = {
    r"Target (-?\d+) is out of bounds": r"a target is \1, which is none of the student's classes: check num_classes",
    r"found <class 'PIL": "the data set returns Pillow images: end its transform with v2.ToImage() of torchvision",
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
    r"No space left on device": "no space left on the disk: free some and run the same command again",
    r"(?s)(could not get timm's pretrained weights of \S+; .*?give a local file as weights)(.*)": (
        r"\1, or, for a student, --model.student.pretrained=false\2"
    ),
    # From here on they are jsonargparse's.
    r"arguments are required: photos": "name a photo or a folder after the student: predict STUDENT photo.jpg",
    r"(?s)required.*\broot\b|\broot\b.* required": "required: --data.root, the folder of your photos",
    r"required: \S*model\.student.*": "required: --model.student; or begin with a recipe, such as --config digits",
    r'(?s)Parser key "([\w.]+)".*arguments are required: (\w+(?:, \w+)*)(?:\n.*|$)': (
        r"\1: required: \2; add --\1.NAME=VALUE for each"
    ),
    r"arguments are required: (?:(?:fit|validate|test|predict)\.)?(.+)": r"required: --\1",
}
# Lines of jsonargparse about the other branches of a union. They are never the mistake itself.
_NOISE = re.compile(
    r"^\s*(?:- )?(?:Expected a <class '[\w.]+'>$|Expected a path but|Does not validate against|Given value|Errors:|"
    r"Subtypes:|Problem with given class_path|Parser key|Not a valid subclass|Subclass types expect|a class path|"
    r"a dict with).*\n?",
    re.MULTILINE,
)


def one_line(error: BaseException, options: Iterable[str] = ()) -> str:
    """Return the innermost message of ``error`` as one line.

    Args:
        error: The error that ended the command.
        options: The command's options. A misspelt one is answered with the closest of them.

    Example:
        >>> one_line(ValueError("alpha must be in [0, 1], got 2"))
        'alpha must be in [0, 1], got 2'
        >>> one_line(ValueError("unrecognized arguments: --model.aplha=2"), ["--model.alpha"])
        "unknown option --model.aplha: did you mean '--model.alpha'?"
    """
    if isinstance(error, OSError):
        return _system_error(error)
    text = re.sub(r"^Call to compute_fn of link .*? failed: ", "", str(error).strip(), flags=re.DOTALL)
    for pattern, meaning in _MEANINGS.items():
        match = re.search(pattern, text)
        if match:
            return match.expand(meaning)
    if text.startswith("Error(s) in loading state_dict"):
        return _misfit(text)
    if "Parser key" not in text and (not text or isinstance(error, _TERSE)):
        return f"{type(error).__name__}: {text}"
    unknown = re.search(r"unrecognized arguments: --([^\s=]+)|does not accept (?:option|nested key) '(\S+)'", text)
    if unknown:
        return _unknown_option(f"--{unknown[1] or unknown[2]}", options)
    where = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    return f"{where}: {_argument_error(text)}" if where else _argument_error(text)


def _system_error(error: OSError) -> str:
    if isinstance(error, DiskFullError):
        return str(error)
    place = f" for {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk{place}: free some and run the same command again"
    if error.errno == errno.EFBIG:
        return f"the largest size of a file is too small{place}: raise ulimit -f, which shared memory obeys too"
    if not error.filename:
        return str(error)
    mend = "choose another folder; for logs with the logger's save_dir, or with --trainer.default_root_dir"
    if isinstance(error, FileNotFoundError):
        mend = f"looked in {Path.cwd()}"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        mend = "a file is where a folder is needed: choose another folder"
    return f"cannot use {error.filename}: {error.strerror}; {mend}"


def _misfit(text: str) -> str:
    """Name the first of torch's complaints about a state dict, with three of its keys."""
    first, *more = re.findall(r"\n\s*(.+)", text)
    first = re.sub(r'((?:"[^"]*", ){3}).*', r"\1...", first)
    others = f" (and {len(more)} more)" if more else ""
    return f"the checkpoint does not fit the model: {other_depth_in(text)}{first}{others}"


def _argument_error(text: str) -> str:
    """Return what is wrong with one argument, from jsonargparse's tree of messages."""
    for pattern, explain in _EXPLANATIONS.items():
        match = re.search(pattern, text)
        if match:
            return explain(*match.groups())
    # The last line of the innermost branch is the most indented one.
    lines = _NOISE.sub("", text).splitlines() if "Does not validate" in text else [" ".join(text.split())]
    if not lines:  # every branch of the union was refused for its type
        types, (value, *_) = re.findall(r"Expected a <class '([\w.]+)'>", text), re.findall(r"Given value: (.*)", text)
        return f"expected {' or '.join(types)}, got {value}"
    innermost = max(lines, key=lambda line: len(line) - len(line.lstrip()))
    message = re.sub(r'^\s*(?:- )?(?:Parser key "[^"]+":\s*)?', "", innermost)
    return re.sub(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*)\])(\. Got value:)?", _expected, message)


def _expected(match: re.Match[str]) -> str:
    return f"expected {match[1] or 'one of ' + match[2]}{', got' if match[3] else ''}"


def _unknown_option(option: str, options: Iterable[str]) -> str:
    # A parser knows the options of the data only when it knows their class.
    of_data = ArgumentParser().add_class_arguments(datamodules.ImageFolderDataModule, "data")
    known = [*options, *map("--{}".format, of_data)]
    elsewhere = [name for name in known if name.endswith(f".{option.lstrip('-')}")]
    return f"unknown option {option}: {did_you_mean(option, elsewhere or known, cutoff=0.0)}"


def _unknown_class(*names: str) -> str:
    path = ".".join(names)
    hint = did_you_mean(path.rpartition(".")[2], _classes_beside(path), count=3)
    return f"there is no class {path!r}: {hint}".rstrip(": ")


def _no_word_or_class(path: str, words: str) -> str:
    known = [*re.findall(r"'(\w+)'", words), *_classes_beside(path)]
    hint = did_you_mean(path.rpartition(".")[2], known, count=3)
    return f"expected {words} or a class, got {path!r}: {hint}".rstrip(": ")


def _classes_beside(path: str) -> set[str]:
    # Nothing is imported for a message: a file may have named the class.
    module = sys.modules.get(path.rpartition(".")[0])
    return set(dir(module)).union(*(_subclass_names(resolve_name(base)) for base in _BASES))


def _subclass_names(cls: type) -> set[str]:
    return {cls.__name__}.union(*map(_subclass_names, type.__subclasses__(cls)))


def _failed_import(path: str, missing: str) -> str:
    module = path.rpartition(".")[0]
    hint = did_you_mean(module, sys.modules, cutoff=0.8)
    place = f"there is no module {missing!r}, neither installed nor in {Path.cwd()}"
    return f"importing {module} failed: {place}; {hint}".rstrip("; ")


def _unknown_argument(path: str, name: str) -> str:
    cls = resolve_name(path) if path.rpartition(".")[0] in sys.modules else None
    known = ArgumentParser().add_class_arguments(cls) if isinstance(cls, type) else []
    hint = did_you_mean(name, known, cutoff=0.0) or "it takes none"
    return f"{path.rpartition('.')[2]} has no argument {name!r}: {hint}"


def _wrong_key(problem: str, key: str) -> str:
    problem = "unknown" if problem == "Unexpected" else "missing"
    return f"{problem} key {key!r}; each of several losses is {{loss: ..., weight: ...}}"


# What jsonargparse says of a class or an argument that does not exist, and who explains it.
_EXPLANATIONS: dict[str, Callable[..., str]] = {
    r"(Unexpected|Missing required) keys: \{'(\w+)'": _wrong_key,
    r"Expected a dot import path string: (\S+)\s+- Expected a typing\.Literal\[(.*)\]": _no_word_or_class,
    r"Expected a dot import path string: (\S+)": _unknown_class,
    r"(?s).*class_path '([\w.]+)':\s+(?:Option|Key) ['\"]([^'\"]+)['\"] is not (?:accepted|expected)": (
        _unknown_argument
    ),
    r"Subclasses are disabled for (\w+), thus '([\w.]+)'": (
        "expected the arguments of {0}, not {1}: your own transforms need an ImageDataModule of your own".format
    ),
    r"class_path '([\w.]+)':\s+No module named '([\w.]+)'": _failed_import,
    r"module '([\w.]+)' has no attribute '(\w+)'": _unknown_class,
}
