"""Start from the configuration of the run that ``--ckpt_path`` is from."""

from collections.abc import Collection, Mapping, Sequence
import copy
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import Module

from lit_distill.checkpoint import check_archive
from lit_distill.cli.arguments import take
from lit_distill.cli.changes import as_list, map_leaves
from lit_distill.cli.checkpoints import BestCheckpoint
from lit_distill.cli.errors import one_line
from lit_distill.cli.run_config import KEY, SIGNATURE
from lit_distill.models import load_safely
from lit_distill.models.described import check_value
from lit_distill.models.signature import is_own
from lit_distill.models.trust import described_by, trusting
from lit_distill.module import LitDistiller

# Values of --ckpt_path that Lightning finds a file for.
_BY_LIGHTNING = (None, "best", "last", "hpc", "registry", "null")
# What each place of a configuration expects.
_EXPECTED: dict[str, type] = {
    "model": LitDistiller,
    "data": LightningDataModule,
    "trainer": Trainer,
    "retrospection": Callback,
    "teacher_cache": Callback,
    "checkpoint": BestCheckpoint,
    "seed_everything": int,
    "num_threads": int,
}
_WITHOUT_FIT = ("seed_everything", "num_threads", "trust", "model", "data")  # all that test and predict need
_SECTIONS = (*_WITHOUT_FIT, "trainer", "retrospection", "teacher_cache", "checkpoint")
# Arguments of the trainer that are about another machine, or not for a file to choose.
_MACHINE = (
    *("accelerator", "strategy", "devices", "num_nodes"),
    *("plugins", "profiler", "default_root_dir", "model_registry"),
)


class Origin(NamedTuple):
    """The run that a command starts from."""

    config: dict[str, Any]
    """Its configuration, empty without a checkpoint."""
    foreign: Path | None = None
    """The checkpoint, if somebody else wrote it."""


def from_checkpoint(args: Sequence[str]) -> tuple[Origin, list[str]]:
    """Put the configuration of the run that ``--ckpt_path`` is from before all other arguments, which override it.

    A run that this user has written on this machine may name any class. Each name in another file is checked before it
    is imported.

    Args:
        args: The arguments, from the command on.

    Raises:
        ValueError: If the checkpoint is missing, cannot be read, or names what it may not name.
    """
    command, others = list(args[:1]), args[1:]
    values, _ = take(others, "--ckpt_path", "--trust")
    path = [None, *values.ckpt_path][-1]
    if path in _BY_LIGHTNING:
        return Origin({}), list(args)
    trust = json.loads(["[]", *values.trust][-1])
    with trusting(trust):
        origin = _read(Path(path), _SECTIONS if command == ["fit"] else _WITHOUT_FIT)
    config = origin.config
    if command == ["fit"]:
        for logger in as_list(config.get("trainer", {}).get("logger")):
            if isinstance(logger, dict):  # it chooses a new folder, so that nothing of the run before is overwritten
                logger.get("init_args", {}).pop("version", None)
    elif "model" in config and not any(arg.startswith("--model.teacher") for arg in others):
        with trusting(trust), described_by(origin.foreign):
            teacher = None if command == ["predict"] else _teacher_if_there(config["model"].get("teacher"))
        config["model"]["teacher"] = teacher
    return origin, [*command, "--config", json.dumps(config), *others]


def _read(path: Path, sections: Collection[str]) -> Origin:
    checkpoint = load_safely(path, "checkpoint", mmap=True)
    check_archive(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no Lightning checkpoint: it has no state_dict")
    if KEY not in checkpoint:  # written by Python code
        return Origin({})
    signed = checkpoint[KEY]
    config = {key: signed[key] for key in sections if key in signed}
    is_foreign = not is_own(signed, checkpoint.get(SIGNATURE))
    _keep_sums(config.get("model", {}).get("teacher"))
    return Origin(_safe(config, path), path) if is_foreign else Origin(config)


def _keep_sums(teacher: object) -> None:
    """Let the teacher of a run from before there were priors go on as it began: it summed its groups."""
    arguments = teacher.get("init_args") if isinstance(teacher, dict) else None
    if isinstance(arguments, dict) and arguments.get("classes") and "target_prior" not in arguments:
        arguments["target_prior"] = "teacher"


def _safe(config: Mapping[str, object], path: Path) -> dict[str, object]:
    """Return what may be taken from somebody else's run: no choice of a machine, and no folder outside this one.

    Raises:
        ValueError: If it names what a file may not name.
    """
    safe = {key: value for key, value in config.items() if key != "trust"}
    trainer = safe.get("trainer")
    if isinstance(trainer, dict):
        safe["trainer"] = {key: value for key, value in trainer.items() if key not in _MACHINE}
    for key, kind in _EXPECTED.items():
        check_value(safe.get(key), kind, key, path)
    return safe | {
        key: map_leaves(safe[key], _inside) for key in ("trainer", "teacher_cache", "checkpoint") if key in safe
    }


def _inside(value: object) -> object:
    """Return a file or folder that lies in the current folder; other values as they are."""
    path = Path(str(value))
    if not isinstance(value, str) or not (path.is_absolute() or ".." in path.parts or "://" in value):
        return value
    inside = path.name.replace("..", "")
    rank_zero_only(print)(f"note: using {inside}, not {value}: the checkpoint is from elsewhere", file=sys.stderr)
    return inside


def _teacher_if_there(teacher: object) -> object:
    """Return the teacher's configuration, or None and a note if it cannot be built any more."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--teacher", type=Module | None)
    try:
        instantiated(parser, {"teacher": copy.deepcopy(teacher)})  # parsing writes into lists
    except Exception as error:  # files, classes and whole packages may be gone
        print(f"note: going on without the teacher, its accuracy and agreement: {one_line(error)}")
        return None
    return teacher


def instantiated(parser: ArgumentParser, config: dict[str, object]) -> Namespace:
    """Return the configuration with its objects made."""
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name until jsonargparse 4.50
    objects: Namespace = make(parser.parse_object(config))
    return objects
