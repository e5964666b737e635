"""Lightning's command line with a teacher, a student and retrospection on it."""

from argparse import ArgumentError
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
import inspect
from pathlib import Path
from pkgutil import resolve_name
import re
import sys
from typing import Any
import warnings

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import register_type
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.utilities import rank_zero_only
import torch
from typing_extensions import override

from lit_distill.callbacks import DivergenceCheck, LearningWithRetrospection, RunSummary, StepSeed, TeacherCheck
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.cli.checkpoints import BestCheckpoint, LastCheckpoint
from lit_distill.cli.errors import one_line
from lit_distill.cli.outputs import keep_out_of_data
from lit_distill.cli.predictions import write_predictions
from lit_distill.cli.run_config import TRUST, SaveRunConfig, check_folders, differences, from_checkpoint, recipe
from lit_distill.cli.stopping import Stopping, resumable
import lit_distill.datamodules
import lit_distill.losses  # noqa: F401  # makes the short class names known
from lit_distill.models import TimmStudent
from lit_distill.models.saved import origin_of
from lit_distill.models.trust import described_by, trusting
from lit_distill.module import LitDistiller

# Arguments of the student that are, unless they are given, those of its weights if these are of this project, else the
# data's. Their values are in the configuration, so that a checkpoint knows them when the weights' file is gone.
_FROM_DATA = ("num_classes", "image_size", "mean", "std", "img_size")


_BEST_BY = "val/accuracy_mean_probs"

# Commands with parsers of their own, and what they do.
OTHER_COMMANDS = {
    "distill": "Make a teacher, a student and its export from a folder of photos: distill PHOTOS.",
    "export": "Write the student of a checkpoint as safetensors and ONNX.",
}
_PREDICT = "Say the class of photos: predict STUDENT PHOTO ...; or predict a data set: predict --ckpt_path CHECKPOINT."


def _tensor(numbers: Any) -> torch.Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected numbers, such as [1, 2.5], got {numbers}") from error


# So that weights of classes, and whatever else a loss takes as a tensor, can be given as a list.
register_type(torch.Tensor, torch.Tensor.tolist, _tensor)


class DistillCLI(LightningCLI):
    """``LightningCLI`` for `LitDistiller` and any data module.

    Beside Lightning's own: ``--retrospection``; ``--checkpoint``, the arguments of ``ModelCheckpoint``; a ``--config``
    that is no file names one of the package's recipes; ``--ckpt_path`` fills in the configuration of that run, which
    files and flags then override.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.checkpoint_config: dict[str, Any] = {}
        self.foreign: Path | None = None  # the checkpoint of somebody else that the configuration is from
        self.arguments = list(args)
        parser: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LitDistiller,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=_Parser,
            parser_kwargs={
                **parser,
                "description": "Distil a teacher into a vision transformer.",
                "version": f"lit-distill {version('lit-distill')}",
                **{name: dict(parser) for name in self.subcommands()},
            },
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
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
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
        parser.add_argument("--trust", **TRUST)
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        for name in _FROM_DATA:
            target = f"model.student.init_args.{name}"
            parser.link_arguments("data", target, compute_fn=partial(self._of_data, name), apply_on="instantiate")

    @override
    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        commands: Any = parser._subcommands_action
        for name, what in OTHER_COMMANDS.items():  # for the list: the entry point runs them
            commands.add_subcommand(name, ArgumentParser(), help=what)
        for command in commands._choices_actions:
            command.help = _PREDICT if command.dest == "predict" else command.help

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
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
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        args = recipe(list(args))
        self.checkpoint_config, args, self.foreign = from_checkpoint(args, self.subcommands())
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            subparser = self._subcommand_parsers.get(
                next((arg for arg in args if arg in self.subcommands()), ""), parser
            )
            raise ValueError(one_line(error, subparser._option_string_actions)) from error
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path") and not any(arg.startswith("--ckpt_path") for arg in args):
            raise ValueError("give --ckpt_path on the command line: in a file it comes too late to configure the run")
        for key, line in differences(self.checkpoint_config, config):
            if self.config.subcommand == "fit" and _restored(key):
                raise ValueError(f"{line}, but resuming restores the optimizer's state: leave it out, or start anew")
            rank_zero_only(print)(f"note: {line}", file=sys.stderr)

    @override
    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint override the flags here, silently."""

    def _of_data(self, name: str, data: LightningDataModule) -> Any:
        """Return an argument of the student: the one given, else the data's."""
        student = self.config[self.subcommand].model.student
        arguments = student.get("init_args") or {}
        if name not in arguments or arguments[name] is not None:
            return arguments.get(name)
        origin = origin_of(arguments["weights"]) if arguments.get("weights") else None
        if name in ("mean", "std", "img_size") and origin is not None:
            own = origin.input_size if name == "img_size" else getattr(origin, name)
            arguments[name] = None if own is None else list(own)
            return arguments[name]
        if name == "img_size":
            return None
        pretrained = arguments.get("pretrained") or arguments.get("weights")
        if name in ("mean", "std") and pretrained and issubclass(resolve_name(student.class_path), TimmStudent):
            return None  # those that it was pretrained with
        arguments[name] = getattr(data, name, None)
        required = (
            inspect.signature(resolve_name(student.class_path)).parameters[name].default is inspect.Parameter.empty
        )
        if arguments[name] is None and required:
            raise ValueError(f"{type(data).__name__} has no {name}: give --model.student.{name}")
        return arguments[name]

    @override
    def _add_instantiators(self) -> None:
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
        else:
            if config.trainer.logger is None:
                config.trainer.logger = False
            if config.ckpt_path is None:
                print(
                    "note: without --ckpt_path the student is as its class makes it, perhaps untrained", file=sys.stderr
                )

    @override
    def instantiate_classes(self) -> None:
        with trusting(self.config[self.subcommand].trust), described_by(self.foreign):
            super().instantiate_classes()

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        retrospection = self._get(self.config_init, "retrospection")
        checkpoint = self._get(self.config_init, "checkpoint")
        self.trainer_defaults["callbacks"] = [
            StepSeed(),
            DivergenceCheck(),
            *([retrospection] if retrospection is not None else []),
            RunSummary(checkpoint.monitor, checkpoint.mode) if checkpoint.monitor else RunSummary(),
            TeacherCheck(),  # after what would rather stop the run
        ]
        return super().instantiate_trainer(**kwargs)

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("enable_checkpointing") is False or self.subcommand != "fit":
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        else:
            # Lightning's save_last=True keeps the last checkpoint that was saved, which is the best epoch's.
            best = next((callback for callback in callbacks if isinstance(callback, BestCheckpoint)), None)
            resumed_from = self._get(self.config_init, "ckpt_path")
            last = (
                LastCheckpoint(None, resumed_from)
                if best is None
                else LastCheckpoint(best.dirpath, resumed_from, **best.within)
            )
            callbacks = [*callbacks, last]
        callbacks = [Stopping(config.pop("max_time", None)), *callbacks]
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        return super()._instantiate_trainer(config, callbacks)

    def before_fit(self) -> None:
        """Refuse to replace another run's logs, and say who teaches."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_folders(self.trainer, resumes=self._get(self.config_init, "ckpt_path") is not None)
        teacher = self.model.teacher
        if teacher is not None:
            rank_zero_only(print)(f"teacher: {type(teacher.network).__name__}({teacher.extra_repr()})")

    def fit(self, **kwargs: Any) -> None:
        """Train; if that ends early, say how to go on."""
        with resumable(self.trainer, self.arguments):
            self.trainer.fit(**kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict and write a CSV file."""
        output = self._get(self.config_init, "output")
        write_predictions(self.trainer, output, **kwargs)


def _restored(key: str) -> bool:
    """Tell whether Lightning restores this setting from a checkpoint, whatever the new optimizer was made with."""
    return key.startswith(("model.optimizer", "model.scheduler.")) and not key.endswith(".total_steps")


class _ShortHelp(DefaultHelpFormatter):
    """jsonargparse's help without its lists of every module of every imported library."""

    @override
    def format_help(self) -> str:
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help())


class _Parser(LightningArgumentParser):
    """Lightning's, with the short help, which the parsers of classes inherit, and whole configurations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _ShortHelp, **kwargs})

    @override
    def dump(self, *args: Any, **kwargs: Any) -> str:
        """As jsonargparse's, but with what the student has from the data unless it is given: it may be given."""
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # what Lightning calls skip_none
            return str(super().dump(*args, **{"skip_link_targets": False, **kwargs}))


class _ModelInstantiator(_InstantiatorFn):
    """Lightning's, for students that lack an argument to link to."""

    @override
    def __call__(
        self, class_type: type[Any], *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any
    ) -> Any:
        self.cli._dump_config()
        student = self.cli.config_dump["model"]["student"].get("init_args") or {}
        links = {key: value for key, value in applied_instantiation_links.items() if key.rpartition(".")[2] in student}
        return super().__call__(class_type, *args, applied_instantiation_links=links, **kwargs)
