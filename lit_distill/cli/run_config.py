"""The configuration of a run, kept in its checkpoints, and recipes by name."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
import json
from pathlib import Path
import re
import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import Module
from typing_extensions import override
import yaml

from lit_distill.checkpoint import check_archive
from lit_distill.cli.checkpoints import BestCheckpoint
from lit_distill.cli.errors import one_line
from lit_distill.models import load_safely
from lit_distill.models.card import ABOUT
from lit_distill.models.described import check_value
from lit_distill.models.signature import is_own, sign
from lit_distill.models.trust import described_by, trusting, without_weights
from lit_distill.module import LitDistiller

# What a checkpoint says of the run it is from; test and predict need no more than data and model.
KEY = "lit_distill_config"
SIGNATURE = "lit_distill_signature"
# The flag that every command has.
TRUST: dict[str, Any] = {
    "type": list[str],
    "default": [],
    "help": "Package whose classes a checkpoint or an export may name too, such as --trust=my_package; once for each.",
}
# Of another machine, or none of a file's business.
_MACHINE = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "plugins",
    "profiler",
    "default_root_dir",
    "model_registry",
)
_NOT_FIT = ("seed_everything", "num_threads", "trust", "model", "data")
_SECTIONS = (*_NOT_FIT, "trainer", "retrospection", "checkpoint")


class SaveRunConfig(SaveConfigCallback):
    """Keep the run's configuration in the folder of its logs, and in every checkpoint, weights alone or whole."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        # Lightning's own place is the logger's save_dir where that is no CSVLogger, which all runs share.
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})
        self.text = ""  # the configuration as YAML, from `setup` on: a dump takes a tenth of a second

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.text = self.parser.dump(self.config, skip_none=False)
        super().setup(trainer, pl_module, stage)
        config = yaml.safe_load(self.text)
        config["model"]["student"] = without_weights(config["model"].get("student"))
        kept = {key: value for key, value in config.items() if key not in ("ckpt_path", "debug")}
        # Not in a hook of this callback: Lightning calls none for a checkpoint of weights alone.
        pl_module.kept_in_checkpoints = {KEY: kept, SIGNATURE: sign(kept)}  # type: ignore[assignment]

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.loggers:  # no folder of this run alone
            return
        folder = folder_of(trainer.loggers[0], trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        while path.exists():  # that of the run which this one goes on from
            path = folder / f"config-{len(list(folder.glob('config*.yaml')))}.yaml"
        path.write_text(self.text)


def folder_of(logger: Logger, default: str) -> Path:
    """Return the folder of one run of a logger, in which Lightning keeps its checkpoints."""
    if logger.log_dir is not None:
        return Path(logger.log_dir)
    version = logger.version
    return Path(
        logger.save_dir or default, str(logger.name), version if isinstance(version, str) else f"version_{version}"
    )


def check_folders(trainer: Trainer, resumes: bool) -> None:
    """Refuse a folder with another run's logs, before a logger replaces them.

    Args:
        trainer: Has the loggers, which have written nothing yet.
        resumes: Whether the run goes on from a checkpoint; it may then log to the same place, if that adds to it.

    Raises:
        ValueError: If there are such logs.
    """
    for logger in trainer.loggers if trainer.is_global_zero else []:
        folder = folder_of(logger, trainer.default_root_dir)
        # A CSVLogger deletes those of another run.
        if (folder / "metrics.csv").exists() or ((folder / "config.yaml").exists() and not resumes):
            raise ValueError(
                f"{folder} has the logs of another run, and they are not overwritten: choose another version of the "
                "logger, such as --trainer.logger.version=null for the next free one"
            )


def from_checkpoint(args: list[str], subcommands: Collection[str]) -> tuple[dict[str, Any], list[str], Path | None]:
    """Put the configuration of the run that ``--ckpt_path`` is from before all other arguments, which override it.

    A run that this user has written on this machine may have named any class. Of other files, each name is checked
    before it is imported.

    Returns:
        That configuration, empty without one; the new arguments; and the checkpoint if somebody else wrote it.

    Raises:
        ValueError: If the checkpoint is missing, cannot be read, or names what it may not name.
    """
    path = _value_of(args, "--ckpt_path")
    at = next((i for i, arg in enumerate(args) if arg in subcommands), None)
    if path is None or at is None or path in ("best", "last", "hpc", "registry", "null"):
        return {}, args, None
    trust = json.loads(_value_of(args, "--trust") or "[]")
    with trusting(trust):
        config, foreign = _read(Path(path), _SECTIONS if args[at] == "fit" else _NOT_FIT)
    if args[at] != "fit":
        given = any(arg.startswith("--model.teacher") for arg in args)
        if "model" in config and not given:
            with trusting(trust), described_by(foreign):
                config["model"]["teacher"] = None if args[at] == "predict" else _teacher_if_there(config["model"])
    else:
        loggers = (config.get("trainer") or {}).get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict):  # a folder of its own: nothing of the run before is written over
                (logger.get("init_args") or {}).pop("version", None)
    if not config:
        return {}, args, foreign
    return config, [*args[: at + 1], "--config", json.dumps(config), *args[at + 1 :]], foreign


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
        if old is None and key.startswith(("data.", "trainer.", "checkpoint.")):
            continue  # nothing was chosen before
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


def _read(path: Path, sections: Collection[str]) -> tuple[dict[str, Any], Path | None]:
    """Return the configuration of a run, and the file if this user has not written it on this machine."""
    checkpoint = load_safely(path, "checkpoint", mmap=True)
    check_archive(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no Lightning checkpoint: it has no state_dict")
    named, signature = checkpoint.get(KEY), checkpoint.get(SIGNATURE)
    if not isinstance(named, dict):  # of load_from_checkpoint and save_weights_only
        named, signature = checkpoint.get("hyper_parameters"), (checkpoint.get(ABOUT) or {}).get("signature")
        named = named if isinstance(named, dict) else {}
    is_users_own = is_own(named, signature)
    if not isinstance(checkpoint.get(KEY), dict):
        model = {key: value for key, value in named.items() if not key.startswith("_")}
        named = {"model": model} if "student" in model else {}
    named = {key: named[key] for key in sections if key in named}
    return (named, None) if is_users_own else (_foreign(named, path), path)


def _foreign(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what may be taken from somebody else's run: not its machine, and no folder outside this one.

    Raises:
        ValueError: If it names what a file may not name.
    """
    config = {key: value for key, value in config.items() if key != "trust"}
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        config["trainer"] = {key: value for key, value in trainer.items() if key not in _MACHINE}
    for key, kind in (("model", LitDistiller), ("trainer", Trainer), ("checkpoint", BestCheckpoint)):
        check_value(config.get(key), kind, key, path)
    check_value(config.get("data"), LightningDataModule, "data", path)
    check_value(config.get("retrospection"), Callback, "retrospection", path)
    for key in ("seed_everything", "num_threads"):
        check_value(config.get(key), int, key, path)
    for part in ("trainer", "checkpoint"):
        if part in config:
            config[part] = _inside(config[part], part)
    return config


def _inside(config: Any, key: str) -> Any:
    """Return a part of a configuration whose folders and files lie in the current folder."""
    if isinstance(config, dict):
        return {name: _inside(value, f"{key}.{name}") for name, value in config.items()}
    if isinstance(config, str) and (Path(config).is_absolute() or ".." in Path(config).parts or "://" in config):
        inside = Path(config).name.replace("..", "")
        rank_zero_only(print)(f"note: {key}={inside}, not {config}: the checkpoint is from elsewhere", file=sys.stderr)
        return inside
    return config


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
