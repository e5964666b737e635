"""Lightning's command line with a teacher, a student and retrospection on it."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
import inspect
from pathlib import Path
from pkgutil import resolve_name
import re
import sys
from typing import Any
import warnings

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import register_type
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, ModuleType, _InstantiatorFn
from lightning.pytorch.utilities import rank_zero_only
import torch
from typing_extensions import override

from lit_distill._lazy import import_all
from lit_distill.callbacks import (
    DivergenceCheck,
    LearningWithRetrospection,
    RunSummary,
    StepSeed,
    TeacherCaching,
    TeacherCheck,
)
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.checks import did_you_mean
from lit_distill.cli.arguments import add_common_flags, parse, with_class_names, with_recipes
from lit_distill.cli.changes import as_list, changes
from lit_distill.cli.checkpoints import BestCheckpoint, LastCheckpoint
from lit_distill.cli.from_checkpoint import Origin, from_checkpoint
from lit_distill.cli.outputs import keep_out_of_data
from lit_distill.cli.predictions import write_predictions
from lit_distill.cli.progress import all_callbacks, callbacks_of, is_dry_run
from lit_distill.cli.run_config import SaveRunConfig, check_folders
from lit_distill.cli.stopping import Stopping, resumable
from lit_distill.models import TimmStudent
from lit_distill.models.saved import origin_of
from lit_distill.models.trust import described_by, trusting
from lit_distill.module import LitDistiller

import_all("lit_distill", "lit_distill.models", "lit_distill.losses", "lit_distill.datamodules")

# Callbacks that search before training, and what a resumed run does without the search.
_SEARCHES: dict[type[Callback], str] = {
    LearningRateFinder: "the checkpoint has the learning rate",
    BatchSizeFinder: "set --data.batch_size to the size that it found",
}
# Arguments of the student that it has from its weights or from the data, unless they are given. Their values are in the
# configuration, so that a checkpoint knows them when the weights' file is gone.
_LINKED = ("num_classes", "image_size", "mean", "std", "img_size")
# Those that weights of this project bring along, and what `origin_of` calls them.
_OF_WEIGHTS = {"mean": "mean", "std": "std", "img_size": "input_size"}
_BEST_BY = "val/accuracy_mean_probs"

# Commands with parsers of their own, and what they do.
_OTHER_COMMANDS = {
    "distill": "Make a teacher, a student and its export from a folder of photos: distill PHOTOS.",
    "cache": "Look at a cache of a teacher's answers, fill it ahead or throw it away: cache info FOLDER.",
    "export": "Write the student of a checkpoint as safetensors and ONNX.",
    "audit": "Rank a training set's labels, the probably wrong ones first, by what a run remembers: audit RUN.",
    "study": "Compare losses over several seeds, from one file, and write a table: study digits.",
}
_DESCRIPTION = (
    "Distil a teacher into a vision transformer. distill PHOTOS does all of it for a folder of photos, and predict "
    "STUDENT PHOTO ... says the class of photos. predict --ckpt_path CHECKPOINT is Lightning's: it predicts a data set."
)


def run(args: Sequence[str]) -> None:
    """Run one of Lightning's commands with the arguments that follow ``lit-distill``.

    Raises:
        ValueError: If there is no such command; names the closest one.
    """
    command, known = "".join(args[:1]), [*DistillCLI.subcommands(), *_OTHER_COMMANDS]
    if re.match("[^-]", command) and command not in known:
        hint = did_you_mean(command, known, cutoff=0.0)
        raise ValueError(f"there is no command {command!r} among {', '.join(known)}: {hint}")
    DistillCLI(args)


def _tensor(numbers: object) -> torch.Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected numbers, such as [1, 2.5], got {numbers}") from error


# A list may be given for class weights, and for whatever else a loss takes as a tensor.
register_type(torch.Tensor, torch.Tensor.tolist, _tensor)


class DistillCLI(LightningCLI):
    """``LightningCLI`` for `LitDistiller` and any data module.

    Besides Lightning's flags it has ``--retrospection`` and ``--checkpoint``, the arguments of ``ModelCheckpoint``. A
    ``--config`` that is no file names one of the package's recipes. ``--ckpt_path`` starts from the configuration of
    that run, which files and flags override.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.origin = Origin({})
        self.arguments = list(args)
        kwargs = {"exit_on_error": False, "allow_abbrev": False}
        about = {"prog": "lit-distill", "description": _DESCRIPTION, "version": version("lit-distill")}
        super().__init__(
            LitDistiller,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=_Parser,
            parser_kwargs={**kwargs, **about, **{name: dict(kwargs) for name in self.subcommands()}},
            args=self.arguments,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--retrospection",
            type=LearningWithRetrospection | None,
            default=None,
            help="Learning with Retrospection; --retrospection.interval=3 turns it on, --retrospection=null off.",
        )
        parser.add_argument(
            "--teacher_cache",
            type=TeacherCaching | None,
            default=None,
            help="Ask the teacher once for each view of an image; --teacher_cache.views=30 turns it on.",
        )
        parser.add_class_arguments(BestCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
        parser.set_defaults(
            {
                "checkpoint.monitor": _BEST_BY,
                "checkpoint.mode": "max",
                "checkpoint.auto_insert_metric_name": False,  # a metric's slash would make a folder
            }
        )
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="Threads of torch on a CPU. Tiny models are fastest, and the same on every machine, with 1.",
        )
        add_common_flags(parser)
        for name in _LINKED:
            linked = partial(self._linked, name)
            vars(linked)["__name__"] = name  # what --help shows
            parser.link_arguments("data", f"model.student.init_args.{name}", compute_fn=linked, apply_on="instantiate")

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: object) -> LightningArgumentParser:
        if subcommand not in self.arguments:
            return self.init_parser(
                **kwargs
            )  # only the command that runs needs arguments, which take a tenth of a second
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument(
                "--output",
                type=Path | None,
                default=None,
                help="CSV file for the predictions, which must not exist; by default a new one beside the checkpoint.",
            )
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        self.origin, words = from_checkpoint(with_class_names(with_recipes(self.arguments)))
        # Lightning has no public way to the parser of one command.
        self.config = parse(parser, words, self._subcommand_parsers.get("".join(words[:1])))
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path") and not any(word.startswith("--ckpt_path") for word in words):
            raise ValueError("give --ckpt_path on the command line: in a file it comes too late to configure the run")
        self._tell_changes(config.as_dict())

    def _tell_changes(self, config: Mapping[str, object]) -> None:
        """Say what replaces the checkpoint's configuration, and refuse what a resume would ignore."""
        for change in changes(self.origin.config, {part: config.get(part) for part in self.origin.config}):
            if change.old is None and change.key.startswith(("data.", "trainer.", "checkpoint.")):
                continue  # nothing was chosen before
            line = f"{change.flag}={change.new} replaces the checkpoint's {change.old}"
            if self.config.subcommand == "fit" and _is_restored(change.key):
                raise ValueError(f"{line}, but resuming restores the optimizer's state: leave it out, or start anew")
            rank_zero_only(print)(f"note: {line}", file=sys.stderr)

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint override the flags here, and has no switch for it."""

    def _linked(self, name: str, data: LightningDataModule) -> object:
        """Return an argument of the student: the one given, else that of its weights or of the data."""
        student = self.config[self.subcommand].model.student
        arguments = student.get("init_args") or {}
        if name in arguments and arguments[name] is None:
            arguments[name] = _chosen(student, name, data)
        return arguments.get(name)

    @override
    def _add_instantiators(self) -> None:
        # Lightning makes the hyper-parameters of `load_from_checkpoint` here, and has no public place to change them.
        super()._add_instantiators()
        self.parser.add_instantiator(_ModelInstantiator(self, "model"), LitDistiller, subclasses=False)

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        if config.checkpoint.monitor == _BEST_BY and config.model.distillation is not None:
            config.checkpoint.monitor = f"val/accuracy_{config.model.head}"  # the best of the head that answers
        if self.subcommand == "fit":
            keep_out_of_data(config)
            return
        config.trainer.logger = config.trainer.logger or False
        if config.ckpt_path is None:
            print("note: without --ckpt_path the student is as its class makes it, perhaps untrained", file=sys.stderr)

    @override
    def instantiate_classes(self) -> None:
        with trusting(self.config[self.subcommand].trust), described_by(self.origin.foreign):
            super().instantiate_classes()

    @override
    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        made = self.config_init[self.subcommand]
        best: BestCheckpoint = made.checkpoint
        self.trainer_defaults["callbacks"] = [
            Stopping(made.trainer.max_time),
            *self._checkpoints(made),
            StepSeed(),
            DivergenceCheck(),
            *as_list(made.retrospection),
            *(as_list(made.teacher_cache) if self.subcommand == "fit" else []),
            RunSummary(best.monitor, best.mode) if best.monitor else RunSummary(),
            TeacherCheck(),  # after those that may stop the run
        ]
        plugins = as_list(made.trainer.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(max_time=None, plugins=plugins, **kwargs)

    def _checkpoints(self, made: Namespace) -> list[Callback]:
        if self.subcommand != "fit" or made.trainer.enable_checkpointing is False:
            return []
        # Lightning's save_last=True keeps the last checkpoint that was saved, which is the best epoch's.
        return [made.checkpoint, LastCheckpoint(made.checkpoint.dirpath, made.ckpt_path, **made.checkpoint.within)]

    def before_fit(self) -> None:
        """Refuse to replace another run's logs, leave out searches that are over, and say who teaches."""
        is_resumed = self.config_init[self.subcommand].ckpt_path is not None
        if is_resumed:
            self._leave_out_searches()
        if self.trainer.is_global_zero and not is_dry_run(self.trainer):
            check_folders(self.trainer, resumes=is_resumed)
        teacher = self.model.teacher
        if teacher is not None:
            rank_zero_only(print)(f"teacher: {type(teacher.network).__name__}({teacher.extra_repr()})")

    def _leave_out_searches(self) -> None:
        """Leave out callbacks that would search again, since Lightning then forgets the progress of the checkpoint."""
        for kind, instead in _SEARCHES.items():
            for callback in callbacks_of(self.trainer, kind):
                all_callbacks(self.trainer).remove(callback)
                rank_zero_only(print)(f"note: {kind.__name__} does not search again: {instead}", file=sys.stderr)

    def fit(self, **kwargs: Any) -> None:
        """Train. If that ends early, say how to continue."""
        with resumable(self.trainer, self.arguments):
            self.trainer.fit(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict and write a CSV file."""
        write_predictions(self.trainer, self.config_init[self.subcommand].output, **kwargs)


def _chosen(student: Namespace, name: str, data: LightningDataModule) -> object:
    """Return the argument of a student that nobody has given."""
    weights, kind = student.init_args.get("weights"), resolve_name(student.class_path)
    origin = origin_of(weights) if weights else None
    if origin is not None and name in _OF_WEIGHTS:
        value = getattr(origin, _OF_WEIGHTS[name])
        return None if value is None else list(value)
    pretrained = weights or student.init_args.get("pretrained")
    if name in ("mean", "std") and pretrained and issubclass(kind, TimmStudent):
        return None  # those that timm has for its weights
    value = getattr(data, name, None)
    if value is None and inspect.signature(kind).parameters[name].default is inspect.Parameter.empty:
        raise ValueError(f"{type(data).__name__} has no {name}: give --model.student.{name}")
    return value


def _is_restored(key: str) -> bool:
    """Tell whether Lightning restores this setting from a checkpoint, whatever the new optimizer was made with."""
    return key.startswith(("model.optimizer", "model.scheduler.")) and not key.endswith(".total_steps")


class _ShortHelp(DefaultHelpFormatter):
    """jsonargparse's help without its lists of every module of every imported library."""

    @override
    def format_help(self) -> str:
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help())


class _Parser(LightningArgumentParser):
    """Lightning's parser with short help, which the parsers of classes inherit, more commands and whole dumps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _ShortHelp, **kwargs})

    @override
    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        commands = super().add_subcommands(*args, **kwargs)
        for name, purpose in _OTHER_COMMANDS.items():  # for the list in the help; the entry point runs them
            commands.add_subcommand(name, ArgumentParser(), help=purpose)
        return commands

    @override
    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Like jsonargparse's dump, but includes the values linked from the data, so the file reproduces the run."""
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # what Lightning calls skip_none
            # What is dumped has been parsed, and so validated.
            return str(super().dump(*args, **{"skip_link_targets": False, "skip_validation": True, **kwargs}))


class _ModelInstantiator(_InstantiatorFn):
    """Lightning's instantiator, for students that lack an argument to link to."""

    @override
    def __call__(
        self, class_type: type[ModuleType], *args: object, applied_instantiation_links: dict[str, Any], **kwargs: object
    ) -> ModuleType:
        self.cli._dump_config()
        student = self.cli.config_dump["model"]["student"].get("init_args") or {}
        links = {key: value for key, value in applied_instantiation_links.items() if key.rpartition(".")[2] in student}
        return super().__call__(class_type, *args, applied_instantiation_links=links, **kwargs)
