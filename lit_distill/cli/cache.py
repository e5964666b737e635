"""``lit-distill cache``: look at a cache of a teacher's answers, fill it ahead, or throw it away."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import getdoc
from pathlib import Path
import re
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
import torch
from torch import nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.checks import check_at_least, counted
from lit_distill.cli.app import DistillCLI
from lit_distill.cli.arguments import command_parser, parse
from lit_distill.cli.stopping import Stopping
from lit_distill.models.answers import MADE_OF, Answers, caches_in
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.teacher_cache import Source, TeacherCache
from lit_distill.module import LitDistiller

_USAGE = "lit-distill cache info|fill|prune FOLDER"
_HELP = ("-h", "--help")
# What a cache has written; nothing else is ever removed.
_OWN_FILES = ("*.answers", "*.shard", ".*.part", ".lock", MADE_OF)


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill cache``.

    Raises:
        ValueError: If it is no command, or FOLDER is missing.
    """
    commands: dict[str, Callable[[Path, Sequence[str]], None]] = {"info": info, "fill": fill, "prune": prune}
    command, folder = [*args, "", ""][:2]
    if command in _HELP:
        texts = [__doc__, *(f"{name}: {getdoc(each)}" for name, each in commands.items())]
        print(f"usage: {_USAGE}", *(text.replace("``", "").strip() for text in texts), sep="\n\n")
        return
    if command in commands and folder in _HELP:
        folder, args = "FOLDER", [command, "FOLDER", "--help"]
    if command not in commands or folder.startswith("-") or not folder:
        raise ValueError(f"expected {_USAGE}, got lit-distill cache {' '.join(args)}")
    commands[command](Path(folder), args[2:])


def info(folder: Path, args: Sequence[str] = ()) -> None:
    """Print what the caches in a folder hold, those used last first."""
    parse(command_parser("cache info", "Print what the caches in a folder hold: cache info FOLDER."), args)
    caches = _caches(folder)
    size = sum(_size(answers.folder) for answers in caches)
    print(f"{folder}: {counted(len(caches), 'cache')}, {size / 1e6:.3g} MB")
    for answers in caches:
        views = answers.views()
        whole = sum(answers.share(view) == 1 for view in views)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime((answers.folder / MADE_OF).stat().st_mtime))
        damaged = f", {counted(answers.damaged, 'damaged shard')}" if answers.damaged else ""
        print(
            f"\n{answers.folder.name}: {counted(len(views), 'view')} of {counted(answers.num_rows, 'image')}, "
            f"{whole} of them whole, {_size(answers.folder) / 1e6:.3g} MB, used {used}{damaged}"
        )
        if answers.about:
            print(f"  {'of':<18}{answers.about}")
        for name, value in answers.made_of.items():
            print(f"  {name:<18}{value}")


def prune(folder: Path, args: Sequence[str] = ()) -> None:
    """Throw away the caches that were not used last, and damaged files of the others; --keep=0 throws away all."""
    parser = command_parser("cache prune", "Throw away caches but those used last: cache prune FOLDER --keep=1.")
    parser.add_argument("--keep", type=int, default=1, help="Caches of training, and of validation, to keep.")
    keep: int = parse(parser, args).keep
    check_at_least(0, keep=keep)
    freed, kept = 0, []
    sound = {kind: [answers.folder for answers in caches_in(folder, kind)] for kind in ("train", "val")}
    for kind, found in sound.items():
        named = {path for path in folder.glob(f"{kind}-*/") if re.fullmatch(r"\w+-[0-9a-f]{12}", path.name)}
        for path in [*found[keep:], *sorted(named - {*found})]:  # those that nobody can tell what they are made of
            freed += _size(path)
            _remove(path)
            print(f"removed {path}")
        for path in found[:keep]:
            before = _size(path)
            _remove_damaged(Answers.at(path))
            freed += before - _size(path)
            kept.append(path.name)
    if not freed and not kept:
        _caches(folder)  # says that there is none
    print(f"{freed / 1e6:.3g} MB are free again")
    if kept:
        print(f"kept {', '.join(kept)}, used last; --keep=0 removes all")


def fill(folder: Path, args: Sequence[str] = ()) -> None:
    """Ask the teacher about every view, with the flags of a run of ``fit``, and train nothing.

    What is there already is not asked again, so a command that was stopped goes on. ``--trainer.devices`` shares the
    work among devices.
    """
    if {*_HELP} & {*args}:
        about = "Ask the teacher of a run of fit about all views ahead: cache fill FOLDER, and the flags of that run."
        parse(command_parser("cache fill", about), ["--help"])
    views = [arg for arg in args if arg.startswith(("--teacher_cache.views=", "--config", "-c", "--ckpt_path"))]
    if not views:
        raise ValueError(
            f"cache fill needs the flags of the run of fit whose teacher is to be asked, with --teacher_cache.views: "
            f"lit-distill cache fill {folder} --config RUN.yaml --teacher_cache.views=30"
        )
    _FillCLI(["fit", *args, f"--teacher_cache.folder={folder}"])


def _caches(folder: Path) -> list[Answers]:
    found = caches_in(folder)
    if not found:
        below = next((path.parent.parent for path in sorted(folder.glob(f"*/*/{MADE_OF}"))), None)
        mend = f"look in {below}" if below else "--teacher_cache.views=30 makes one"
        raise ValueError(f"there is no cache of a teacher's answers in {folder}: {mend}")
    return found


def _size(folder: Path) -> int:
    size = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # merged meanwhile
            size += path.stat().st_size
    return size


def _remove(folder: Path) -> None:
    for pattern in _OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's file is in it
        folder.rmdir()


def _remove_damaged(answers: Answers) -> None:
    """Merge what is there, and remove views that have no sound row."""
    for view in answers.views():
        answers.merge(view)
        if answers.share(view) == 0:
            (answers.folder / f"{view:05}.answers").unlink(missing_ok=True)


class _Asking(LitDistiller):
    """Asks the teacher, and trains nothing."""

    def __init__(self, teacher: Teacher | None, distillation: nn.Module | None) -> None:
        super().__init__(nn.Identity(), teacher, distillation=distillation)
        self.unused = nn.Parameter(torch.zeros(()))  # DDP wants one
        self.automatic_optimization = False
        self.sources: dict[int, Source] = {}

    def check_written(self) -> None:
        """Raise what kept answers from being written: a run would go on without its cache, and this does nothing else.

        Raises:
            OSError: Such as a full disk.
        """
        if isinstance(self.teacher, TeacherCache):
            self.sources |= {id(source): source for source in self.teacher.sources}
        for source in self.sources.values():
            if source.error is not None:
                raise source.error

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        if isinstance(self.teacher, TeacherCache):
            self.teacher.is_timed = False  # a step is nothing but asking

    @override
    def on_train_batch_start(self, batch: object, batch_idx: int) -> int | None:  # type: ignore[override]  # as Lightning
        """Leave an epoch out if everything is there; its images need not be made."""
        super().on_train_batch_start(batch, batch_idx)
        self.check_written()
        return -1 if isinstance(self.teacher, TeacherCache) and self.teacher.is_warm else None

    @override
    def training_step(self, batch: object, batch_idx: int) -> None:  # type: ignore[override]  # no loss
        if self.teacher is not None:
            self.teacher(Batch.of(batch))

    @override
    def validation_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.training_step(batch, batch_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        """Measure nothing."""

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.unused])  # never steps; Lightning would warn of none


class _FillCLI(DistillCLI):
    """A run of ``fit`` that asks its teacher about every view, and trains nothing."""

    @override
    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        made = self.config_init[self.subcommand]
        if made.teacher_cache is None or made.model.teacher is None:
            raise ValueError("cache fill needs a teacher and --teacher_cache.views: give the flags of the run of fit")
        self.save_config_callback = None
        self.trainer_defaults["callbacks"] = [Stopping(made.trainer.max_time), made.teacher_cache]
        chosen: dict[str, object] = {
            "callbacks": None,
            "logger": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "check_val_every_n_epoch": 1,
            "gradient_clip_val": None,
            "accumulate_grad_batches": 1,
        }
        limits = {"max_epochs": made.teacher_cache.views, "max_steps": -1, "max_time": None}
        return LightningCLI.instantiate_trainer(self, **{**kwargs, **chosen, **limits})

    @override
    def before_fit(self) -> None:
        """Write no logs."""

    @override
    def fit(self, **kwargs: Any) -> None:
        """Ask."""
        asking = _Asking(self.model.teacher, self.model.distillation)
        self.trainer.fit(**{**kwargs, "model": asking})
        asking.check_written()
        if self.trainer.is_global_zero:
            info(self.config_init[self.subcommand].teacher_cache.folder)
