"""The configuration of a run, kept in its checkpoints, and recipes by name."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
import json
from pathlib import Path
import re
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from torch.nn import Module
from typing_extensions import override
import yaml

from lit_distill.checkpoint import check_archive
from lit_distill.cli.errors import one_line
from lit_distill.models import load_safely
from lit_distill.models.saved import ABOUT
from lit_distill.models.trust import check_run, is_own, sign, trusting, without_weights

# What a checkpoint says of the run it is from; test and predict need no more than data and model.
KEY = "lit_distill_config"
SIGNATURE = "lit_distill_signature"
# The flag that every command has.
TRUST: dict[str, Any] = {
    "type": list[str],
    "default": [],
    "help": "Package whose classes a checkpoint or an export may name too, such as --trust=my_package; once for each.",
}
_NOT_FIT = ("seed_everything", "num_threads", "trust", "model", "data")


class SaveRunConfig(SaveConfigCallback):
    """Keep the run's configuration beside the logs, as Lightning does, and in every checkpoint."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:  # else there is no folder of this run alone to write to
            super().setup(trainer, pl_module, stage)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        config = yaml.safe_load(
            self.parser.dump(self.config, skip_none=False, skip_link_targets=False, skip_validation=True)
        )
        config["model"]["student"] = without_weights(config["model"].get("student"))
        checkpoint[KEY] = {key: value for key, value in config.items() if key not in ("ckpt_path", "debug")}
        checkpoint[SIGNATURE] = sign(checkpoint[KEY])


def from_checkpoint(args: list[str], subcommands: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Put the configuration of the run that ``--ckpt_path`` is from before all other arguments, which override it.

    A run that this user has written on this machine may have named any class. Of other files, each name is checked
    before it is imported.

    Returns:
        That configuration, empty without one, and the new arguments.

    Raises:
        ValueError: If the checkpoint is missing, cannot be read, or names what it may not name.
    """
    path = _value_of(args, "--ckpt_path")
    at = next((i for i, arg in enumerate(args) if arg in subcommands), None)
    if path is None or at is None or path in ("best", "last", "hpc", "registry", "null"):
        return {}, args
    with trusting(json.loads(_value_of(args, "--trust") or "[]")):
        config = _read(Path(path))
    if args[at] != "fit":
        config = {key: config[key] for key in _NOT_FIT if key in config}
        given = any(arg.startswith("--model.teacher") for arg in args)
        if "model" in config and not given:
            config["model"]["teacher"] = None if args[at] == "predict" else _teacher_if_there(config["model"])
    else:
        loggers = (config.get("trainer") or {}).get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict):  # a folder of its own: nothing of the run before is written over
                (logger.get("init_args") or {}).pop("version", None)
    if not config:
        return {}, args
    return config, [*args[: at + 1], "--config", json.dumps(config), *args[at + 1 :]]


def one_trust(args: Sequence[str]) -> list[str]:
    """Return the arguments with all ``--trust NAME`` in one.

    Example:
        >>> one_trust(["export", "--trust", "a", "--ckpt_path=x.ckpt", "--trust=b"])
        ['export', '--ckpt_path=x.ckpt', '--trust=["a", "b"]']
    """
    left, names, following = [], [], iter(args)
    for arg in following:
        flag, given, value = arg.partition("=")
        if flag != "--trust":
            left.append(arg)
            continue
        names += re.findall(r"[\w.]+", value if given else next(following, ""))
    return [*left, f"--trust={json.dumps(names)}"] if names else left


def differences(checkpoint: Mapping[str, Any], config: Any) -> Iterator[tuple[str, str]]:
    """Say which choices replace the checkpoint's: the key of each, and a line about it."""
    now = {part: _plain(config.get(part)) for part in checkpoint}
    for key, shown, new, old in changes(checkpoint, now):
        yield key, f"{shown}={new} replaces the checkpoint's {old}"


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield where two configurations differ: the key, what it is called on the command line, and both values."""
    for part in [*then, *(part for part in now if part not in then)]:
        new, old = dict(_flat(now.get(part), part)), dict(_flat(then.get(part), part))
        replaced: tuple[str, ...] = ()  # of another class all arguments differ; to name the class is enough
        for key in [*old, *(key for key in new if key not in old)]:
            if new.get(key) == old.get(key) or key.startswith(replaced):
                continue
            if key.endswith(".class_path"):
                replaced += (key.removesuffix("class_path"),)
            yield key, key.replace(".init_args", "").removesuffix(".class_path"), new.get(key), old.get(key)


def recipe(args: list[str]) -> list[str]:
    """Replace a ``--config NAME`` that is no file by the package's recipe of that name.

    Raises:
        ValueError: If there is neither such a file nor such a recipe; names the nearest recipes.
    """
    out = list(args)
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag not in ("-c", "--config"):
            continue
        at = i if value else i + 1
        name = value or (args[at] if at < len(args) else "")
        bare = str(Path(name).parent) in (".", "configs")
        if not name or Path(name).is_file() or not bare or name.lstrip().startswith("{") or "\n" in name:
            continue
        out[at] = f"{flag}={_recipe_path(name)}" if value else _recipe_path(name)
    return out


def _recipe_path(name: str) -> str:
    recipes = {
        Path(str(path)).stem: str(path)
        for path in files("lit_distill.configs").iterdir()
        if str(path).endswith(".yaml")
    }
    found = recipes.get(Path(name).stem)
    if found is None:
        near = get_close_matches(Path(name).stem, recipes, n=2, cutoff=0.0)
        raise ValueError(
            f"no configuration file {name}, and no recipe of that name; the nearest recipes: {', '.join(near)}"
        )
    return found


def _read(path: Path) -> dict[str, Any]:
    checkpoint = load_safely(path, "checkpoint", mmap=True)
    check_archive(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no Lightning checkpoint: it has no state_dict")
    named, signature = checkpoint.get(KEY), checkpoint.get(SIGNATURE)
    if not isinstance(named, dict):  # of load_from_checkpoint and save_weights_only
        named, signature = checkpoint.get("hyper_parameters") or {}, (checkpoint.get(ABOUT) or {}).get("signature")
    if not is_own(named, signature):
        named = {key: value for key, value in named.items() if key not in ("trust", "config")}
        check_run(named, path)
    if isinstance(checkpoint.get(KEY), dict):
        return dict(named)
    model = {key: value for key, value in named.items() if not key.startswith("_")}
    return {"model": model} if "student" in model else {}


def _teacher_if_there(model: dict[str, Any]) -> Any:
    """Return the teacher's configuration, or None and a note where it cannot be built any more."""
    teacher = model.get("teacher")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--teacher", type=Module | None)
    try:
        instantiated(parser, {"teacher": teacher})
    except Exception as error:  # files, classes and whole packages may be gone
        print(f"note: going on without the teacher, its accuracy and agreement: {one_line(error)}")
        return None
    return teacher


def instantiated(parser: ArgumentParser, config: dict[str, Any]) -> Any:
    """Return the configuration with its objects made."""
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name until jsonargparse 4.50
    return make(parser.parse_object(config))


def _value_of(args: list[str], flag: str) -> str | None:
    value = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"{flag}="):
            value = arg.partition("=")[2]
    return value


def _plain(config: Any) -> Any:
    return config.as_dict() if hasattr(config, "as_dict") else config


def _flat(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flat(value, f"{prefix}.{key}")
    else:
        yield prefix, list(config) if isinstance(config, tuple) else config
